"""What a task can train, minimise and measure, and whether the phases of a curriculum ask for that."""

import math
from collections.abc import Iterator
from dataclasses import fields

from mode_ssm.config import LossWeights, LrMultipliers, ModelKind, PhaseConfig, TaskName, TrainConfig

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


def curriculum_issues(config: TrainConfig) -> Iterator[str]:
    """A line for everything in the phases that this task and model have not, or that trains nothing."""
    if not config.curriculum.phases:
        yield "curriculum.phases={}: expected at least one phase; choose a curriculum, e.g. curriculum=four_stage"
    if ctc_alone(config) and any(set(p.train) - set(CTC_MODULES) for p in config.curriculum.phases.values()):
        yield (
            f"model.kind={config.model.kind.value}: its parts are {', '.join(CTC_MODULES)}, and the curriculum trains "
            "others; choose one for it, e.g. curriculum=one_stage"
        )
        return
    for name, phase in config.curriculum.phases.items():
        yield from _phase(f"curriculum.phases.{name}", phase, config)


def ctc_alone(config: TrainConfig) -> bool:
    """Whether the model has a CTC head and no other."""
    return config.task.name is TaskName.transcription and config.model.kind is not ModelKind.mode_ssm


def _phase(path: str, phase: PhaseConfig, config: TrainConfig) -> Iterator[str]:
    task = config.task.name
    modules, terms = (CTC_MODULES, CTC_TERMS) if ctc_alone(config) else (MODULES[task], LOSS_TERMS[task])
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
            owner = f"model.kind={config.model.kind.value}" if ctc_alone(config) else f"task={task.value}"
            yield f"{path}.loss.{term}={weight}: {owner} has no such term; expected 0"
    if not any(weights.values()):
        yield f"{path}.loss: every weight is 0; give one to at least one of {', '.join(terms)}"
    for module in (field.name for field in fields(LrMultipliers)):
        multiplier = getattr(phase.lr_multipliers, module)
        if not 0 < multiplier < math.inf:
            yield f"{path}.lr_multipliers.{module}={multiplier}: expected above 0; leave it out of train to freeze it"


def _null(value: float | None) -> str:
    return "null" if value is None else str(value)
