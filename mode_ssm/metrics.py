"""Error rates of decoded text: phoneme, word and character edits, their totals and bootstrap intervals.

Every rate is aggregate: edits summed over trials, divided by reference symbols summed over trials (the benchmark's
definition), so a long sentence weighs more than a short one. A rate can exceed one, because insertions count.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from mode_ssm.vocab import BLANK, NUM_CLASSES, normalise_sentence

Symbol = TypeVar("Symbol")


class ErrorRate(NamedTuple):
    """Edits (substitutions, deletions, insertions) against a reference of `reference_length` symbols."""

    edits: int
    reference_length: int

    @property
    def rate(self) -> float:
        """edits / reference_length; nan where there is no reference to divide by."""
        return self.edits / self.reference_length if self.reference_length else float("nan")


class Interval(NamedTuple):
    low: float
    high: float


class Difference(NamedTuple):
    """A difference of two error rates with its bootstrap interval."""

    value: float
    low: float
    high: float


def edit_distance(reference: Sequence[object], hypothesis: Sequence[object]) -> int:
    """Levenshtein distance: the fewest substitutions, deletions and insertions that turn one into the other."""
    return _edit_table(reference, hypothesis)[-1][-1]


def align(reference: Sequence[Symbol], hypothesis: Sequence[Symbol]) -> list[tuple[Symbol | None, Symbol | None]]:
    """Pairs (reference symbol, hypothesis symbol) of one cheapest alignment.

    None on the left is an insertion, None on the right a deletion. Of equally cheap alignments the one that keeps
    matches and substitutions latest in the sequence is returned.
    """
    table = _edit_table(reference, hypothesis)
    pairs: list[tuple[Symbol | None, Symbol | None]] = []
    i, j = len(reference), len(hypothesis)
    while i or j:
        if i and j and table[i][j] == table[i - 1][j - 1] + (reference[i - 1] != hypothesis[j - 1]):
            i, j = i - 1, j - 1
            pairs.append((reference[i], hypothesis[j]))
        elif i and table[i][j] == table[i - 1][j] + 1:
            i -= 1
            pairs.append((reference[i], None))
        else:
            j -= 1
            pairs.append((None, hypothesis[j]))
    return pairs[::-1]


def _edit_table(reference: Sequence[object], hypothesis: Sequence[object]) -> list[list[int]]:
    """Distances between all prefixes, (len(reference) + 1) rows of (len(hypothesis) + 1) (Wagner and Fischer 1974)."""
    table = [list(range(len(hypothesis) + 1))]
    for i, symbol in enumerate(reference, start=1):
        above, row = table[-1], [i]
        for j, other in enumerate(hypothesis):
            row.append(above[j] if symbol == other else 1 + min(above[j], above[j + 1], row[j]))
        table.append(row)
    return table


def phoneme_errors(reference: Sequence[int], hypothesis: Sequence[int]) -> ErrorRate:
    """Edits between two sequences of class ids 1..40.

    SIL counts like any other symbol on both sides, as in the benchmark's own phoneme error rate. Blank and padding
    (class 0) belong to frames, not to phoneme sequences: they raise `ValueError`.
    """
    for side, ids in (("reference", reference), ("hypothesis", hypothesis)):
        for symbol in ids:
            if not BLANK < symbol < NUM_CLASSES:
                raise ValueError(f"{side} holds class {symbol}; a phoneme sequence holds classes 1..{NUM_CLASSES - 1}")
    return ErrorRate(edit_distance(reference, hypothesis), len(reference))


def word_errors(reference: str, hypothesis: str) -> ErrorRate:
    """Word edits; both sides are normalised as the benchmark does (`vocab.normalise_sentence`)."""
    reference_words = normalise_sentence(reference).split()
    return ErrorRate(edit_distance(reference_words, normalise_sentence(hypothesis).split()), len(reference_words))


def character_errors(reference: str, hypothesis: str) -> ErrorRate:
    """Character edits, single spaces between words included; both sides are normalised as for words."""
    reference = normalise_sentence(reference)
    return ErrorRate(edit_distance(reference, normalise_sentence(hypothesis)), len(reference))


def aggregate(errors: Iterable[ErrorRate]) -> ErrorRate:
    """Edits and reference lengths summed over trials."""
    edits = reference_length = 0
    for error in errors:
        edits += error.edits
        reference_length += error.reference_length
    return ErrorRate(edits, reference_length)


def bootstrap_interval(
    edits: Sequence[int], lengths: Sequence[int], samples: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Percentile interval of the aggregate rate when trials are drawn anew with replacement.

    It says how far the rate would move with other sentences of the same sessions, not with other sessions or seeds
    (Bisani and Ney 2004). Raises `ValueError` where `lengths` sum to zero.
    """
    rates = _resampled_rates(np.stack([_counts(edits, lengths)]), np.asarray(lengths), samples, seed)[0]
    return _percentiles(rates, level)


def paired_bootstrap_difference(
    edits: Sequence[int],
    other_edits: Sequence[int],
    lengths: Sequence[int],
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """How much lower (negative) or higher the rate of `other_edits` is than that of `edits` on the same trials.

    Both systems are resampled together, so what makes a sentence hard for both cancels.
    """
    both = np.stack([_counts(edits, lengths), _counts(other_edits, lengths)])
    rates = _resampled_rates(both, np.asarray(lengths), samples, seed)
    value = (both[1].sum() - both[0].sum()) / np.sum(lengths)
    return Difference(float(value), *_percentiles(rates[1] - rates[0], level))


def seen_unseen_split(train_sentences: Collection[str], sentences: Sequence[str]) -> np.ndarray:
    """(N,) bool: which `sentences`, once normalised, also stand in training."""
    seen = {normalise_sentence(sentence) for sentence in train_sentences}
    return np.array([normalise_sentence(sentence) in seen for sentence in sentences], dtype=bool)


def _counts(edits: Sequence[int], lengths: Sequence[int]) -> np.ndarray:
    if len(edits) != len(lengths):
        raise ValueError(f"{len(edits)} edit counts for {len(lengths)} trials")
    if np.sum(lengths) == 0:
        raise ValueError("no reference symbols: an error rate over nothing has no interval")
    return np.asarray(edits)


def _resampled_rates(edits: np.ndarray, lengths: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Rates of resampled trials: edits (S, N), lengths (N,) -> (S, samples)."""
    trials = len(lengths)
    # How often each trial is drawn in one resample is multinomial; weights turn resampling into one product.
    weights = np.random.default_rng(seed).multinomial(trials, np.full(trials, 1 / trials), size=samples)
    totals = weights @ lengths
    kept = totals > 0  # a resample of empty references alone has no rate
    return (edits @ weights.T)[:, kept] / totals[kept]


def _percentiles(values: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
