"""Which letters of a word make which of its phones: one-to-(0, 1 or 2) alignments learned by EM.

Letters and phones are aligned by a memoryless model of graphones, a letter with the phones it makes, trained by
expectation-maximisation over all monotone alignments of every word; the most probable one is kept. As in Bisani and
Ney, "Joint-sequence models for grapheme-to-phoneme conversion" (2008), section 3, with graphones of one letter.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mode_ssm.lm.lexicon_file import Pronunciation
from mode_ssm.vocab import SIL

Graphone = tuple[str, Pronunciation]  # a letter and the 0 .. MAX_PHONES phones that it makes

MAX_PHONES = 2
_SYMBOLS = 1 + SIL + SIL * SIL  # a letter's graphones: no phone, one phone, two phones
_TOLERANCE = 1e-4  # relative gain of log likelihood below which EM ends
_MAX_ITERATIONS = 30


def align(pairs: Sequence[tuple[str, Pronunciation]]) -> list[list[Graphone] | None]:
    """The graphones of every (word, pronunciation), one a letter; None where there are over two phones to a letter.

    The same result in every run. Raises `ValueError` where no pair can be aligned.
    """
    letters = sorted({letter for word, _ in pairs for letter in word})
    groups = _groups(pairs, {letter: index for index, letter in enumerate(letters)})
    if not groups:
        raise ValueError(f"none of {len(pairs)} pronunciations has at most {MAX_PHONES} phones to a letter")
    probability = np.ones(len(letters) * _SYMBOLS)
    previous = 0.0
    for iteration in range(_MAX_ITERATIONS):
        counts = np.zeros(len(probability))
        log_likelihood = sum(_expect(group, probability, counts) for group in groups)
        probability = counts / counts.sum()
        # The first likelihood is that of weights that are not yet probabilities.
        if iteration > 1 and log_likelihood - previous <= _TOLERANCE * abs(log_likelihood):
            break
        previous = log_likelihood
    aligned: list[list[Graphone] | None] = [None] * len(pairs)
    for group in groups:
        for row, phone_counts in zip(group.rows, _best(group, probability).tolist(), strict=True):
            word, phones = pairs[row]
            ends = np.cumsum(phone_counts).tolist()
            aligned[row] = [
                (letter, phones[end - count : end]) for letter, count, end in zip(word, phone_counts, ends, strict=True)
            ]
    return aligned


@dataclass(frozen=True, slots=True)
class _Group:
    """The n pairs of L letters and P phones. symbols[c] (n, L, P + 1 - c): graphone of the letter and the c phones from
    a position on."""

    rows: list[int]
    symbols: tuple[np.ndarray, ...]
    num_phones: int


def _groups(pairs: Sequence[tuple[str, Pronunciation]], letter_ids: dict[str, int]) -> list[_Group]:
    rows: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for row, (word, phones) in enumerate(pairs):
        if len(phones) <= MAX_PHONES * len(word):
            rows[len(word), len(phones)].append(row)
    groups = []
    for (_, num_phones), own in sorted(rows.items()):
        letters = np.array([[letter_ids[letter] for letter in pairs[row][0]] for row in own])[:, :, None] * _SYMBOLS
        phone_ids = np.array([pairs[row][1] for row in own])[:, None, :]  # 1 .. SIL - 1
        symbols = [np.broadcast_to(letters, (*letters.shape[:2], num_phones + 1)), letters + phone_ids]
        if num_phones > 1:
            symbols.append(letters + 1 + phone_ids[:, :, :-1] * SIL + phone_ids[:, :, 1:])
        groups.append(_Group(own, tuple(symbols), num_phones))
    return groups


def _expect(group: _Group, probability: np.ndarray, counts: np.ndarray) -> float:
    """Add the expected count of every graphone to `counts`; the log likelihood of the group."""
    weights = [probability[symbols] for symbols in group.symbols]
    n, num_letters = weights[0].shape[:2]
    ends = group.num_phones + 1
    # forward[i][:, j]: i letters have made j phones. Rescaled at every letter, or long words would underflow.
    forward = np.zeros((num_letters + 1, n, ends))
    forward[0, :, 0] = 1.0
    log_likelihood = 0.0
    for i in range(num_letters):
        for c, weight in enumerate(weights):
            forward[i + 1][:, c:] += forward[i][:, : ends - c] * weight[:, i]
        scale = forward[i + 1].sum(axis=1, keepdims=True)
        forward[i + 1] /= scale
        log_likelihood += float(np.log(scale).sum())
    log_likelihood += float(np.log(forward[-1][:, -1]).sum())
    backward = np.zeros((n, ends))
    backward[:, -1] = 1.0
    for i in reversed(range(num_letters)):
        after = [weight[:, i] * backward[:, c:] for c, weight in enumerate(weights)]
        joint = [forward[i][:, : ends - c] * own for c, own in enumerate(after)]
        # Exactly one graphone of every letter is on a path: what both directions are scaled by cancels here.
        total = sum(own.sum(axis=1, keepdims=True) for own in joint)
        for symbols, own in zip(group.symbols, joint, strict=True):
            counts += np.bincount(symbols[:, i].ravel(), (own / total).ravel(), minlength=len(counts))
        backward = np.zeros((n, ends))
        for c, own in enumerate(after):
            backward[:, : ends - c] += own
        backward /= backward.max(axis=1, keepdims=True)
    return log_likelihood


def _best(group: _Group, probability: np.ndarray) -> np.ndarray:
    """(n, L): phones of each letter in the most probable alignment; of equal ones, fewer phones to later letters."""
    with np.errstate(divide="ignore"):
        weights = [np.log(probability[symbols]) for symbols in group.symbols]
    n, num_letters = weights[0].shape[:2]
    ends = group.num_phones + 1
    score = np.full((n, ends), -np.inf)
    score[:, 0] = 0.0
    choices = []
    for i in range(num_letters):
        options = np.full((len(weights), n, ends), -np.inf)
        for c, weight in enumerate(weights):
            options[c][:, c:] = score[:, : ends - c] + weight[:, i]
        choices.append(options.argmax(axis=0))
        score = options.max(axis=0)
    phone_counts = np.zeros((n, num_letters), np.int64)
    position = np.full(n, group.num_phones)
    for i in reversed(range(num_letters)):
        phone_counts[:, i] = choices[i][np.arange(n), position]
        position -= phone_counts[:, i]
    return phone_counts
