"""Interpolated modified Kneser-Ney smoothing.

Chen and Goodman, "An empirical study of smoothing techniques for language modeling" (1998), in the form of
Heafield et al., "Scalable modified Kneser-Ney language model estimation" (2013): adjusted counts, one set of three
discounts an order, and the uniform distribution below the unigrams.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

# Used for an order whose counts of counts do not define discounts, as in a corpus of a few hundred sentences.
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class NGramTable:
    """The n-grams of one order k, sorted by word ids.

    ids (n, k) int64; log_prob (n,) of the last word after the others; backoff (n,) log weight of the n-gram as a
    history, zero where nothing follows it. Natural logarithms.
    """

    ids: np.ndarray
    log_prob: np.ndarray
    backoff: np.ndarray


def estimate_tables(
    sentences: Iterable[Iterable[str]], order: int, word_ids: Mapping[str, int], bos: int, eos: int
) -> tuple[list[NGramTable], int, int]:
    """Tables of orders 1 .. `order`, the number of words read, and how many of them were unknown.

    `word_ids` numbers all words, `bos` and `eos` 0 .. V-1. Every one but `bos` gets a unigram probability. N-grams that
    hold an unknown word are not counted. Orders that no sentence is long enough for are left out.
    """
    tokens, sentence_of = _tokens(sentences, word_ids, bos, eos)
    counted = _count(tokens, sentence_of, order, len(word_ids))
    tables: list[NGramTable] = []
    for k, grams in enumerate(counted, start=1):
        counts = grams.counts
        if k < len(counted):
            # A lower order is asked only where the higher one has not seen the history: what counts is in how many
            # histories the n-gram occurs. Nothing stands before <s>. One that only ever follows an unknown word: one.
            extensions = np.maximum(np.bincount(counted[k].suffix, minlength=len(counts)), counts > 0)
            counts = np.where(grams.ids[:, 0] == bos, counts, extensions)
        if k == 1:
            counts[bos] = 0
            num_histories = 1
            lower = np.full(len(counts), 1.0 / (len(word_ids) - 1))
        else:
            num_histories = len(tables[-1].ids)
            lower = np.exp(tables[-1].log_prob)[grams.suffix]
        discount = np.array([0.0, *discounts(counts)])[np.minimum(counts, 3)]
        total = np.bincount(grams.prefix, counts, minlength=num_histories)
        freed = np.bincount(grams.prefix, discount, minlength=num_histories)
        gamma = np.divide(freed, total, out=np.ones(num_histories), where=total > 0)
        probability = (counts - discount) / total[grams.prefix] + gamma[grams.prefix] * lower
        if k == 1:
            probability[bos] = 0.0
        else:
            tables[-1].backoff[:] = np.log(gamma)
        with np.errstate(divide="ignore"):  # <s> is never predicted
            log_prob = np.log(probability)
        tables.append(NGramTable(ids=grams.ids, log_prob=log_prob, backoff=np.zeros(len(log_prob))))
    num_words = len(tokens) - 2 * (int(sentence_of[-1]) + 1)
    return tables, num_words, int((tokens < 0).sum())


def discounts(counts: np.ndarray) -> tuple[float, float, float]:
    """The discounts of counts 1, 2 and 3 or more from the counts of counts.

    `FALLBACK_DISCOUNTS` where one of the counts of counts 1 .. 4 is zero or a discount is not within (0, count].
    """
    t1, t2, t3, t4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
    if min(t1, t2, t3, t4) == 0:
        return FALLBACK_DISCOUNTS
    y = t1 / (t1 + 2 * t2)
    found = (1 - 2 * y * t2 / t1, 2 - 3 * y * t3 / t2, 3 - 4 * y * t4 / t3)
    return found if all(0 < d <= c for c, d in enumerate(found, start=1)) else FALLBACK_DISCOUNTS


@dataclass(frozen=True, kw_only=True, slots=True)
class _Counted:
    """Distinct k-grams of a corpus: ids (n, k), counts (n,), and the rows of the first and of the last k-1 words in
    the table of order k-1."""

    ids: np.ndarray
    counts: np.ndarray
    prefix: np.ndarray
    suffix: np.ndarray


def _tokens(
    sentences: Iterable[Iterable[str]], word_ids: Mapping[str, int], bos: int, eos: int
) -> tuple[np.ndarray, np.ndarray]:
    """All sentences as one array of ids, -1 for an unknown word, and the number of the sentence of each token."""
    flat: list[int] = []
    lengths: list[int] = []
    for words in sentences:
        sentence = [word_ids.get(word, -1) for word in words]
        if bos in sentence or eos in sentence:
            raise ValueError(f"a training sentence holds <s> or </s> as a word: {' '.join(words)!r}")
        flat += [bos, *sentence, eos]
        lengths.append(len(sentence) + 2)
    if not flat:
        raise ValueError("cannot estimate a language model from no sentences")
    return np.array(flat, np.int64), np.repeat(np.arange(len(lengths)), lengths)


def _count(tokens: np.ndarray, sentence_of: np.ndarray, order: int, vocabulary_size: int) -> list[_Counted]:
    """The k-grams without unknown words, k = 1 .. order, as far as there are any; all words as 1-grams."""
    rows = tokens  # row of the k-gram that starts at each position, -1 where there is none
    zeros = np.zeros(vocabulary_size, np.int64)
    counts = np.bincount(tokens[tokens >= 0], minlength=vocabulary_size)
    counted = [_Counted(ids=np.arange(vocabulary_size)[:, None], counts=counts, prefix=zeros, suffix=zeros)]
    for k in range(2, order + 1):
        last = tokens[k - 1 :]
        inside = (rows[: len(last)] >= 0) & (last >= 0) & (sentence_of[: len(last)] == sentence_of[k - 1 :])
        positions = np.flatnonzero(inside)
        if len(positions) == 0:
            break
        keys = rows[positions] * vocabulary_size + last[positions]
        unique, first, inverse, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        prefix, word = np.divmod(unique, vocabulary_size)
        ids = np.column_stack([counted[-1].ids[prefix], word])
        counted.append(_Counted(ids=ids, counts=counts, prefix=prefix, suffix=rows[positions[first] + 1]))
        rows = np.full(len(tokens), -1, np.int64)
        rows[positions] = inverse
    return counted
