"""What the types cannot say: ranges, divisibility, names, and keys that must agree. Every issue is reported at once."""

import math
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from mode_ssm.config import (
    AdaptConfig,
    CompareConfig,
    LossWeights,
    LrMultipliers,
    Mixer,
    ModelKind,
    PhaseConfig,
    SessionAdapter,
    Smoothing,
    TaskName,
    TrainConfig,
    TuneConfig,
)

# What phases of a task may train and minimise, and what the task measures while it trains, its choice first.
MODULES = {
    TaskName.transcription: ("preprocessor", "encoder", "mode_head", "denoiser", "ctc_head", "predictor", "joiner"),
    TaskName.language_model: ("language_model",),
}
LOSS_TERMS = {
    TaskName.transcription: ("ctc", "rnnt", "mode_information", "mode_block", "flow"),
    TaskName.language_model: ("cross_entropy",),
}
METRICS = {
    TaskName.transcription: ("val/per_mean", "val/per", "val/per_rnnt"),
    TaskName.language_model: ("val/perplexity",),
}
CTC_MODULES, CTC_TERMS, CTC_METRICS = ("preprocessor", "encoder", "ctc_head"), ("ctc",), ("val/per",)  # of baselines
SPLITS = ("train", "val", "test")

_AT_LEAST_ONE = (
    "data.feature_dim", "data.batch_size", "data.sessions_per_batch", "data.eval_batch_size", "model.d_model",
    "model.stem.kernel_size", "model.stem.stride", "model.encoder.n_layers", "model.encoder.d_state",
    "model.encoder.d_conv", "model.encoder.expand", "model.encoder.headdim", "model.mode.n_modes",
    "model.mode.hidden", "model.denoiser.n_steps", "model.denoiser.hidden", "model.heads.predictor_context",
    "model.heads.d_joint", "optim.accumulation", "lm.order", "decode.beam_size", "decode.nbest",
    "decode.rnnt_beam_size", "decode.rnnt_max_symbols", "adapt.batch_size", "checkpoint.every_steps",
    "checkpoint.keep", "logging.every_steps", "language_model.vocabulary_size",
    "language_model.frequent_tokens", "language_model.d_model",
    "language_model.n_layers", "language_model.n_heads", "language_model.d_hidden", "language_model.context",
    "text.tokens_per_batch", "model.gru.patch_size", "model.gru.patch_stride", "model.gru.hidden",
    "model.gru.n_layers", "model.transformer.patch_size", "model.transformer.d_model", "model.transformer.n_layers",
    "model.transformer.n_heads", "model.transformer.head_dim", "model.transformer.mlp_ratio",
    "model.transformer.max_distance",
)  # fmt: skip
_POSITIVE = (
    "optim.lr", "optim.eps", "optim.clip_norm", "model.encoder.dt_min", "model.encoder.dt_max",
    "decode.acoustic_scale", "adapt.lr", "data.rolling_seconds",
)  # fmt: skip
_NOT_NEGATIVE = (
    "seed", "data.num_workers", "data.smoothing_std", "data.augment.white_noise_std",
    "data.augment.constant_offset_std", "data.augment.random_cut_bins", "data.augment.time_masks",
    "data.augment.time_shift_bins", "data.augment.random_walk_std", "data.augment.feature_masks",
    "data.simulate.seed", "model.denoiser.corruption_std", "optim.weight_decay", "optim.warmup_steps",
    "decode.lm_scale", "decode.blank_penalty", "decode.fusion_every", "adapt.steps", "adapt.ctc_weight",
    "adapt.rnnt_weight", "parallel.threads", "model.transformer.time_masks",
)  # fmt: skip
_FROM_0_TO_1 = (
    "data.augment.time_mask_max_fraction",
    "data.augment.feature_mask_max_fraction",
    "data.augment.array_dropout",
    "model.session_dropout",
    "optim.min_lr_ratio",
    "optim.step_at",
    "model.transformer.time_mask_max_fraction",
    "decode.ctc_weight",
    "decode.ilm_scale",
    "lm.neural_weight",
    "lm.corpus_purity",
)
_FROM_0_BELOW_1 = (
    "data.augment.time_warp", "data.augment.static_gain", "data.augment.electrode_dropout",
    "model.stem.input_dropout", "model.encoder.dropout", "model.encoder.drop_path",
    "model.heads.predictor_dropout", "language_model.dropout", "optim.beta1", "optim.beta2",
    "model.gru.dropout", "model.gru.input_dropout", "model.transformer.dropout", "model.transformer.input_dropout",
)  # fmt: skip
_FINITE = ("model.encoder.dt_bias_shift", "decode.word_bonus", "decode.silence_score")
_RANGES = (
    (_AT_LEAST_ONE, "at least 1", lambda value: value >= 1),
    (_POSITIVE, "above 0", lambda value: 0 < value < math.inf),
    (_NOT_NEGATIVE, "0 or above", lambda value: 0 <= value < math.inf),
    (_FROM_0_TO_1, "from 0 to 1", lambda value: 0 <= value <= 1),
    (_FROM_0_BELOW_1, "from 0 to below 1", lambda value: 0 <= value < 1),
    (_FINITE, "a finite number", math.isfinite),
)
_LARGE = 1e6
_TUNED = {
    "acoustic_scale": (1 / _LARGE, "above 0", _LARGE),
    "word_bonus": (-_LARGE, "a finite number", _LARGE),
    "blank_penalty": (0.0, "0 or above", _LARGE),
    "neural_weight": (0.0, "from 0 to 1", 1.0),
}


