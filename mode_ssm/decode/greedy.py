"""Phonemes from CTC log-probabilities without search, and the forced alignment of a known label sequence.

Shapes: B utterances, T frames, V classes, U labels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from torch import Tensor

from mode_ssm.vocab import BLANK


def collapse(labels: Iterable[int]) -> list[int]:
    """Repeats merged, then blanks dropped."""
    return [label for label, _ in groupby(labels) if label != BLANK]


def greedy_ctc(log_probs: np.ndarray | Tensor) -> list[int]:
    """Labels of the most probable frame labelling of one utterance (T, V)."""
    return collapse(log_probs.argmax(-1).tolist())


def greedy_ctc_batch(log_probs: np.ndarray | Tensor, lengths: np.ndarray | Tensor) -> list[list[int]]:
    """`greedy_ctc` of every utterance of a padded batch (B, T, V) with lengths (B,)."""
    return [
        collapse(labels[:length])
        for labels, length in zip(log_probs.argmax(-1).tolist(), lengths.tolist(), strict=True)
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class CtcAlignment:
    """The most probable frame labelling that collapses to the targets.

    labels (T,): class of each frame. positions (T,): which target it belongs to, -1 for a blank. log_prob: of this
    labelling alone.
    """

    labels: np.ndarray
    positions: np.ndarray
    log_prob: float


def ctc_alignment(log_probs: np.ndarray, targets: Sequence[int] | np.ndarray) -> CtcAlignment:
    """Viterbi forced alignment of `targets` (U,) to log_probs (T, V).

    Raises `ValueError` when the utterance is too short for its targets (a blank has to stand between equal ones).
    """
    targets = np.asarray(targets, np.int64)
    if np.any((targets <= BLANK) | (targets >= log_probs.shape[1])):
        raise ValueError(f"targets must be labels 1 .. {log_probs.shape[1] - 1}, not {targets.tolist()}")
    needed = len(targets) + int((targets[1:] == targets[:-1]).sum())
    if len(log_probs) < max(needed, 1):
        raise ValueError(f"{len(log_probs)} frames cannot hold {len(targets)} labels, which need {max(needed, 1)}")
    states = np.full(2 * len(targets) + 1, BLANK)
    states[1::2] = targets
    may_skip = np.zeros(len(states), bool)  # over the blank before a label that differs from the one before
    may_skip[3::2] = targets[1:] != targets[:-1]
    emitted = log_probs.astype(np.float64)[:, states]  # (T, 2U + 1)
    best = np.full(len(states), -np.inf)
    best[:2] = emitted[0, :2]
    steps = np.zeros(emitted.shape, np.int64)
    for t in range(1, len(emitted)):
        arrivals = np.full((3, len(states)), -np.inf)
        arrivals[0] = best
        arrivals[1, 1:] = best[:-1]
        arrivals[2, 2:] = np.where(may_skip[2:], best[:-2], -np.inf)
        steps[t] = arrivals.argmax(axis=0)
        best = arrivals.max(axis=0) + emitted[t]
    last = len(states) - 2 + int(best[-2:].argmax()) if len(targets) else 0
    log_prob = float(best[last])
    path = np.empty(len(emitted), np.int64)
    for t in range(len(emitted) - 1, -1, -1):
        path[t] = last
        last -= steps[t, last]
    return CtcAlignment(labels=states[path], positions=np.where(path % 2 == 1, path // 2, -1), log_prob=log_prob)
