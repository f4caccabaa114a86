"""The typed schema of everything in `configs/`.

A leaf: imports nothing from the package. YAML holds values, these dataclasses hold names, types, meanings and defaults.
`slots=True` makes an unknown key an error instead of an attribute; enumerations make an unknown choice one.
"""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING


class TaskName(Enum):
    transcription = "transcription"


class OnBadTrial(Enum):
    """What to do with a recording that breaks the format."""

    stop = "stop"
    skip = "skip"


class Smoothing(Enum):
    none = "none"
    symmetric = "symmetric"  # as the official pipeline: sees the future by half a kernel
    causal = "causal"


class SessionAdapter(Enum):
    none = "none"
    diagonal = "diagonal"  # a gain and an offset per feature and session
    affine = "affine"  # a full matrix and an offset per session, identity at the start
    projection = "projection"  # the stem's projection differs by session; needs model.stem.projection


class Mixer(Enum):
    mamba = "mamba"  # Mamba-1, selective scan
    mamba2 = "mamba2"  # Mamba-2, SSD


class MatmulPrecision(Enum):
    """`torch.set_float32_matmul_precision`; `auto` measures whether "medium" is exact and faster on this CPU."""

    auto = "auto"
    highest = "highest"
    high = "high"
    medium = "medium"


class Precision(Enum):
    auto = "auto"  # bf16 on a GPU that has it, else fp32
    fp32 = "fp32"
    bf16 = "bf16"


class ScheduleScope(Enum):
    run = "run"  # one warm-up and one cosine over all phases
    phase = "phase"  # a warm-up and a cosine in every phase


@dataclass(kw_only=True, slots=True)
class TaskConfig:
    name: TaskName = TaskName.transcription


@dataclass(kw_only=True, slots=True)
class AugmentConfig:
    """Applied to training trials only; each is a pure function of (seed, epoch, trial)."""

    white_noise_std: float = 0.0  # per bin and feature
    constant_offset_std: float = 0.0  # per feature, constant over the trial
    random_cut_bins: int = 0  # drop up to this many bins at the start
    time_masks: int = 0  # how many stretches are set to zero
    time_mask_max_fraction: float = 0.05  # each at most this part of the trial
    time_warp: float = 0.0  # largest relative change of local speed


@dataclass(kw_only=True, slots=True)
class SimulateConfig:
    """The simulated dataset that is written to `data.root` when nothing is there."""

    enabled: bool = False
    scale: str = "small"
    seed: int = 0


@dataclass(kw_only=True, slots=True)
class DataConfig:
    root: str = MISSING  # the folder that holds one folder a session
    feature_dim: int = 512
    on_bad_trial: OnBadTrial = OnBadTrial.stop
    batch_size: int = 32  # trials in a batch of one rank
    sessions_per_batch: int = 4  # a batch mixes at most this many sessions
    eval_batch_size: int = 32
    num_workers: int = 0
    cache_features: bool = False  # keep raw features in memory after the first read
    smoothing: Smoothing = Smoothing.symmetric
    smoothing_std: float = 2.0  # bins
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    simulate: SimulateConfig = field(default_factory=SimulateConfig)
    train_sessions: list[str] | None = None  # null: all
    shuffle_labels: bool = False  # a control: sentences dealt out to the wrong recordings of the training split


