"""The seam between tasks and the trainer: what a task offers, what an objective returns."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from mode_ssm.config import PhaseConfig
from mode_ssm.tasks.sharding import Ranks

LossTerms = dict[str, tuple[Tensor, Tensor]]  # term -> (sum, count), both scalars; the sum carries the gradient


class ResumableLoader(Protocol):
    """Batches of one phase, epoch after epoch. Position is explicit, so that a run can stop anywhere."""

    steps_per_epoch: int  # batches that every rank sees in an epoch; the same on all ranks

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Any]:
        """Batches `start_batch`.. of epoch `epoch`: a pure function of (seed, epoch, rank)."""
        ...


class Objective(nn.Module):
    """Owns the model; `forward` computes a batch's loss terms. DDP wraps it, so that every head passes its hooks."""

    model: nn.Module

    def forward(self, batch: Any) -> LossTerms:
        """{term: (sum, count)} for the terms of non-zero weight."""
        raise TypeError(f"{type(self).__name__} must define forward")

    def counts(self, batch: Any) -> dict[str, float]:
        """{term: count} as `forward` will return it, known before the forward pass, so that the trainer can divide
        by the global count of an accumulated, distributed step."""
        raise TypeError(f"{type(self).__name__} must define counts")


class Task(Protocol):
    select_metric: str  # key of `evaluate` that picks the best checkpoint

    def setup(self) -> None:
        """Read indices, check data, build the model. Called once on every rank."""
        ...

    @property
    def model(self) -> nn.Module: ...

    def modules(self) -> Mapping[str, nn.Module]:
        """Named parts of the model; together they hold every parameter exactly once. `PhaseConfig.train` names them."""
        ...

    def train_loader(self, phase: PhaseConfig, rank: int, world_size: int) -> ResumableLoader: ...

    def objective(self, phase: PhaseConfig) -> Objective: ...

    def loss_weights(self, phase: PhaseConfig) -> dict[str, float]:
        """Non-zero weights by term."""
        ...

    def evaluate(self, ranks: Ranks) -> dict[str, float]:
        """Quick validation metrics, `val/...`. Called on all ranks: each measures a share, and all return the
        figures of the whole. If one fails, all raise."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON-able facts that a checkpoint needs to rebuild the model without the data (session names, ...)."""
        ...
