"""A back-off n-gram model as a weighted automaton in flat arrays, so that compiled code can walk it.

A state is a history: state 0 the empty one, and one for every n-gram below the highest order that something follows.
An arc is an n-gram: it leaves the state of its history and enters that of the longest history that remains. Histories
that nothing follows and whose back-off weight is one predict like the next shorter one and have no state, so that
equal futures are equal states.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

BOS, EOS, UNK = "<s>", "</s>", "<unk>"


@dataclass(frozen=True, kw_only=True, slots=True)
class NGramTable:
    """The n-grams of one order k, sorted by word ids.

    ids (n, k) integers; log_prob (n,) of the last word after the others; backoff (n,) log weight of the n-gram as a
    history, zero where nothing follows it. Natural logarithms. The table of order 1 has row i for word i.
    """

    ids: np.ndarray
    log_prob: np.ndarray
    backoff: np.ndarray


@dataclass(frozen=True, kw_only=True)
class NGramAutomaton:
    """States 0 .. S-1 in the order of the length of their histories, arcs 0 .. A-1 in the order of their states.

    log P(word | state) is that of the arc where there is one, else backoff[state] + log P(word | backoff_state[state]);
    state 0 has one arc for each of the W words, in their order. Natural logarithms. `NGramLM.automaton` gives float32;
    sums belong into float64.
    """

    start: int  # state after <s>
    order: int
    backoff_state: np.ndarray  # (S,) int32, smaller than the state; -1 for state 0
    backoff: np.ndarray  # (S,) float, 0 for state 0
    arc_start: np.ndarray  # (S + 1,) int64: arcs arc_start[s] .. arc_start[s + 1] - 1 leave state s
    arc_word: np.ndarray  # (A,) int32, ascending within a state
    arc_log_prob: np.ndarray  # (A,) float
    arc_next: np.ndarray  # (A,) int32
    end_log_prob: np.ndarray  # (S,) float: log P(</s> | state), back-off resolved
    unigram: np.ndarray  # (W,) float: log P(word) at state 0; -inf for <s>, which is never predicted
    word_ids: dict[str, int]  # the W words, with <s>, </s> and, where the model has it, <unk>

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(self.word_ids)

    def single_precision(self) -> "NGramAutomaton":
        """This automaton with float32 weights; itself where they are."""
        if self.arc_log_prob.dtype == np.float32:
            return self
        weights = ("backoff", "arc_log_prob", "end_log_prob", "unigram")
        return replace(self, **{name: getattr(self, name).astype(np.float32) for name in weights})

    def follow(self, states: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log P(word | state) (n,) float64 and the next states (n,) of states (n,) and word ids (n,).

        The id -1 stands for a word that the model cannot produce: -inf, state 0.
        """
        states = states.astype(np.int64)
        log_probs = np.full(len(states), -np.inf)
        next_states = np.zeros(len(states), np.int64)
        paid = np.zeros(len(states))
        open_ = np.flatnonzero(words >= 0)
        while len(open_):
            found, arcs = _find(self._arc_keys, states[open_] * len(self.unigram) + words[open_])
            hits = open_[found]
            log_probs[hits] = paid[hits] + self.arc_log_prob[arcs[found]]
            next_states[hits] = self.arc_next[arcs[found]]
            open_ = open_[~found]
            paid[open_] += self.backoff[states[open_]]
            states[open_] = self.backoff_state[states[open_]]
        return log_probs, next_states

    @cached_property
    def _arc_keys(self) -> np.ndarray:
        """(A,) int64, ascending: state * W + word."""
        sources = np.repeat(np.arange(len(self.backoff)), np.diff(self.arc_start))
        return sources * len(self.unigram) + self.arc_word

    def arcs_by_order(self) -> list[slice]:
        """The arcs that are k-grams, k = 1 .. order."""
        spelled_by = self._spelled_by()
        found, num_histories = [slice(0, len(self.unigram))], 1
        while len(found) < self.order:
            num_histories = 1 + int(np.searchsorted(spelled_by, found[-1].stop))
            found.append(slice(found[-1].stop, int(self.arc_start[num_histories])))
        return found

    def tables(self) -> list[NGramTable]:
        """The n-grams by order. A back-off weight of zero is written where the n-gram is not a state of its own."""
        spelled_by = self._spelled_by()
        backoff = np.zeros(len(self.arc_word), self.backoff.dtype)
        backoff[spelled_by] = self.backoff[1:]
        tables: list[NGramTable] = []
        sources = np.repeat(np.arange(len(self.backoff)), np.diff(self.arc_start))
        histories, first_state = np.empty((1, 0), np.int32), 0
        for arcs in self.arcs_by_order():
            ngrams = np.column_stack([histories[sources[arcs] - first_state], self.arc_word[arcs]])
            tables.append(NGramTable(ids=ngrams, log_prob=self.arc_log_prob[arcs], backoff=backoff[arcs]))
            first_state += len(histories)
            spelling = spelled_by[(spelled_by >= arcs.start) & (spelled_by < arcs.stop)]
            histories = ngrams[spelling - arcs.start]
        return tables

    def _spelled_by(self) -> np.ndarray:
        """(S - 1,) the arcs that spell the states 1 .. S-1, ascending.

        The arc that spells a state comes from the next shorter history: before all other arcs that enter the state.
        """
        entered, first = np.unique(self.arc_next, return_index=True)
        return first[entered > 0]