def validate(config: TrainConfig) -> None:
    """Raise one `ValueError` with a line for every value that makes no sense: key, value, what would."""
    issues = [*_ranges(config), *_run(config), *_data(config), *_model(config), *_curriculum(config), *_search(config)]
    if config.task.name is TaskName.language_model:
        issues += _language_model(config)
    if issues:
        raise ValueError("\n  ".join(["the configuration does not make sense:", *issues]) if issues[1:] else issues[0])


def validate_split(split: str) -> None:
    """Raise `ValueError` for a split that no dataset has."""
    if split not in SPLITS:
        raise ValueError(f"split={split}: expected one of {', '.join(SPLITS)}")


def validate_tuning(config: TuneConfig) -> None:
    """Raise one `ValueError` for settings of `scripts/tune_decoding.py` that make no sense, and for the test split."""
    if config.split == "test":
        raise ValueError(
            "split=test: scales chosen on the test split make its error rates too good to be true; tune with split=val"
        )
    validate_split(config.split)
    issues = []
    for key, least in (("trials", 1), ("refinements", 0), ("processes", 0)):
        if getattr(config, key) < least:
            issues.append(f"{key}={getattr(config, key)}: expected at least {least}")
    for axis in fields(config.axes):
        lowest, words, highest = _TUNED[axis.name]
        values = getattr(config.axes, axis.name)
        if not values or not all(lowest <= value <= highest for value in values):
            issues.append(f"axes.{axis.name}={values}: expected one value or more, each {words}")
    if issues:
        raise ValueError("; ".join(issues))


def validate_comparison(config: CompareConfig) -> None:
    """Raise one `ValueError` for settings of `scripts/compare.py` that make no sense."""
    issues = []
    for key in ("experiments", "seeds"):
        values = getattr(config, key)
        if not values or len(set(values)) < len(values):
            issues.append(f"{key}={values}: expected one or more, each once")
    for name in (config.name, *config.experiments):
        if not re.fullmatch(r"[\w-][\w.-]*", name):
            issues.append(f"{name!r}: expected a folder name of letters, digits and _ - .")
    if any(seed < 0 for seed in config.seeds):
        issues.append(f"seeds={config.seeds}: expected 0 or above")
    for key in ("settings", "tune_lr"):
        for row in getattr(config, key):
            if row not in config.experiments:
                issues.append(f"{key}.{row}: no row of that name; experiments={config.experiments}")
    for row, rates in config.tune_lr.items():
        if not rates or not all(0 < rate < math.inf for rate in rates) or len(set(rates)) < len(rates):
            issues.append(f"tune_lr.{row}={rates}: expected one value or more, each once and above 0")
    for key in ("processes", "samples"):
        if getattr(config, key) < 1:
            issues.append(f"{key}={getattr(config, key)}: expected at least 1")
    if issues:
        raise ValueError("; ".join(issues))


