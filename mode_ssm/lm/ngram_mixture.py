"""Linear interpolation of language models: weights from held-out text, one model out of several, or a mixing scorer."""

import math
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from mode_ssm.lm.ngram import NGramLM
from mode_ssm.lm.ngram_automaton import BOS, EOS, UNK, NGramTable, compile_automaton
from mode_ssm.lm.scorer import Scorer


class InterpolatedScorer(Scorer):
    """P(word | history) = sum over models of weight * P_model(word | history), exactly; states are tuples of theirs."""

    def __init__(self, models: Sequence[Scorer], weights: Sequence[float]) -> None:
        """Raises `ValueError` unless there is one positive weight a model; they are divided by their sum."""
        self.weights = check_weights(weights, len(models))
        self._models = tuple(models)
        self._log_weights = [math.log(weight) for weight in self.weights]

    def start(self) -> tuple[Hashable, ...]:
        return tuple(model.start() for model in self._models)

    def score(self, state: tuple[Hashable, ...], word: str) -> tuple[float, tuple[Hashable, ...]]:
        scored = [model.score(own, word) for model, own in zip(self._models, state, strict=True)]
        return self._mix([log_prob for log_prob, _ in scored]), tuple(following for _, following in scored)

    def end(self, state: tuple[Hashable, ...]) -> float:
        return self._mix([model.end(own) for model, own in zip(self._models, state, strict=True)])

    def unigram(self, word: str) -> float:
        return self._mix([model.unigram(word) for model in self._models])

    def _mix(self, log_probs: Sequence[float]) -> float:
        terms = [weight + log_prob for weight, log_prob in zip(self._log_weights, log_probs, strict=True)]
        if (highest := max(terms)) == -math.inf:
            return highest
        return highest + math.log(sum(math.exp(term - highest) for term in terms))


def check_weights(weights: Sequence[float], num_models: int) -> tuple[float, ...]:
    """Weights that sum to one; raises `ValueError` for others than one positive number a model."""
    if len(weights) != num_models or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"{num_models} models need as many positive weights, not {tuple(weights)}")
    return tuple(weight / math.fsum(weights) for weight in weights)


def tune_weights(models: Sequence[Scorer], sentences: Iterable[str], *, tolerance: float = 1e-6) -> tuple[float, ...]:
    """The weights that give held-out sentences the highest likelihood, by expectation maximisation from equal ones.

    The likelihood is concave in the weights: there is no other maximum. Words that no model can produce are left out.
    Stops when no weight moves by more than `tolerance`. A weight that falls to zero stays at 1e-6.
    """
    columns: list[list[float]] = []
    for sentence in sentences:
        states = [model.start() for model in models]
        for word in sentence.split():
            scored = [model.score(state, word) for model, state in zip(models, states, strict=True)]
            columns.append([log_prob for log_prob, _ in scored])
            states = [state for _, state in scored]
        columns.append([model.end(state) for model, state in zip(models, states, strict=True)])
    log_probs = np.array(columns).reshape(-1, len(models))
    log_probs = log_probs[np.isfinite(log_probs).any(axis=1)]
    if len(log_probs) == 0:
        raise ValueError("interpolation weights cannot be tuned: the models know no word of the held-out text")
    probs = np.exp(log_probs - log_probs.max(axis=1, keepdims=True))
    weights = np.full(len(models), 1 / len(models))
    while True:
        joint = probs * weights
        updated = np.maximum((joint / joint.sum(axis=1, keepdims=True)).mean(axis=0), 1e-6)
        updated /= updated.sum()
        if np.abs(updated - weights).max() <= tolerance:
            return tuple(updated.tolist())
        weights = updated


