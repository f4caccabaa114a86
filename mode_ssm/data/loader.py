"""From trial lists to batches, ahead of the consumer: a background thread, or worker processes.

Batches are pure functions of (seed, epoch, position): neither the number of workers nor an interruption changes them.
"""

import functools
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from mode_ssm.data.batch import Batch, TrialInfo, collate
from mode_ssm.data.batch_memory import BatchMemory
from mode_ssm.data.brain2text import Brain2TextDataset, FeatureCache, Transform
from mode_ssm.data.sampler import BucketSampler

PREFETCHED_BATCHES = 2
SHUFFLE_REACH = 16  # places in the order of length that labels move at most, but for repeated sentences

Item = TypeVar("Item")


class TrialLoader:
    """Training batches, resumable at any position (a `ResumableLoader`)."""

    def __init__(
        self,
        trials: Sequence[TrialInfo],
        transform: Transform,
        session_index: dict[str, int],
        sampler: BucketSampler,
        *,
        num_workers: int = 0,
        cache: FeatureCache | None = None,
        label_sources: Sequence[TrialInfo] | None = None,
    ) -> None:
        self.dataset = Brain2TextDataset(trials, transform, cache=cache, label_sources=label_sources)
        self.session_index = session_index
        self.sampler = sampler
        self.num_workers = num_workers
        self.steps_per_epoch = sampler.steps_per_epoch
        self._memory = _new_memory()

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Batches `start_batch`.. of `epoch` on this rank. Stopping early is fine; close or drop the iterator."""
        if not 0 <= start_batch <= self.steps_per_epoch:
            raise ValueError(f"start_batch={start_batch} must lie in 0..{self.steps_per_epoch}")
        schedule = self.sampler.batches(epoch)[start_batch:]
        return _batches(self.dataset, schedule, epoch, self.session_index, self.num_workers, self._memory)


def eval_batches(
    trials: Sequence[TrialInfo],
    transform: Transform,
    session_index: dict[str, int],
    batch_size: int,
    *,
    num_workers: int = 0,
    cache: FeatureCache | None = None,
) -> Iterator[Batch]:
    """Every trial once, longest first, ceil(len(trials) / batch_size) batches; `Batch.trials` says which is which."""
    if batch_size < 1:
        raise ValueError(f"data.eval_batch_size={batch_size} must be at least 1")
    order = sorted(range(len(trials)), key=lambda i: (-trials[i].num_bins, trials[i].name))
    schedule = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    dataset = Brain2TextDataset(trials, transform, cache=cache)
    return _batches(dataset, schedule, 0, session_index, num_workers, _new_memory())


def shuffled_labels(trials: Sequence[TrialInfo], seed: int) -> list[TrialInfo]:
    """For every trial another one, each used once, whose labels it shall carry: a control that should learn nothing.

    Labels go to recordings with about as many phonemes, so that CTC stays feasible, and never to one of the same
    sentence. Raises `ValueError` if there are no labels, or if sentences repeat too often for that.
    """
    if any(trial.num_phonemes is None for trial in trials):
        raise ValueError("data.shuffle_labels needs a split with labels")
    ordered = sorted(trials, key=lambda trial: (trial.num_phonemes or 0, trial.num_bins, trial.name))
    rng = np.random.default_rng(seed)
    dealt = [ordered[place] for place in np.argsort(np.arange(len(ordered)) + SHUFFLE_REACH * rng.random(len(ordered)))]
    for here, target in enumerate(ordered):
        if dealt[here].sentence == target.sentence:
            there = _nearest_exchange(ordered, dealt, here)
            dealt[here], dealt[there] = dealt[there], dealt[here]
    source = {target.name: label for target, label in zip(ordered, dealt, strict=True)}
    return [source[trial.name] for trial in trials]


def _nearest_exchange(ordered: list[TrialInfo], dealt: list[TrialInfo], here: int) -> int:
    """The nearest place whose label fits here while this one's fits there."""
    for distance in range(1, len(ordered)):
        for there in (here - distance, here + distance):
            if (
                0 <= there < len(ordered)
                and dealt[there].sentence != ordered[here].sentence
                and dealt[here].sentence != ordered[there].sentence
            ):
                return there
    raise ValueError(
        f"data.shuffle_labels: too many recordings say {ordered[here].sentence!r} to give each another sentence"
    )


def _new_memory() -> BatchMemory:
    return BatchMemory(keep=PREFETCHED_BATCHES + 2)  # beside those ahead, one that is built and one that is used


def _batches(
    dataset: Brain2TextDataset,
    schedule: list[list[int]],
    epoch: int,
    session_index: dict[str, int],
    num_workers: int,
    memory: BatchMemory,
) -> Iterator[Batch]:
    if num_workers == 0:
        return _prefetched(functools.partial(_build, dataset, epoch, session_index, memory), schedule)
    dataset.fill_cache()
    return _from_workers(functools.partial(_build, dataset, epoch, session_index, _new_memory()), schedule, num_workers)


def _build(
    dataset: Brain2TextDataset, epoch: int, session_index: dict[str, int], memory: BatchMemory, indices: list[int]
) -> Batch:
    """Recordings are read to where they stay, and transforms that change nothing cost nothing."""
    lengths = [dataset.trials[index].num_bins for index in indices]
    features = memory.take(len(indices), max(lengths), dataset.feature_dim)
    rows = features.numpy()
    trials = [dataset.at(index, epoch, rows[row, : lengths[row]]) for row, index in enumerate(indices)]
    return collate(trials, session_index, features)


class _Scheduled:
    """Map-style view of a schedule for worker processes: one item is one collated batch."""

    def __init__(self, build: Callable[[list[int]], Batch], schedule: list[list[int]]) -> None:
        self.build = build
        self.schedule = schedule

    def __len__(self) -> int:
        return len(self.schedule)

    def __getitem__(self, index: int) -> Batch:
        return self.build(self.schedule[index])


def _from_workers(build: Callable[[list[int]], Batch], schedule: list[list[int]], num_workers: int) -> Iterator[Batch]:
    # A generator of its own: DataLoader draws a seed at every start, which would move the run's global RNG.
    yield from DataLoader(
        _Scheduled(build, schedule),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=min(num_workers, os.cpu_count() or 1),  # batches do not depend on it; torch warns of more
        generator=torch.Generator(),
    )


def _prefetched(build: Callable[[list[int]], Item], schedule: list[list[int]]) -> Iterator[Item]:
    """build(item) for every item of the schedule, computed by a thread at most PREFETCHED_BATCHES ahead."""
    ready: queue.SimpleQueue[Item | BaseException] = queue.SimpleQueue()
    room = threading.Semaphore(PREFETCHED_BATCHES)
    stopped = threading.Event()

    def work() -> None:
        for indices in schedule:
            room.acquire()
            if stopped.is_set():
                return
            try:
                ready.put(build(indices))
            except BaseException as error:  # handed over: the consumer raises it
                ready.put(error)
                return

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        for _ in schedule:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            room.release()
            yield item
    finally:
        stopped.set()
        room.release()
        thread.join()
