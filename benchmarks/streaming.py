"""Milliseconds a frame of streaming: the figures that docs/performance.md quotes.

    OMP_NUM_THREADS=1 uv run --extra export benchmarks/streaming.py [--profile] [key=value ...]

Random weights in the sizes of experiment=t15_mode_ssm, changed by overrides (model.encoder.mixer=mamba); batch 1. All
forms take turns in one process, so that a busy neighbour slows all of them; the first frame of a turn, which finds the
others' weights in the cache, does not count.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from mode_ssm.compose import load_train_config, run_main
from mode_ssm.config import ParallelConfig
from mode_ssm.export.bundle import Export, Source, build
from mode_ssm.export.graph import Weights
from mode_ssm.export.verification import open_export
from mode_ssm.models.mode_ssm import MODE_SSM
from mode_ssm.models.streaming import lay_out_for_streaming
from mode_ssm.tasks.transcription import build_model
from mode_ssm.train.distributed import init_distributed

TURN = 6  # frames
Frame = Callable[[], object]


def eager(model: MODE_SSM, bins: torch.Tensor) -> Frame:
    with torch.inference_mode():
        state = model.initial_state(torch.tensor([0]))

    @torch.inference_mode()
    def frame() -> None:
        nonlocal state
        _, _, state = model.step(bins, state)

    return frame


def exported(export: Export, bins: torch.Tensor, threads: int) -> Frame:
    session, values = open_export(export, threads), bins[0].numpy()
    return lambda: session.push(values)


def measure(forms: dict[str, Frame], frames: int) -> dict[str, np.ndarray]:
    """Sorted milliseconds of every form."""
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(-(-frames // (TURN - 1))):
        for name, frame in forms.items():
            for turn in range(TURN):
                begin = time.perf_counter()
                frame()
                if turn > 0:
                    taken[name].append(1e3 * (time.perf_counter() - begin))
    return {name: np.sort(values) for name, values in taken.items()}


def operators(export: Export, frames: int = 100) -> Counter[str]:
    """Milliseconds a frame by operator, as onnxruntime's profiler tells; it slows the small ones most."""
    ort = import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_profiling = True
    manifest = export.manifest
    values = {name: np.ones(s.shape, s.dtype) for name, s in {**manifest.inputs, **manifest.states}.items()}
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(export.content, options, providers=["CPUExecutionProvider"])
        for _ in range(frames):
            session.run(None, values)
        events = json.loads(Path(session.end_profiling()).read_text())
    total: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node":
            total[event["args"]["op_name"]] += event["dur"] / 1e3 / frames
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings of train.py")
    parser.add_argument("--frames", type=int, default=300, help="frames of every form that count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="also where the time of the exports goes")
    arguments = parser.parse_args()
    init_distributed(ParallelConfig(device="cpu", threads=arguments.threads))  # what any process of ours sets
    torch.manual_seed(0)
    config = load_train_config(["experiment=t15_mode_ssm", *arguments.overrides])
    model = build_model(config, num_sessions=2, num_blocks=1).eval()
    source = Source("random weights", model, config.data, ["a session"])
    exports = {weights.value: build(source, "a session", weights) for weights in Weights}
    laid_out = deepcopy(model)
    lay_out_for_streaming(laid_out)
    bins = torch.randn(1, model.frame_stride, config.data.feature_dim)
    forms = {"eager, as loaded": eager(model, bins), "eager, laid out for streaming": eager(laid_out, bins)}
    forms |= {f"exported, {name}": exported(export, bins, arguments.threads) for name, export in exports.items()}
    measure(forms, TURN)  # allocations and first calls
    table = Table(title=f"ms a frame, {arguments.threads} thread(s), {arguments.frames} frames")
    for column in ("", "median", "fastest", "90 %"):
        table.add_column(column, justify="right" if column else "left")
    for name, taken in measure(forms, arguments.frames).items():
        table.add_row(name, *(f"{value:.2f}" for value in (np.median(taken), taken[0], taken[int(0.9 * len(taken))])))
    console = Console()
    console.print(table)
    if arguments.profile:
        for name, export in exports.items():
            shares = ", ".join(f"{operator} {ms:.2f}" for operator, ms in operators(export).most_common(8))
            console.print(f"{name}, ms a frame by operator: {shares}")


if __name__ == "__main__":
    run_main(main)
