"""From the phases of a config to a plan in optimizer steps."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from mode_ssm.config import CurriculumConfig, LrMultipliers, PhaseConfig
from mode_ssm.tasks.task import ResumableLoader


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedPhase:
    """A phase with its place in the run.

    Its batches are numbers 0, 1, ... of an endless stream: batch i is batch i % steps_per_epoch of epoch
    start_epoch + i // steps_per_epoch. A phase starts at an epoch of its own, so that it draws an order of its own.
    """

    index: int
    name: str
    config: PhaseConfig
    steps: int  # optimizer steps
    epochs: float  # the same in passes over the data
    start_step: int  # optimizer steps planned before it
    start_epoch: int
    steps_per_epoch: int  # batches of one rank
    evaluate_every: int | None  # optimizer steps; None: at the end only


def check_curriculum(curriculum: CurriculumConfig, module_names: Iterable[str]) -> None:
    """Raise one `ValueError` with every fault of the phases; needs the names of the model's modules, not its data."""
    known = list(module_names)
    faults: list[str] = []
    if not curriculum.phases:
        faults.append("curriculum.phases is empty: name at least one phase")
    for name, phase in curriculum.phases.items():
        faults += [f"curriculum.phases.{name}.{fault}" for fault in _faults(phase, known)]
    if faults:
        raise ValueError("; ".join(faults))


def _faults(phase: PhaseConfig, known: Sequence[str]) -> list[str]:
    faults: list[str] = []
    if phase.epochs is None and phase.steps is None:
        faults.append("epochs: set epochs or steps")
    elif phase.epochs is not None and phase.steps is not None:
        faults.append(f"epochs={phase.epochs} and steps={phase.steps}: set one of them, the other to null")
    elif (phase.epochs if phase.steps is None else phase.steps) <= 0:  # type: ignore[operator]
        key = "epochs" if phase.steps is None else "steps"
        faults.append(f"{key}={getattr(phase, key)} must be above 0")
    if not phase.train:
        faults.append(f"train is empty: name at least one of {', '.join(known)}")
    for module in phase.train:
        if module not in known:
            near = get_close_matches(module, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "there are"
            faults.append(f"train names {module}, which the model lacks; {hint} ({', '.join(known)})")
        elif not getattr(phase.lr_multipliers, module) > 0:
            value = getattr(phase.lr_multipliers, module)
            faults.append(f"lr_multipliers.{module}={value} must be above 0; to freeze it, leave it out of train")
    if len(set(phase.train)) < len(phase.train):
        faults.append(f"train names a module twice: {', '.join(phase.train)}")
    weights = {f.name: getattr(phase.loss, f.name) for f in fields(phase.loss)}
    faults += [f"loss.{term}={w} must be a number of 0 or more" for term, w in weights.items() if not 0 <= w < math.inf]
    if not any(weights.values()):
        faults.append(f"loss has no term above 0; terms: {', '.join(weights)}")
    if phase.evaluate_every_epochs is not None and phase.evaluate_every_epochs <= 0:
        faults.append(f"evaluate_every_epochs={phase.evaluate_every_epochs} must be above 0, or null for the end only")
    if phase.patience is not None and phase.patience < 1:
        faults.append(f"patience={phase.patience} must be 1 or more, or null")
    if phase.patience is not None and phase.evaluate_every_epochs is None:
        faults.append(f"patience={phase.patience} needs evaluate_every_epochs, which is null")
    return faults


def resolve_curriculum(
    curriculum: CurriculumConfig, steps_per_epoch: Sequence[int], accumulation: int
) -> list[ResolvedPhase]:
    """The plan. `steps_per_epoch` holds the batches of one rank by phase, `accumulation` is batches an optimizer step.

    Epochs become the nearest whole number of optimizer steps, at least one.
    """
    if accumulation < 1:
        raise ValueError(f"optim.accumulation={accumulation} must be 1 or more")
    phases: list[ResolvedPhase] = []
    start_step = start_epoch = 0
    for index, ((name, config), per_epoch) in enumerate(zip(curriculum.phases.items(), steps_per_epoch, strict=True)):
        if per_epoch < 1:
            raise ValueError(f"curriculum.phases.{name}: the training data does not fill one batch a process")
        if config.steps is not None:
            steps = config.steps
        else:
            assert config.epochs is not None
            steps = _to_steps(config.epochs, per_epoch, accumulation)
        every = config.evaluate_every_epochs
        phases.append(
            ResolvedPhase(
                index=index,
                name=name,
                config=config,
                steps=steps,
                epochs=steps * accumulation / per_epoch,
                start_step=start_step,
                start_epoch=start_epoch,
                steps_per_epoch=per_epoch,
                evaluate_every=None if every is None else _to_steps(every, per_epoch, accumulation),
            )
        )
        start_step += steps
        start_epoch += math.ceil(steps * accumulation / per_epoch)
    return phases


def _to_steps(epochs: float, steps_per_epoch: int, accumulation: int) -> int:
    return max(1, round(epochs * steps_per_epoch / accumulation))


def batch_position(plan: ResolvedPhase, number: int) -> tuple[int, int]:
    """(epoch, batch in epoch) of batch `number` of a phase."""
    epochs, batch = divmod(number, plan.steps_per_epoch)
    return plan.start_epoch + epochs, batch


def batch_stream(loader: ResumableLoader, plan: ResolvedPhase, number: int) -> Iterator[Any]:
    """Batches `number`, `number` + 1, ... of a phase without end, epoch after epoch."""
    epoch, start_batch = batch_position(plan, number)
    while True:
        yield from loader.epoch(epoch, start_batch)
        epoch, start_batch = epoch + 1, 0


def check_modules_have_multipliers(module_names: Iterable[str]) -> None:
    """Every module of a task needs its field in `LrMultipliers`."""
    lacking = set(module_names) - {f.name for f in fields(LrMultipliers)}
    assert not lacking, f"LrMultipliers lacks fields for: {', '.join(sorted(lacking))}"
