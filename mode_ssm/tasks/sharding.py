"""Trials dealt over the processes that decode or measure a split together.

A process gets whole units, trials that are decoded together: batches, or sessions where adaptation works on sessions.
Units do not depend on the number of processes, so neither does what is decoded.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from mode_ssm.data.batch import TrialInfo

T = TypeVar("T")


class Ranks(Protocol):
    """The processes, as `train.distributed.Distributed` is; of one process every method is local."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def cores(self) -> int:
        """CPU cores that are this rank's."""
        ...

    def together(self, function: Callable[[], T]) -> T:
        """Run `function` on every rank; its own result on each, or an error on all."""
        ...

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's `value` in the order of ranks, on every rank."""
        ...


def batch_units(trials: Sequence[TrialInfo], batch_size: int) -> list[list[TrialInfo]]:
    """As `data.loader.eval_batches` cuts them, longest first. It cuts any of these units at the same places again,
    because only the last is smaller than `batch_size`."""
    longest_first = sorted(trials, key=lambda trial: (-trial.num_bins, trial.name))
    return [longest_first[first : first + batch_size] for first in range(0, len(trials), batch_size)]


def session_units(trials: Sequence[TrialInfo]) -> list[list[TrialInfo]]:
    """The trials of each session, in the order of names."""
    sessions = sorted({trial.session for trial in trials})
    return [[trial for trial in trials if trial.session == session] for session in sessions]


def deal(units: Sequence[Sequence[TrialInfo]], world_size: int) -> list[list[TrialInfo]]:
    """The trials of each rank: units with most bins first, each to the rank that has fewest bins so far.

    With more ranks than units some get nothing.
    """
    hands: list[list[TrialInfo]] = [[] for _ in range(world_size)]
    bins = [0] * world_size
    for unit in sorted(units, key=_num_bins, reverse=True):
        rank = bins.index(min(bins))
        hands[rank].extend(unit)
        bins[rank] += _num_bins(unit)
    return hands


def _num_bins(unit: Sequence[TrialInfo]) -> int:
    return sum(trial.num_bins for trial in unit)
