"""What one trained run makes of every labelled split, and what it costs: kept beside the run as `measured.json`."""

import json
import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mode_ssm.config import TrainConfig
from mode_ssm.data.log_mel import BIN_SECONDS
from mode_ssm.inference import LoadedModel, load, signal_path
from mode_ssm.lm.lexicon_cache import fingerprint
from mode_ssm.models.mode_ssm import MODE_SSM
from mode_ssm.models.multiply_accumulates import multiply_accumulates
from mode_ssm.models.streaming import lay_out_for_streaming
from mode_ssm.ops.timing import milliseconds
from mode_ssm.tasks.cached_log_probs import made_for
from mode_ssm.tasks.comparison import MeasuredTrial
from mode_ssm.tasks.evaluation import evaluate_split
from mode_ssm.train.checkpoint import BEST, WEIGHTS, config_yaml, load_checkpoint
from mode_ssm.train.distributed import joined

FILE = "measured.json"
TRIAL_REPEATS, STREAMED_FRAMES = 9, 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """macs_per_second: multiply-accumulates of a second of signal, from features to phoneme logits. trial_ms: a whole
    trial, batch 1, divided by its frames. step_ms: a frame alone, None where the model does not step."""

    num_parameters: int
    macs_per_second: float
    trial_ms: float
    step_ms: float | None
    frame_stride: int  # bins
    causal: bool
    signal: str  # what figures assume about the future


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Trials of val, and of test where its truth is known."""

    trials: dict[str, list[MeasuredTrial]]
    costs: Costs


def measure(run_dir: Path, config: TrainConfig) -> Measurement:
    """Decode and time the best checkpoint of a run as evaluate_model.py does, or read what an earlier call found."""
    with joined(config.parallel) as distributed:
        loaded = load(load_checkpoint(run_dir / BEST), config, distributed)
        data = loaded.data
        splits = [split for split in ("val", "test") if data.index.trials.get(split) and data.has_labels(split)]
        infos = [info for split in splits for info in data.trials(split)]
        needed = made_for(loaded.checkpoint.path / WEIGHTS, config.data, infos)
        needed["config"] = fingerprint(config_yaml(config))
        file = run_dir / FILE
        if (kept := _kept(file, needed)) is not None:
            return kept
        trials = {}
        for split in splits:
            found = evaluate_split(loaded.model, data, split, config, distributed, neural=loaded.neural, progress=False)
            trials[split] = [MeasuredTrial.from_result(result, data.sessions) for result in found.results]
        measurement = Measurement(trials=trials, costs=measure_costs(loaded, splits[-1]))
        partial = file.with_name(f".partial_{FILE}")
        partial.write_text(json.dumps({"made_for": needed, **asdict(measurement)}))
        os.replace(partial, file)
        return measurement


def _kept(file: Path, needed: dict[str, str]) -> Measurement | None:
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    if found["made_for"] != needed:
        return None
    trials = {split: [_trial(values) for values in rows] for split, rows in found["trials"].items()}
    return Measurement(trials=trials, costs=Costs(**found["costs"]))


def _trial(values: dict[str, Any]) -> MeasuredTrial:
    pairs = {key: None if values[key] is None else tuple(values[key]) for key in ("per", "per_greedy_ctc", "wer")}
    return MeasuredTrial(**{**values, **pairs})


@torch.no_grad()
def measure_costs(loaded: LoadedModel, split: str) -> Costs:
    """Parameters, multiply-accumulates and times for a recording as long as the median trial of the split."""
    model, device = loaded.model.eval(), loaded.model.device
    bins = int(np.median([info.num_bins for info in loaded.data.trials(split)]))
    features = torch.zeros(1, bins, loaded.config.data.feature_dim, device=device)
    inputs = features, torch.tensor([bins], device=device), torch.zeros(1, dtype=torch.int64, device=device)
    frames = int(model(*inputs).lengths[0])
    whole = {"trial": lambda: model(*inputs)}
    trial_ms = milliseconds(whole, device.type, repeats=TRIAL_REPEATS)["trial"] / frames
    return Costs(
        num_parameters=loaded.checkpoint.description["num_parameters"],
        macs_per_second=multiply_accumulates(model, *inputs) / (bins * BIN_SECONDS),
        trial_ms=trial_ms,
        step_ms=_step_milliseconds(model, features),
        frame_stride=model.frame_stride,
        causal=model.causal,
        signal=signal_path(loaded.config.data, loaded.model.causal),
    )


def _step_milliseconds(model: torch.nn.Module, features: torch.Tensor) -> float | None:
    """Median of a frame of a stream, laid out as for live use."""
    if not isinstance(model, MODE_SSM) or not model.causal:
        return None
    streaming = deepcopy(model)
    lay_out_for_streaming(streaming)
    state = streaming.initial_state(torch.zeros(1, dtype=torch.int64, device=features.device))
    frame = features[:, : model.frame_stride]

    def step() -> None:
        nonlocal state
        _, _, state = streaming.step(frame, state)

    stepping: dict[str, Callable[[], object]] = {"step": step}
    return milliseconds(stepping, features.device.type, repeats=STREAMED_FRAMES, warm_up=10)["step"]