def interpolate(models: Sequence[NGramLM], weights: Sequence[float]) -> NGramLM:
    """One back-off model over the union of the n-grams: each has the interpolated probability, and back-off weights
    make the probabilities after every history sum to one.

    Where no model has an n-gram the result backs off, which differs a little from `InterpolatedScorer`.
    """
    weights = check_weights(weights, len(models))
    automata = [model.automaton(single_precision=False) for model in models]
    reserved = [BOS, EOS] + [UNK] * any(UNK in automaton.word_ids for automaton in automata)
    known = sorted({word for automaton in automata for word in automaton.words} - {BOS, EOS, UNK})
    words = (BOS, EOS, *known, *reserved[2:])
    word_ids = {word: index for index, word in enumerate(words)}
    into = [np.array([word_ids[word] for word in automaton.words], np.int64) for automaton in automata]
    out_of = []
    for automaton in automata:
        unknown = automaton.word_ids.get(UNK, -1)
        out_of.append(np.array([automaton.word_ids.get(word, unknown) for word in words], np.int64))
    tables_of_models = [automaton.tables() for automaton in automata]
    tables: list[NGramTable] = []
    states = [np.zeros(1, np.int64) for _ in models]  # of each model after the n-grams of the order before
    for k in range(1, max(automaton.order for automaton in automata) + 1):
        rows = [m[own[k - 1].ids] for m, own in zip(into, tables_of_models, strict=True) if len(own) >= k]
        ids = _distinct(np.concatenate(rows)) if k > 1 else np.arange(len(words))[:, None]
        history = rows_of_histories(tables[-1].ids, ids) if k > 1 else np.zeros(len(ids), np.int64)
        probability = np.zeros(len(ids))
        for index, automaton in enumerate(automata):
            log_probs, following = automaton.follow(states[index][history], out_of[index][ids[:, -1]])
            probability += weights[index] * np.exp(log_probs)
            if k == 1:
                following[word_ids[BOS]] = automaton.start
            states[index] = following
        with np.errstate(divide="ignore"):
            log_prob = np.log(probability)
        if k > 1:
            tables[-1].backoff[:] = backoff_weights(words, tables, ids, history, log_prob)
        tables.append(NGramTable(ids=ids.astype(np.int32), log_prob=log_prob, backoff=np.zeros(len(ids))))
    return NGramLM(words, tables)


def backoff_weights(
    words: Sequence[str], tables: Sequence[NGramTable], ids: np.ndarray, history: np.ndarray, log_prob: np.ndarray
) -> np.ndarray:
    """Back-off weights of the last of `tables` under n-grams one longer, ids (n, k): rows (n,) of their histories,
    log_prob (n,). The back-off weights of the tables before are in place."""
    lower = compile_automaton(words, tables)
    states = np.zeros(len(ids), np.int64)
    for position in range(1, ids.shape[1] - 1):
        states = lower.follow(states, ids[:, position])[1]
    shorter = lower.follow(states, ids[:, -1])[0]
    num_histories = len(tables[-1].ids)
    left = 1 - np.bincount(history, np.exp(log_prob), minlength=num_histories)
    left_shorter = 1 - np.bincount(history, np.exp(shorter), minlength=num_histories)
    # Nothing is left to back off to after a history that all words follow.
    open_ = left_shorter > 1e-9
    return np.log(np.divide(np.maximum(left, 1e-12), left_shorter, out=np.ones(num_histories), where=open_))


def _distinct(ids: np.ndarray) -> np.ndarray:
    ids = ids[np.lexsort(ids.T[::-1])]
    keep = np.ones(len(ids), bool)
    keep[1:] = (ids[1:] != ids[:-1]).any(axis=1)
    return ids[keep]


def rows_of_histories(histories: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Rows of ids[:, :-1] among the n-grams `histories`, of which they are some; both sorted."""
    merged = np.concatenate([histories, ids[:, :-1]])
    in_order = np.lexsort(np.column_stack([merged, np.arange(len(merged)) >= len(histories)]).T[::-1])
    rows = np.empty(len(merged), np.int64)
    rows[in_order] = np.cumsum(in_order < len(histories)) - 1
    return rows[len(histories) :]