def _value(config: TrainConfig, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _ranges(config: TrainConfig) -> Iterator[str]:
    for paths, words, accepts in _RANGES:
        for path in paths:
            value = _value(config, path)
            if not accepts(value):
                yield f"{path}={value}: expected {words}"


def _run(config: TrainConfig) -> Iterator[str]:
    if not re.fullmatch(r"[\w.-]+", config.run_name) or config.run_name in (".", ".."):
        yield f"run_name={config.run_name}: expected a folder name of letters, digits and _ - ."
    if config.resume and config.overwrite:
        yield "resume=true and overwrite=true exclude each other: continue the run, or start it afresh"
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.parallel.device):
        yield f"parallel.device={config.parallel.device}: expected auto, cpu, cuda or cuda:<number>"
    metric, known = config.checkpoint.metric, CTC_METRICS if _ctc_alone(config) else METRICS[config.task.name]
    if metric is not None and metric not in known:
        yield f"checkpoint.metric={metric}: expected one of {', '.join(known)}, or null for the task's choice"
    elif config.checkpoint.higher_is_better:
        yield f"checkpoint.higher_is_better=true: {metric or known[0]} is better when lower; set it to false"


def _data(config: TrainConfig) -> Iterator[str]:
    data = config.data
    if data.sessions_per_batch > data.batch_size >= 1:
        yield (
            f"data.sessions_per_batch={data.sessions_per_batch}: expected at most data.batch_size={data.batch_size}, "
            "because a batch cannot mix more sessions than it has trials"
        )
    if data.smoothing is not Smoothing.none and data.smoothing_std == 0:
        yield f"data.smoothing_std=0: {data.smoothing.name} smoothing needs a width; or set data.smoothing=none"
    for key in ("electrode_dropout", "array_dropout"):
        value = getattr(data.augment, key)
        if value and data.feature_dim % 128:
            yield (
                f"data.augment.{key}={value}: needs arrays of 64 electrodes with two features each, and "
                f"data.feature_dim={data.feature_dim} is no multiple of 128; set it to 0"
            )
    if data.train_sessions is not None and not data.train_sessions:
        yield "data.train_sessions=[]: expected at least one session, or null for all"


def _model(config: TrainConfig) -> Iterator[str]:
    model, encoder = config.model, config.model.encoder
    d_inner = model.d_model * encoder.expand
    if encoder.mixer is Mixer.mamba2 and encoder.headdim >= 1 and d_inner >= 1 and d_inner % encoder.headdim:
        fitting = [width for width in (8, 16, 32, 64, 128, 256) if d_inner % width == 0] or [d_inner]
        yield (
            f"model.encoder.headdim={encoder.headdim}: must divide d_model x expand = {d_inner}; "
            f"for example {', '.join(map(str, fitting))}"
        )
    projection = model.stem.projection
    if projection is not None and projection < 1:
        yield f"model.stem.projection={projection}: expected at least 1, or null for none"
    if projection is None and model.session_adapter is SessionAdapter.projection:
        yield "model.session_adapter=projection: needs model.stem.projection, the width that it projects to"
    if model.stem.mask_token and not config.data.augment.time_masks:
        yield "model.stem.mask_token=true: is learned where data.augment.time_masks leaves zeros; set that above 0"
    if model.stem.kernel_size < model.stem.stride:
        yield (
            f"model.stem.kernel_size={model.stem.kernel_size}: expected at least model.stem.stride="
            f"{model.stem.stride}, or bins between two frames would be seen by none"
        )
    if encoder.dt_min > encoder.dt_max:
        yield f"model.encoder.dt_min={encoder.dt_min}: expected at most model.encoder.dt_max={encoder.dt_max}"


def _language_model(config: TrainConfig) -> Iterator[str]:
    for key, example in (("train", "conversation.txt,read.txt"), ("valid", "held_out.txt")):
        if not getattr(config.text, key):
            yield f"text.{key}=[]: give text files, one sentence a line, such as text.{key}=[{example}]"
    model = config.language_model
    if model.n_heads >= 1 and model.d_model >= 1 and model.d_model % (2 * model.n_heads):
        yield (
            f"language_model.n_heads={model.n_heads}: must divide language_model.d_model={model.d_model} "
            "into heads of even width"
        )


