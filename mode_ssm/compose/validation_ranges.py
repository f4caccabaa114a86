"""In which range each number of the schema makes sense."""

import math
from collections.abc import Iterator
from typing import Any

from mode_ssm.config import TrainConfig

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
RANGES = (
    (_AT_LEAST_ONE, "at least 1", lambda value: value >= 1),
    (_POSITIVE, "above 0", lambda value: 0 < value < math.inf),
    (_NOT_NEGATIVE, "0 or above", lambda value: 0 <= value < math.inf),
    (_FROM_0_TO_1, "from 0 to 1", lambda value: 0 <= value <= 1),
    (_FROM_0_BELOW_1, "from 0 to below 1", lambda value: 0 <= value < 1),
    (_FINITE, "a finite number", math.isfinite),
)


def range_issues(config: TrainConfig) -> Iterator[str]:
    """A line for every number outside of its range."""
    for paths, words, accepts in RANGES:
        for path in paths:
            value = _value(config, path)
            if not accepts(value):
                yield f"{path}={value}: expected {words}"


def _value(config: TrainConfig, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value
