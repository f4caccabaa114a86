"""Entropy pruning of back-off models (Stolcke, "Entropy-based pruning of backoff language models", 1998).

An n-gram goes when the model without it, back-off weight of its history adjusted, diverges from the model with it so
little that the perplexity rises by less than a threshold, relatively. Probabilities that stay are not changed.
"""

import numpy as np

from mode_ssm.lm.ngram import NGramLM
from mode_ssm.lm.ngram_automaton import BOS, NGramTable, compile_automaton
from mode_ssm.lm.ngram_mixture import backoff_weights, rows_of_histories


def entropy_prune(lm: NGramLM, threshold: float) -> NGramLM:
    """`lm` without the n-grams above order 1 whose removal raises its perplexity by less than `threshold`, relatively.

    An n-gram that is the history of one that stays, stays. Raises `ValueError` for a threshold that is not positive.
    """
    if not threshold > 0:
        raise ValueError(f"the threshold of entropy pruning must be positive, not {threshold}")
    automaton = lm.automaton(single_precision=False)
    words, tables = automaton.words, automaton.tables()
    bos = automaton.word_ids[BOS]
    history_rows = [rows_of_histories(tables[k - 1].ids, tables[k].ids) for k in range(1, len(tables))]
    # log P of every n-gram as a text: of its words one after the other; <s> is given.
    texts = [np.where(np.arange(len(words)) == bos, 0.0, tables[0].log_prob)]
    for table, history in zip(tables[1:], history_rows, strict=True):
        texts.append(texts[-1][history] + table.log_prob)
    for k in range(len(tables), 1, -1):
        table, history = tables[k - 1], history_rows[k - 2]
        rise = _perplexity_rises(words, tables[: k - 1], table, history, texts[k - 2])
        keep = rise >= threshold
        if k < len(tables):
            keep[rows_of_histories(table.ids, tables[k].ids)] = True
        tables[k - 1] = NGramTable(ids=table.ids[keep], log_prob=table.log_prob[keep], backoff=table.backoff[keep])
    while len(tables) > 1 and len(tables[-1].ids) == 0:
        tables.pop()
    for k in range(1, len(tables)):
        history = rows_of_histories(tables[k - 1].ids, tables[k].ids)
        weights = backoff_weights(words, tables[:k], tables[k].ids, history, tables[k].log_prob)
        tables[k - 1] = NGramTable(ids=tables[k - 1].ids, log_prob=tables[k - 1].log_prob, backoff=weights)
    tables[-1].backoff[:] = 0.0
    return NGramLM(words, tables)


def _perplexity_rises(
    words: tuple[str, ...], lower: list[NGramTable], table: NGramTable, history: np.ndarray, text: np.ndarray
) -> np.ndarray:
    """By which part the perplexity rises without each of the n-grams of `table` alone.

    history (n,) row of the history of each in the last of `lower`; text (rows,) log P of those histories as texts.
    """
    automaton = compile_automaton(words, lower)
    states = np.zeros(len(table.ids), np.int64)
    for position in range(1, table.ids.shape[1] - 1):
        states = automaton.follow(states, table.ids[:, position])[1]
    shorter = automaton.follow(states, table.ids[:, -1])[0]
    num_histories = len(lower[-1].ids)
    left = 1 - np.bincount(history, np.exp(table.log_prob), minlength=num_histories)
    left_shorter = 1 - np.bincount(history, np.exp(shorter), minlength=num_histories)
    left, left_shorter = np.maximum(left, 1e-12)[history], np.maximum(left_shorter, 1e-12)[history]
    probability = np.exp(table.log_prob)
    before = np.log(left / left_shorter)
    after = np.log((left + probability) / (left_shorter + np.exp(shorter)))
    divergence = -np.exp(text[history]) * (probability * (shorter + after - table.log_prob) + left * (after - before))
    return np.expm1(divergence)
