"""Interpolated modified Kneser-Ney smoothing.

Chen and Goodman, "An empirical study of smoothing techniques for language modeling" (1998), in the form of
Heafield et al., "Scalable modified Kneser-Ney language model estimation" (2013): adjusted counts, one set of three
discounts an order, and the uniform distribution below the unigrams.
"""

from collections.abc import Sequence

import numpy as np

from mode_ssm.lm.ngram_automaton import NGramTable
from mode_ssm.lm.ngram_counts import BOS_ID, Counts

# Used for an order whose counts of counts do not define discounts, as in a corpus of a few hundred sentences.
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


def estimate_tables(
    counted: Sequence[Counts], *, prune: Sequence[int] = (), like_lmplz: bool = False
) -> list[NGramTable]:
    """Tables of the orders of `counted`. Every word but `<s>` gets a unigram probability.

    `prune[k - 1]` is the largest count with which a k-gram is left out, the last value that of all further orders;
    what a history loses goes to its back-off weight. Orders that lose everything are left out. `like_lmplz`: discounts
    as KenLM's lmplz takes them from counts of counts (see `discounts`).
    """
    thresholds = check_pruning(prune, len(counted))
    tables: list[NGramTable] = []
    kept: list[np.ndarray] = []
    for k, grams in enumerate(counted, start=1):
        counts = grams.counts
        if k < len(counted):
            # A lower order is asked only where the higher one has not seen the history: what counts is in how many
            # histories the n-gram occurs. Nothing stands before <s>. One that only ever follows an unknown word: one.
            extensions = np.maximum(np.bincount(counted[k].suffix, minlength=len(counts)), counts > 0)
            counts = np.where(grams.ids[:, 0] == BOS_ID, counts, extensions)
        if k == 1:
            counts[BOS_ID] = 0
            num_histories = 1
            lower = np.full(len(counts), 1.0 / (len(counts) - 1))
        else:
            num_histories = len(tables[-1].ids)
            lower = np.exp(tables[-1].log_prob)[grams.suffix]
        # What the corpus holds decides, not the adjusted count: then no n-gram stays without its history and suffix.
        keep = (grams.counts > thresholds[k - 1]) | (k == 1)
        discount = np.array([0.0, *discounts(counts, like_lmplz=like_lmplz)])[np.minimum(counts, 3)]
        discount = np.where(keep, discount, counts)
        total = np.bincount(grams.prefix, counts, minlength=num_histories)
        freed = np.bincount(grams.prefix, discount, minlength=num_histories)
        gamma = np.divide(freed, total, out=np.ones(num_histories), where=total > 0)
        probability = (counts - discount) / total[grams.prefix] + gamma[grams.prefix] * lower
        if k == 1:
            probability[BOS_ID] = 0.0
        else:
            tables[-1].backoff[:] = np.log(gamma)
        with np.errstate(divide="ignore"):  # <s> is never predicted
            log_prob = np.log(probability)
        tables.append(NGramTable(ids=grams.ids, log_prob=log_prob, backoff=np.zeros(len(log_prob))))
        kept.append(keep)
    return [
        NGramTable(ids=table.ids[keep], log_prob=table.log_prob[keep], backoff=table.backoff[keep])
        for table, keep in zip(tables, kept, strict=True)
        if keep.any()
    ]


def discounts(counts: np.ndarray, *, like_lmplz: bool = False) -> tuple[float, float, float]:
    """The discounts of counts 1, 2 and 3 or more from the counts of counts.

    `FALLBACK_DISCOUNTS` where one of the counts of counts 1 .. 4 is zero or a discount is not within (0, count];
    `like_lmplz` accepts no count of 4 and a discount of 0.
    """
    t1, t2, t3, t4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
    if min(t1, t2, t3) == 0 or (t4 == 0 and not like_lmplz):
        return FALLBACK_DISCOUNTS
    y = t1 / (t1 + 2 * t2)
    found = (1 - 2 * y * t2 / t1, 2 - 3 * y * t3 / t2, 3 - 4 * y * t4 / t3)
    valid = all(0 < d <= c or (like_lmplz and d == 0) for c, d in enumerate(found, start=1))
    return found if valid else FALLBACK_DISCOUNTS


def check_pruning(prune: Sequence[int], order: int) -> tuple[int, ...]:
    """A threshold for every order; raises `ValueError` for a sequence that cannot be one."""
    thresholds = tuple(prune) or (0,)
    if any(value < 0 for value in thresholds) or list(thresholds) != sorted(thresholds):
        raise ValueError(f"pruning thresholds must be counts that do not fall from order to order, not {thresholds}")
    if thresholds[0] != 0:
        raise ValueError(f"unigrams cannot be pruned: the first threshold must be 0, not {thresholds[0]}")
    if len(thresholds) > order:
        raise ValueError(f"{len(thresholds)} pruning thresholds for a model of order {order}")
    return thresholds + (thresholds[-1],) * (order - len(thresholds))
