"""What the types cannot say: ranges, divisibility, names, and keys that must agree. Every issue is reported at once."""

import re
from collections.abc import Iterator

from mode_ssm.compose.validation_curriculum import CTC_METRICS, METRICS, ctc_alone, curriculum_issues
from mode_ssm.compose.validation_ranges import range_issues
from mode_ssm.config import AdaptConfig, Mixer, SessionAdapter, Smoothing, TaskName, TrainConfig


def validate(config: TrainConfig) -> None:
    """Raise one `ValueError` with a line for every value that makes no sense: key, value, what would."""
    issues = [
        *range_issues(config),
        *_run(config),
        *_data(config),
        *_model(config),
        *curriculum_issues(config),
        *_search(config),
    ]
    if config.task.name is TaskName.language_model:
        issues += _language_model(config)
    if issues:
        raise ValueError("\n  ".join(["the configuration does not make sense:", *issues]) if issues[1:] else issues[0])


def _run(config: TrainConfig) -> Iterator[str]:
    if not re.fullmatch(r"[\w.-]+", config.run_name) or config.run_name in (".", ".."):
        yield f"run_name={config.run_name}: expected a folder name of letters, digits and _ - ."
    if config.resume and config.overwrite:
        yield "resume=true and overwrite=true exclude each other: continue the run, or start it afresh"
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.parallel.device):
        yield f"parallel.device={config.parallel.device}: expected auto, cpu, cuda or cuda:<number>"
    metric, known = config.checkpoint.metric, CTC_METRICS if ctc_alone(config) else METRICS[config.task.name]
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


def _search(config: TrainConfig) -> Iterator[str]:
    if config.decode.nbest > config.decode.beam_size:
        yield (
            f"decode.nbest={config.decode.nbest}: expected at most decode.beam_size={config.decode.beam_size}, "
            "because a beam ends with no more hypotheses than it holds"
        )
    threshold = config.decode.beam_threshold
    if threshold is not None and not threshold > 0:
        yield f"decode.beam_threshold={threshold}: expected above 0, or null to keep every hypothesis of the beam"
    yield from _adapt(config.adapt, ctc_alone(config))


def _adapt(adapt: AdaptConfig, ctc_alone: bool) -> Iterator[str]:
    if adapt.steps > 0 and adapt.ctc_weight == 0 and (adapt.rnnt_weight == 0 or ctc_alone):
        keys = "adapt.ctc_weight" if ctc_alone else "adapt.ctc_weight or adapt.rnnt_weight"
        yield f"adapt.steps={adapt.steps}: nothing to minimise; give {keys}, or 0 steps"