def compile_automaton(words: Sequence[str], tables: Sequence[NGramTable]) -> NGramAutomaton:
    """The automaton of `tables`, float64. `words` names their ids; `<s>` and `</s>` are among them.

    Raises `ValueError` for an n-gram whose history is not there.
    """
    word_ids = {word: index for index, word in enumerate(words)}
    bos, eos, num_words = word_ids[BOS], word_ids[EOS], len(words)
    unigrams = tables[0]
    assert np.array_equal(unigrams.ids[:, 0], np.arange(num_words)), "table 1 has row i for word i"
    log_prob = unigrams.log_prob.astype(np.float64)
    log_prob[bos] = -np.inf
    # By order: the key of a row is (row of its history) * W + last word.
    keys: list[np.ndarray] = []
    histories = np.zeros(num_words, np.int64)
    arcs: list[tuple[np.ndarray, ...]] = []
    backoff, backoff_state = [np.zeros(1)], [np.full(1, -1)]
    states = np.zeros(1, np.int64)  # of the rows of the order before, -1 where a row is no state
    arc_keys, arc_next = np.empty(0, np.int64), np.empty(0, np.int64)
    num_states = 1
    for k, table in enumerate(tables, start=1):
        last = table.ids[:, -1].astype(np.int64)
        keys.append(histories * num_words + last)
        sources = states[histories]
        targets = _shorter_states(sources, last, num_words, np.concatenate(backoff_state), arc_keys, arc_next)
        if k < len(tables):
            histories = _history_rows(keys, tables[k].ids)
            if len(histories) and histories.min() < 0:
                ngram = " ".join(words[i] for i in tables[k].ids[int(histories.argmin())])
                raise ValueError(f"n-gram {ngram!r} is in the model without its history")
            is_state = table.backoff != 0
            is_state[histories] = True
            backoff.append(table.backoff[is_state])
            backoff_state.append(targets[is_state])
            states = np.where(is_state, num_states - 1 + np.cumsum(is_state), -1)
            num_states += int(is_state.sum())
            targets = np.where(is_state, states, targets)
        arcs.append((sources, last, log_prob if k == 1 else table.log_prob, targets))
        arc_keys = np.concatenate([arc_keys, sources * num_words + last])
        arc_next = np.concatenate([arc_next, targets])
    assert bool(np.all(np.diff(arc_keys) > 0))
    sources, last, log_probs, targets = (np.concatenate(column) for column in zip(*arcs, strict=True))
    arc_start = np.zeros(num_states + 1, np.int64)
    np.cumsum(np.bincount(sources, minlength=num_states), out=arc_start[1:])
    automaton = NGramAutomaton(
        start=int(targets[bos]) if len(tables) > 1 else 0,
        order=len(tables),
        backoff_state=np.concatenate(backoff_state).astype(np.int32),
        backoff=np.concatenate(backoff),
        arc_start=arc_start,
        arc_word=last.astype(np.int32),
        arc_log_prob=log_probs,
        arc_next=targets.astype(np.int32),
        end_log_prob=np.empty(0),
        unigram=log_probs[:num_words],
        word_ids=word_ids,
    )
    return replace(automaton, end_log_prob=_end_log_probs(automaton, eos))


def _history_rows(keys: Sequence[np.ndarray], ngrams: np.ndarray) -> np.ndarray:
    """Row of the first k-1 words of each of `ngrams` (n, k), sorted, in the table of order k-1; -1 if not there."""
    changes = np.ones(len(ngrams), bool)
    changes[1:] = (ngrams[1:, :-1] != ngrams[:-1, :-1]).any(axis=1)
    heads = ngrams[changes, :-1].astype(np.int64)
    rows = heads[:, 0]
    for position in range(1, heads.shape[1]):
        found, positions = _find(keys[position], rows * len(keys[0]) + heads[:, position])
        rows = np.where(found & (rows >= 0), positions, -1)
    return rows[np.cumsum(changes) - 1]


def _shorter_states(
    sources: np.ndarray,
    last: np.ndarray,
    num_words: int,
    backoff_state: np.ndarray,
    arc_keys: np.ndarray,
    arc_next: np.ndarray,
) -> np.ndarray:
    """State of the longest proper suffix that is a history, of the n-grams source + last word.

    Its last word is an arc from a history shorter than the source; the first on the way of backing off is the longest.
    """
    shorter = np.zeros(len(sources), np.int64)
    states = backoff_state[sources]
    open_ = np.flatnonzero(states >= 0)
    while len(open_):
        found, arcs = _find(arc_keys, states[open_] * num_words + last[open_])
        shorter[open_[found]] = arc_next[arcs[found]]
        open_ = open_[~found]
        states[open_] = backoff_state[states[open_]]
        open_ = open_[states[open_] >= 0]
    return shorter


def _end_log_probs(automaton: NGramAutomaton, eos: int) -> np.ndarray:
    ends = np.full(len(automaton.backoff), np.nan)
    arcs = np.flatnonzero(automaton.arc_word == eos)
    ends[np.searchsorted(automaton.arc_start, arcs, side="right") - 1] = automaton.arc_log_prob[arcs]
    while len(missing := np.flatnonzero(np.isnan(ends))):
        ends[missing] = automaton.backoff[missing] + ends[automaton.backoff_state[missing]]
    return ends


def _find(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each of `wanted` is among the ascending `keys`, and at which index (any index where it is not)."""
    if len(keys) == 0:
        return np.zeros(len(wanted), bool), np.zeros(len(wanted), np.int64)
    indices = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return keys[indices] == wanted, indices
