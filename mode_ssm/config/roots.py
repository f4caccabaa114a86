"""What each entry script reads: the files that lie in `configs/` itself."""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from mode_ssm.config.data import DataConfig, TextConfig
from mode_ssm.config.decoding import AdaptConfig, DecodeConfig, LmConfig
from mode_ssm.config.model import LanguageModelConfig, ModelConfig
from mode_ssm.config.training import CheckpointConfig, CurriculumConfig, LoggingConfig, OptimConfig, ParallelConfig


class TaskName(Enum):
    transcription = "transcription"
    language_model = "language_model"


class TuneMethod(Enum):
    grid = "grid"  # all combinations, then finer around the best
    optuna = "optuna"  # with the sweep extra


@dataclass(kw_only=True, slots=True)
class TaskConfig:
    name: TaskName = TaskName.transcription


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


# Sections of the training config that evaluation and submission may override.
OVERRIDABLE_SECTIONS = ("data", "text", "lm", "decode", "adapt", "parallel", "logging")


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
