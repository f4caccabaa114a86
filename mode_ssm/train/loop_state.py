"""Where a run stands and what it returns, as plain values that travel through state.json."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(kw_only=True, slots=True)
class PhaseResult:
    """A phase that has ended. `before` holds the metrics at the end of the phase before it, None for the first."""

    phase: str
    steps: int
    before: dict[str, float] | None
    after: dict[str, float]
    stopped_early: str | None = None


@dataclass(kw_only=True, slots=True)
class LoopState:
    """Everything the loop knows beside parameters, optimizer and generators.

    `step` counts optimizer steps as planned: a phase that ends early leaves a gap, so that the schedule and the next
    phases stay where the plan has them. `phase_index` and `step_in_phase` say what comes next.
    """

    step: int = 0
    phase_index: int = 0
    step_in_phase: int = 0
    best_step: int | None = None
    best_metrics: dict[str, float] | None = None
    phase_best: float | None = None  # best metric within this phase, for its patience
    evaluations_without_better: int = 0
    history: list[PhaseResult] = field(default_factory=list)
    seconds: float = 0.0
    finished: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LoopState":
        return cls(**{**values, "history": [PhaseResult(**result) for result in values["history"]]})

    def take_evaluation(self, metrics: dict[str, float], metric: str, higher_is_better: bool) -> bool:
        """Count an evaluation at the present step; True if it is the best of the run. A NaN is never better."""
        value = metrics[metric]
        if _better(value, self.phase_best, higher_is_better):
            self.phase_best, self.evaluations_without_better = value, 0
        else:
            self.evaluations_without_better += 1
        best = None if self.best_metrics is None else self.best_metrics[metric]
        if not _better(value, best, higher_is_better):
            return False
        self.best_step, self.best_metrics = self.step, metrics
        return True

    def end_phase(self, phase: str, steps: int, metrics: dict[str, float], stopped_early: str | None) -> None:
        before = self.history[-1].after if self.history else None
        self.history.append(
            PhaseResult(phase=phase, steps=steps, before=before, after=metrics, stopped_early=stopped_early)
        )
        self.phase_index += 1
        self.step_in_phase = 0
        self.phase_best, self.evaluations_without_better = None, 0


def _better(value: float, than: float | None, higher_is_better: bool) -> bool:
    if than is None:
        return value == value
    return value > than if higher_is_better else value < than


@dataclass(frozen=True, kw_only=True, slots=True)
class FitResult:
    """A finished run. `best_checkpoint` is the folder that `best` names, `last_checkpoint` the state at the end."""

    best_checkpoint: Path
    best_metrics: dict[str, float]
    last_checkpoint: Path
    history: tuple[PhaseResult, ...]
    seconds: float  # of training and evaluation, over all starts of the run

    @property
    def stopped_early(self) -> str | None:
        """Why phases ended before their last step, None if none did."""
        reasons = [f"{result.phase}: {result.stopped_early}" for result in self.history if result.stopped_early]
        return "; ".join(reasons) or None
