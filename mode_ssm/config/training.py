"""How a model is trained: optimizer, phases, device, checkpoints, logging."""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING


class LrSchedule(Enum):
    """What the learning rate does after the warm-up."""

    cosine = "cosine"  # down to min_lr_ratio at the end
    step = "step"  # constant, then min_lr_ratio of it from step_at on


class ScheduleScope(Enum):
    run = "run"  # one warm-up and one cosine over all phases
    phase = "phase"  # a warm-up and a cosine in every phase


class LossNormaliser(Enum):
    """What the sums of CTC and transducer are divided by."""

    phonemes = "phonemes"
    trials = "trials"  # gradients are as many times larger as a trial has phonemes: matters where optim.eps is large


class Precision(Enum):
    auto = "auto"  # bf16 on a GPU that has it, else fp32
    fp32 = "fp32"
    bf16 = "bf16"


class MatmulPrecision(Enum):
    """`torch.set_float32_matmul_precision`; `auto` measures whether "medium" is exact and faster on this CPU."""

    auto = "auto"
    highest = "highest"
    high = "high"
    medium = "medium"


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