def _curriculum(config: TrainConfig) -> Iterator[str]:
    if not config.curriculum.phases:
        yield "curriculum.phases={}: expected at least one phase; choose a curriculum, e.g. curriculum=four_stage"
    if _ctc_alone(config) and any(set(p.train) - set(CTC_MODULES) for p in config.curriculum.phases.values()):
        yield (
            f"model.kind={config.model.kind.value}: its parts are {', '.join(CTC_MODULES)}, and the curriculum trains "
            "others; choose one for it, e.g. curriculum=one_stage"
        )
        return
    for name, phase in config.curriculum.phases.items():
        yield from _phase(f"curriculum.phases.{name}", phase, config)


def _ctc_alone(config: TrainConfig) -> bool:
    """Whether the model has a CTC head and no other."""
    return config.task.name is TaskName.transcription and config.model.kind is not ModelKind.mode_ssm


def _phase(path: str, phase: PhaseConfig, config: TrainConfig) -> Iterator[str]:
    task = config.task.name
    modules, terms = (CTC_MODULES, CTC_TERMS) if _ctc_alone(config) else (MODULES[task], LOSS_TERMS[task])
    if (phase.epochs is None) == (phase.steps is None):
        yield f"{path}: epochs={_null(phase.epochs)} steps={_null(phase.steps)}: give exactly one, the other is null"
    lengths = {"epochs": phase.epochs, "steps": phase.steps, "evaluate_every_epochs": phase.evaluate_every_epochs}
    for key, value in (lengths | {"patience": phase.patience}).items():
        if value is not None and not 0 < value < math.inf:
            yield f"{path}.{key}={value}: expected above 0, or null"
    if phase.patience is not None and phase.evaluate_every_epochs is None:
        yield f"{path}.patience={phase.patience}: counts evaluations; set {path}.evaluate_every_epochs too"
    known = ", ".join(modules)
    if not phase.train:
        yield f"{path}.train=[]: expected at least one of {known}"
    for module in phase.train:
        if module not in modules:
            yield f"{path}.train: unknown module {module!r}; known: {known}"
    for module in sorted({module for module in phase.train if phase.train.count(module) > 1}):
        yield f"{path}.train: {module!r} stands there twice"
    weights = {field.name: getattr(phase.loss, field.name) for field in fields(LossWeights)}
    for term, weight in weights.items():
        if not 0 <= weight < math.inf:
            yield f"{path}.loss.{term}={weight}: expected 0 or above"
        elif weight and term not in terms:
            owner = f"model.kind={config.model.kind.value}" if _ctc_alone(config) else f"task={task.value}"
            yield f"{path}.loss.{term}={weight}: {owner} has no such term; expected 0"
    if not any(weights.values()):
        yield f"{path}.loss: every weight is 0; give one to at least one of {', '.join(terms)}"
    for module in (field.name for field in fields(LrMultipliers)):
        multiplier = getattr(phase.lr_multipliers, module)
        if not 0 < multiplier < math.inf:
            yield f"{path}.lr_multipliers.{module}={multiplier}: expected above 0; leave it out of train to freeze it"


def _search(config: TrainConfig) -> Iterator[str]:
    if config.decode.nbest > config.decode.beam_size:
        yield (
            f"decode.nbest={config.decode.nbest}: expected at most decode.beam_size={config.decode.beam_size}, "
            "because a beam ends with no more hypotheses than it holds"
        )
    threshold = config.decode.beam_threshold
    if threshold is not None and not threshold > 0:
        yield f"decode.beam_threshold={threshold}: expected above 0, or null to keep every hypothesis of the beam"
    yield from _adapt(config.adapt, _ctc_alone(config))


def _adapt(adapt: AdaptConfig, ctc_alone: bool) -> Iterator[str]:
    if adapt.steps > 0 and adapt.ctc_weight == 0 and (adapt.rnnt_weight == 0 or ctc_alone):
        keys = "adapt.ctc_weight" if ctc_alone else "adapt.ctc_weight or adapt.rnnt_weight"
        yield f"adapt.steps={adapt.steps}: nothing to minimise; give {keys}, or 0 steps"


def _null(value: float | None) -> str:
    return "null" if value is None else str(value)
