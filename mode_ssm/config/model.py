"""The models: MODE_SSM by its parts, the two baselines, the Transformer over words."""

from dataclasses import dataclass, field
from enum import Enum


class ModelKind(Enum):
    """Which model turns features into phonemes."""

    mode_ssm = "mode_ssm"
    gru = "gru"  # the benchmark's own baseline
    transformer = "transformer"  # time-masked and causal


class SessionAdapter(Enum):
    none = "none"
    diagonal = "diagonal"  # a gain and an offset per feature and session
    affine = "affine"  # a full matrix and an offset per session, identity at the start
    projection = "projection"  # the stem's projection differs by session; needs model.stem.projection


class Mixer(Enum):
    mamba = "mamba"  # Mamba-1, selective scan
    mamba2 = "mamba2"  # Mamba-2, SSD


class Activation(Enum):
    """Of a Transformer's MLP."""

    gelu = "gelu"
    swiglu = "swiglu"  # gated; narrower, for the same number of parameters
    sine = "sine"  # A exp(-d |z|) sin(f z), with A, d and f learned by feature


@dataclass(kw_only=True, slots=True)
class StemConfig:
    projection: int | None = None  # project the features to this width before the convolution; null: no projection
    kernel_size: int = 8  # bins that one output frame sees
    stride: int = 4
    channel_gates: bool = True
    input_dropout: float = 0.0
    mask_token: bool = False  # a learned bin stands for those that are all zero, as data.augment.time_masks leaves them


@dataclass(kw_only=True, slots=True)
class EncoderConfig:
    mixer: Mixer = Mixer.mamba2
    n_layers: int = 8
    d_state: int = 64
    d_conv: int = 4
    expand: int = 2
    headdim: int = 64
    bidirectional: bool = False
    dropout: float = 0.1
    drop_path: float = 0.0  # of the last block; grows linearly from zero
    dt_min: float = 0.001
    dt_max: float = 0.1
    dt_bias_shift: float = 0.0  # added to the initial dt bias; +1 shortens the memory
    gradient_checkpointing: bool = False


@dataclass(kw_only=True, slots=True)
class ModeConfig:
    n_modes: int = 2
    hidden: int = 128


@dataclass(kw_only=True, slots=True)
class DenoiserConfig:
    n_steps: int = 4
    hidden: int = 512
    corruption_std: float = (
        0.5  # extra input noise on the side that the bridge starts from, in feature standard deviations
    )


@dataclass(kw_only=True, slots=True)
class HeadsConfig:
    predictor_context: int = 2  # phonemes that the stateless predictor sees
    predictor_dropout: float = 0.2
    d_joint: int = 256


@dataclass(kw_only=True, slots=True)
class GruConfig:
    """The GRU of `model.kind=gru`."""

    session_layers: bool = True  # an affine map and softsign of each session's own
    patch_size: int = 14  # bins that one frame sees
    patch_stride: int = 4
    hidden: int = 768
    n_layers: int = 5
    dropout: float = 0.4
    input_dropout: float = 0.2


@dataclass(kw_only=True, slots=True)
class TransformerConfig:
    """The Transformer of `model.kind=transformer`."""

    session_layers: bool = False  # an affine map and softsign of each session's own
    patch_size: int = 4  # bins of a frame
    d_model: int = 384
    n_layers: int = 5
    n_heads: int = 6
    head_dim: int = 64
    mlp_ratio: int = 4
    max_distance: int = 200  # frames; a bias of its own for every shorter distance
    dropout: float = 0.35
    input_dropout: float = 0.2
    time_masks: int = 20  # stretches of a training trial that are replaced by a learned patch
    time_mask_max_fraction: float = 0.05  # each at most this part of the trial


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    kind: ModelKind = ModelKind.mode_ssm  # the other two have a section of their own; all else is MODE_SSM's
    d_model: int = 512
    session_adapter: SessionAdapter = SessionAdapter.affine
    session_dropout: float = 0.0  # chance that a training trial is adapted by the mean of all sessions
    stem: StemConfig = field(default_factory=StemConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    mode: ModeConfig = field(default_factory=ModeConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    gru: GruConfig = field(default_factory=GruConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)


@dataclass(kw_only=True, slots=True)
class LanguageModelConfig:
    """The Transformer over words of `task=language_model`."""

    vocabulary_size: int = 20000  # most frequent words, which are one token; all others are spelled
    frequent_tokens: int = 4096  # told apart by a first softmax; rarer ones by a second one behind it, where they occur
    d_model: int = 256
    n_layers: int = 4
    n_heads: int = 4
    d_hidden: int = 1024  # of the MLP; SwiGLU's is 2/3 of it, for the same number of parameters
    activation: Activation = Activation.gelu
    dropout: float = 0.1
    context: int = 128  # tokens that one token sees, itself included
