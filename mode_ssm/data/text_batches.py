"""Batches of tokenised sentences of like length, about equally many tokens in each; little of a batch is padding.

Sentences are sorted by length, equal ones in an order of the epoch's own, and cut into batches; the order of batches is
drawn. Where the cuts fall depends on lengths alone: every epoch has as many batches. Ranks see similar lengths at the
same step.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TextBatch:
    """tokens (B, T) int64, padded with zeros at the end; lengths (B,) int64."""

    tokens: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device | str) -> "TextBatch":
        return TextBatch(self.tokens.to(device, non_blocking=True), self.lengths.to(device, non_blocking=True))


def text_batch(tokens: np.ndarray, starts: np.ndarray, rows: np.ndarray) -> TextBatch:
    """The sentences `rows` of a text: tokens (n,), sentence i from starts[i] to starts[i + 1]."""
    lengths = starts[rows + 1] - starts[rows]
    places = np.arange(int(lengths.max()))
    inside = places < lengths[:, None]
    padded = np.where(inside, tokens[np.where(inside, starts[rows][:, None] + places, 0)], 0)
    return TextBatch(torch.from_numpy(padded.astype(np.int64)), torch.from_numpy(lengths.astype(np.int64)))


def length_sorted_batches(tokens: np.ndarray, starts: np.ndarray, tokens_per_batch: int) -> Iterator[TextBatch]:
    """Every sentence once, shortest first: for evaluation."""
    lengths = np.diff(starts)
    order = np.argsort(lengths, kind="stable")
    for rows in _cut(order, lengths, tokens_per_batch, 1):
        yield text_batch(tokens, starts, rows)


class TextLoader:
    """Training batches of one rank (a `ResumableLoader`): every sentence comes once an epoch, on one rank."""

    def __init__(
        self,
        tokens: np.ndarray,
        starts: np.ndarray,
        tokens_per_batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(starts) - 1 < world_size:
            raise ValueError(f"text.train holds {len(starts) - 1} sentences, fewer than the {world_size} processes")
        self.tokens, self.starts = tokens, starts
        self.tokens_per_batch, self.seed, self.rank, self.world_size = tokens_per_batch, seed, rank, world_size
        self.lengths = np.diff(starts)
        batches = _cut(np.argsort(self.lengths, kind="stable"), self.lengths, tokens_per_batch, world_size)
        self.steps_per_epoch = len(batches) // world_size

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[TextBatch]:
        """Batches `start_batch`.. of `epoch`: a pure function of (seed, epoch, rank)."""
        if not 0 <= start_batch <= self.steps_per_epoch:
            raise ValueError(f"start_batch={start_batch} must lie in 0..{self.steps_per_epoch}")
        rng = np.random.default_rng((self.seed, epoch))
        shuffled = rng.permutation(len(self.lengths))
        order = shuffled[np.argsort(self.lengths[shuffled], kind="stable")]
        batches = _cut(order, self.lengths, self.tokens_per_batch, self.world_size)
        for step in rng.permutation(self.steps_per_epoch)[start_batch:]:
            yield text_batch(self.tokens, self.starts, batches[step * self.world_size + self.rank])


def _cut(order: np.ndarray, lengths: np.ndarray, tokens_per_batch: int, multiple: int) -> list[np.ndarray]:
    """`order` in consecutive parts of about `tokens_per_batch` tokens; their number is divisible by `multiple`."""
    ends = np.cumsum(lengths[order])
    number = math.ceil(ends[-1] / (tokens_per_batch * multiple)) * multiple
    number = min(number, len(order) // multiple * multiple)
    least = np.arange(1, number)  # sentences before each cut, so that no part is empty
    cuts = np.searchsorted(ends, ends[-1] * least / number)
    cuts = least + np.clip(np.maximum.accumulate(cuts - least), 0, len(order) - number)
    return np.split(order, cuts)
