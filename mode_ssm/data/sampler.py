"""Which trials share a batch: session-balanced, of similar length, deterministic, disjoint over ranks.

A session's trials are cut into chunks of similar length, B/S trials each. An epoch deals the chunks out so that every
session is spread evenly over it; within a short window of batches, chunks of similar length are put together, S to a
batch. A batch therefore mixes at most S sessions, is nearly uniform in length, and no session comes in a run.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from mode_ssm.data.batch import TrialInfo

WINDOW_STEPS = 8  # lengths are matched within so many steps: more saves padding, fewer spreads sessions more evenly
LENGTH_JITTER = 0.05  # relative; lets the company of a trial change from epoch to epoch


class BucketSampler:
    """Batches of one rank as lists of indices into `trials`.

    Every trial comes once an epoch, on one rank. All ranks have the same number of batches, equal in every epoch, and
    at the same step ranks see similar lengths. Batches hold at most `batch_size` trials of at most
    `sessions_per_batch` sessions; they are smaller where a session does not divide evenly, or `batch_size` by
    `sessions_per_batch`. Trials come more than once only where there are fewer of them than batches on all ranks.
    """

    def __init__(
        self,
        trials: Sequence[TrialInfo],
        batch_size: int,
        sessions_per_batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not trials:
            raise ValueError("the sampler got no trial; is the train split of data.root empty?")
        for key, value in (("batch_size", batch_size), ("sessions_per_batch", sessions_per_batch)):
            if value < 1:
                raise ValueError(f"data.{key}={value} must be at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} must lie in 0..{world_size - 1}")
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.lengths = np.array([trial.num_bins for trial in trials], np.float64)
        sessions: dict[str, list[int]] = {}
        for index, trial in enumerate(trials):
            sessions.setdefault(trial.session, []).append(index)
        self.members = [np.array(sessions[name]) for name in sorted(sessions)]
        chunks_per_batch = min(sessions_per_batch, batch_size)
        self.chunk_size = batch_size // chunks_per_batch
        num_chunks = sum(math.ceil(len(members) / self.chunk_size) for members in self.members)
        self.steps_per_epoch = math.ceil(num_chunks / (chunks_per_batch * world_size))

    def batches(self, epoch: int) -> list[list[int]]:
        """This rank's batches of `epoch`: a pure function of (seed, epoch, rank)."""
        rng = np.random.default_rng((self.seed, epoch))
        num_batches = self.steps_per_epoch * self.world_size
        chunks = _at_least(num_batches, self._spread(rng))
        windows = np.array_split(np.arange(self.steps_per_epoch), math.ceil(self.steps_per_epoch / WINDOW_STEPS))
        # Batch sizes in chunks differ by at most one; `ends` says how many chunks are used up after each batch.
        ends = (np.arange(num_batches + 1) * len(chunks)) // num_batches
        mine: list[list[int]] = []
        for steps in windows:
            first, last = steps[0] * self.world_size, (steps[-1] + 1) * self.world_size
            pool = sorted(chunks[ends[first] : ends[last]], key=lambda chunk: float(self.lengths[chunk].mean()))
            groups = ends[first : last + 1] - ends[first]
            batches = [np.concatenate(pool[a:b]).tolist() for a, b in itertools.pairwise(groups)]
            for step in rng.permutation(len(steps)):
                alike = batches[step * self.world_size : (step + 1) * self.world_size]
                mine.append(alike[rng.permutation(self.world_size)[self.rank]])
        return mine

    def _spread(self, rng: np.random.Generator) -> list[np.ndarray]:
        """All chunks of an epoch, those of a session at even distances from each other."""
        timed: list[tuple[float, int, np.ndarray]] = []
        for members in self.members:
            jittered = self.lengths[members] * (1.0 + LENGTH_JITTER * rng.standard_normal(len(members)))
            chunks = np.array_split(members[np.argsort(jittered)], math.ceil(len(members) / self.chunk_size))
            times = (np.arange(len(chunks)) + rng.random()) / len(chunks)
            for time, place in zip(times, rng.permutation(len(chunks)), strict=True):
                timed.append((time, len(timed), chunks[place]))
        return [chunk for _, _, chunk in sorted(timed, key=lambda item: item[:2])]


def _at_least(number: int, chunks: list[np.ndarray]) -> list[np.ndarray]:
    """Every batch needs a chunk: halve the largest ones while there are too few, then repeat single trials."""
    chunks = list(chunks)
    while len(chunks) < number:
        largest = max(range(len(chunks)), key=lambda i: len(chunks[i]))
        if len(chunks[largest]) == 1:
            return [chunks[i % len(chunks)] for i in range(number)]
        chunks[largest : largest + 1] = np.array_split(chunks[largest], 2)
    return chunks
