"""The typed schema of everything in `configs/`.

A leaf: imports nothing from the package. YAML holds values, these dataclasses hold names, types, meanings and defaults.
`slots=True` makes an unknown key an error instead of an attribute; enumerations make an unknown choice one.
"""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING


class TaskName(Enum):
    transcription = "transcription"
    language_model = "language_model"


class OnBadTrial(Enum):
    """What to do with a recording that breaks the format."""

    stop = "stop"
    skip = "skip"


class ModelKind(Enum):
    """Which model turns features into phonemes."""

    mode_ssm = "mode_ssm"
    gru = "gru"  # the benchmark's own baseline
    transformer = "transformer"  # time-masked and causal


class WordSearch(Enum):
    """The head whose output words are searched in."""

    ctc = "ctc"
    rnnt = "rnnt"


class Smoothing(Enum):
    none = "none"
    symmetric = "symmetric"  # as the official pipeline: sees the future by half a kernel
    causal = "causal"


class Normalisation(Enum):
    """What is done to recorded features first of all."""

    released = "released"  # nothing: the benchmark's are z-scored by whole blocks, which no online decoder can know
    session = "session"  # mean and spread of the session's training trials; of all sessions where it has none
    rolling = "rolling"  # mean and spread of the block's past rolling_seconds, of the training split before them


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


class CorpusEvidence(Enum):
    """Which sentences tell the corpus of one; it is always among them."""

    sentence = "sentence"  # it alone
    block = "block"  # all of its block
    past = "past"  # those of its block up to it, as in live use


class CorpusPass(Enum):
    """What the language models of `lm.corpora` do after the first pass."""

    search = "search"  # that of the most probable corpus searches again
    rescore = "rescore"  # their mixture ranks what the first pass found


class TuneMethod(Enum):
    grid = "grid"  # all combinations, then finer around the best
    optuna = "optuna"  # with the sweep extra


class LrSchedule(Enum):
    """What the learning rate does after the warm-up."""

    cosine = "cosine"  # down to min_lr_ratio at the end
    step = "step"  # constant, then min_lr_ratio of it from step_at on


class LossNormaliser(Enum):
    """What the sums of CTC and transducer are divided by."""

    phonemes = "phonemes"
    trials = "trials"  # gradients are as many times larger as a trial has phonemes: matters where optim.eps is large


class ScheduleScope(Enum):
    run = "run"  # one warm-up and one cosine over all phases
    phase = "phase"  # a warm-up and a cosine in every phase


@dataclass(kw_only=True, slots=True)
class TaskConfig:
    name: TaskName = TaskName.transcription


@dataclass(kw_only=True, slots=True)
class AugmentConfig:
    """Applied to training trials only; each is a pure function of (seed, epoch, trial).

    Cut, shift and warp come first, then gain, offset, noise and walk; smoothing follows, and last what becomes zero.
    """

    random_cut_bins: int = 0  # drop up to this many bins at the start
    time_shift_bins: int = 0  # begin up to this many bins later, with zeros in front, or earlier, with bins dropped
    time_warp: float = 0.0  # largest relative change of local speed
    static_gain: float = 0.0  # every feature times a constant of the trial, from 1 - this to 1 + this
    constant_offset_std: float = 0.0  # per feature, constant over the trial
    white_noise_std: float = 0.0  # per bin and feature
    random_walk_std: float = 0.0  # of a step from bin to bin, a walk for each feature
    electrode_dropout: float = 0.0  # chance of each electrode to be silent in a trial, with both its features
    array_dropout: float = 0.0  # chance that one of the arrays of 64 electrodes is silent in a trial
    feature_masks: int = 0  # how many bands of neighbouring features are silent in a trial
    feature_mask_max_fraction: float = 0.05  # each at most this part of the features
    time_masks: int = 0  # how many stretches become zero, or model.stem.mask_token
    time_mask_max_fraction: float = 0.05  # each at most this part of the trial


@dataclass(kw_only=True, slots=True)
class SimulateConfig:
    """The simulated dataset that is written to `data.root` when nothing is there."""

    enabled: bool = False
    scale: str = "small"  # tiny, small, medium (45 sessions, 1,100 trials) or full (10,948 trials, about 20 GB)
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
    normalisation: Normalisation = Normalisation.released
    rolling_seconds: float = 60.0  # that normalisation=rolling looks back
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