@dataclass(kw_only=True, slots=True)
class StemConfig:
    projection: int | None = None  # project the features to this width before the convolution; null: no projection
    kernel_size: int = 8  # bins that one output frame sees
    stride: int = 4
    channel_gates: bool = True
    input_dropout: float = 0.0


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
class ModelConfig:
    d_model: int = 512
    session_adapter: SessionAdapter = SessionAdapter.affine
    session_dropout: float = 0.0  # chance that a training trial is adapted by the mean of all sessions
    stem: StemConfig = field(default_factory=StemConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    mode: ModeConfig = field(default_factory=ModeConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """AdamW with decoupled decay, cosine with warm-up."""

    lr: float = 2e-4
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.05
    warmup_steps: int = 5000
    min_lr_ratio: float = 0.0  # of lr, where the cosine ends
    schedule_scope: ScheduleScope = ScheduleScope.run
    clip_norm: float = 1.0
    accumulation: int = 1  # batches to an optimizer step


@dataclass(kw_only=True, slots=True)
class LossWeights:
    """Weight of every loss term of a phase; a term of weight zero is not computed."""

    ctc: float = 0.0
    rnnt: float = 0.0
    mode_information: float = 0.0  # modes sharp for a trial, balanced over trials
    mode_block: float = 0.0  # one mode to a block
    flow: float = 0.0


@dataclass(kw_only=True, slots=True)
class LrMultipliers:
    """Learning-rate multiplier of every module of the model."""

    preprocessor: float = 1.0
    encoder: float = 1.0
    mode_head: float = 1.0
    denoiser: float = 1.0
    ctc_head: float = 1.0
    predictor: float = 1.0
    joiner: float = 1.0


@dataclass(kw_only=True, slots=True)
class PhaseConfig:
    epochs: float | None = None  # exactly one of epochs and steps
    steps: int | None = None
    train: list[str] = MISSING  # modules whose parameters move; all others are frozen
    loss: LossWeights = field(default_factory=LossWeights)
    lr_multipliers: LrMultipliers = field(default_factory=LrMultipliers)
    evaluate_every_epochs: float | None = None  # null: at the end of the phase only
    patience: int | None = None  # leave the phase after so many evaluations without a better metric


@dataclass(kw_only=True, slots=True)
class CurriculumConfig:
    phases: dict[str, PhaseConfig] = field(default_factory=dict)  # run in the order of the file


@dataclass(kw_only=True, slots=True)
class LmConfig:
    lexicon: str | None = None  # null: lexicon.txt beside the data; without one only phonemes are decoded
    guess_missing: bool = False  # guess pronunciations of words of the sentences that the lexicon lacks
    model: str | None = None  # of scripts/train_lm.py, ARPA or KenLM; null: estimated from the sentences and `texts`
    texts: list[str] = field(
        default_factory=list
    )  # further text files, one sentence a line, beside the training sentences
    order: int = 3


@dataclass(kw_only=True, slots=True)
class DecodeConfig:
    beam_size: int = 100
    nbest: int = 10
    acoustic_scale: float = 1.0
    lm_scale: float = 1.0
    word_bonus: float = 0.0  # natural-log units added for each word
    blank_penalty: float = 0.0  # taken off the blank's log-probability
    ctc_weight: float = 0.5  # of CTC in the joint decision on phonemes; the transducer has the rest
    rnnt_beam_size: int = 4
    rnnt_max_symbols: int = 4  # symbols that one frame may emit


@dataclass(kw_only=True, slots=True)
class AdaptConfig:
    """Test-time adaptation of one session at a time, without labels."""

    statistics: bool = True  # map the session's feature statistics onto those of training first
    steps: int = 5
    lr: float = 1e-4
    batch_size: int = 16
    ctc_weight: float = 1.0
    rnnt_weight: float = 0.3


@dataclass(kw_only=True, slots=True)
class ParallelConfig:
    device: str = "auto"  # auto, cpu, cuda
    precision: Precision = Precision.auto
    matmul_precision: MatmulPrecision = MatmulPrecision.auto  # of float32 products
    backend: str = "auto"  # kernels: auto, cpu, torch, triton, mamba-ssm ..., or ssd=torch,selective_scan=cpu-avx2
    threads: int = 0  # CPU threads of a rank; 0: cores divided by ranks
    compile: bool = False


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    every_steps: int = 500
    keep: int = 2  # newest ones kept beside the best
    metric: str | None = None  # picks the best checkpoint; null: the task's choice, val/per_mean of both heads
    higher_is_better: bool = False


@dataclass(kw_only=True, slots=True)
class LoggingConfig:
    progress: bool = True
    tensorboard: bool = True
    every_steps: int = 10


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """Root of `configs/train.yaml`."""

    run_name: str = "quickstart"
    run_dir: str = "runs/${run_name}"
    seed: int = 0
    resume: bool = False
    overwrite: bool = False  # start afresh although the run directory holds a run
    report_test: bool = False  # also report the test split, where its truth lies beside the data
    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    lm: LmConfig = field(default_factory=LmConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """Root of `configs/evaluate.yaml`. The model comes from the checkpoint; sections given here go over its config."""

    checkpoint: str = MISSING
    split: str = "val"
    tta: bool = False
    output: str | None = None  # folder for report.json and report.html; null: <run>/evaluate_<split>[_tta]


@dataclass(kw_only=True, slots=True)
class SubmissionConfig:
    """Root of `configs/submission.yaml`."""

    checkpoint: str = MISSING
    tta: bool = False
    output: str = "submission.csv"


# Sections of the training config that evaluation and submission may override.
OVERRIDABLE_SECTIONS = ("data", "lm", "decode", "adapt", "parallel", "logging")