@dataclass(kw_only=True, slots=True)
class TextConfig:
    """What a language model learns from."""

    train: list[str] = field(default_factory=list)  # text files, one sentence a line
    valid: list[str] = field(default_factory=list)  # held-out ones, which pick the best checkpoint
    tokens_per_batch: int = 2048  # of one rank, about


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """AdamW with decoupled decay, a schedule with warm-up."""

    lr: float = 2e-4
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.05
    warmup_steps: int = 5000
    schedule: LrSchedule = LrSchedule.cosine
    min_lr_ratio: float = 0.0  # of lr, where the schedule ends
    step_at: float = 0.6  # part of the run after which schedule=step falls
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
    cross_entropy: float = 0.0  # of the next token of text


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
    language_model: float = 1.0


@dataclass(kw_only=True, slots=True)
class PhaseConfig:
    epochs: float | None = None  # exactly one of epochs and steps
    steps: int | None = None
    train: list[str] = MISSING  # modules whose parameters move; all others are frozen
    loss: LossWeights = field(default_factory=LossWeights)
    normaliser: LossNormaliser = LossNormaliser.phonemes
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
    neural: str | None = None  # a second language model: a checkpoint of task=language_model, or hf:<name or folder>
    neural_weight: float = 0.5  # its part of the language model score
    corpora: list[str] = field(
        default_factory=list
    )  # a text (.txt) or model for each corpus that sentences may be of: words are decoded in two passes
    corpus_evidence: CorpusEvidence = CorpusEvidence.block
    corpus_purity: float = 0.95  # part of a block's sentences that are of the block's corpus
    corpus_pass: CorpusPass = CorpusPass.search


@dataclass(kw_only=True, slots=True)
class DecodeConfig:
    search: WordSearch = WordSearch.ctc
    beam_size: int = 100
    nbest: int = 10
    acoustic_scale: float = 1.0
    lm_scale: float = 1.0
    word_bonus: float = 0.0  # natural-log units added for each word
    blank_penalty: float = 0.0  # taken off the blank's log-probability
    silence_score: float = 0.0  # added to the log-probability of every silence between words
    beam_threshold: float | None = None  # drop hypotheses this far below the best; null: keep beam_size of them
    fusion_every: int = 15  # frames between turns of lm.neural in the search; 0: at the end of a sentence only
    ctc_weight: float = 0.5  # of CTC in the joint decision on phonemes; the transducer has the rest
    rnnt_beam_size: int = 4
    rnnt_max_symbols: int = 4  # symbols that one frame may emit
    ilm_scale: float = 0.0  # of the transducer's internal language model, taken off its labels in the word search


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
    language_model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    text: TextConfig = field(default_factory=TextConfig)
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


@dataclass(kw_only=True, slots=True)
class TuneAxes:
    """Values that the grid begins with; Optuna draws between the smallest and the largest. One value is a fixed one."""

    acoustic_scale: list[float] = field(default_factory=lambda: [0.25, 0.4, 0.6, 0.9, 1.3])
    word_bonus: list[float] = field(default_factory=lambda: [-1.0, 0.0, 1.0])
    blank_penalty: list[float] = field(default_factory=lambda: [0.0, 1.0, 2.0, 4.0])
    neural_weight: list[float] = field(  # of the second language model, where there is one
        default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0]
    )


@dataclass(kw_only=True, slots=True)
class TuneConfig:
    """Root of `configs/tune.yaml`."""

    checkpoint: str = MISSING
    split: str = "val"
    method: TuneMethod = TuneMethod.grid
    refinements: int = 2  # of the grid: rounds that halve the distance to the neighbours of the best
    trials: int = 100  # of optuna
    axes: TuneAxes = field(default_factory=TuneAxes)
    processes: int = 0  # 0: all cores
    output: str | None = None  # folder for tune.json, tune.html, heatmap.png, decode.yaml; null: <run>/tune_<split>


@dataclass(kw_only=True, slots=True)
class CompareConfig:
    """Root of `configs/compare.yaml`. Every other key or group is given to all trainings."""

    experiments: list[str] = MISSING  # rows of the table; differences are to the first
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    name: str = "comparison"  # everything lies in runs/<name>
    settings: dict[str, list[str]] = field(
        default_factory=dict
    )  # of one row, {row: ["key=value", ...]}; a row that is no experiment names its own, "experiment=sim_mode_ssm"
    tune_lr: dict[str, list[float]] = field(
        default_factory=dict
    )  # {row: learning rates}, each trained with the first seed; the best PER on val has the other seeds too
    processes: int = 1  # trainings at the same time; give parallel.threads with more than one
    samples: int = 1000  # of the bootstrap


# Sections of the training config that evaluation and submission may override.
OVERRIDABLE_SECTIONS = ("data", "text", "lm", "decode", "adapt", "parallel", "logging")
