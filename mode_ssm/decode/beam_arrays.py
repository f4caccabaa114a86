"""What the compiled word search works on: flat arrays in named tuples, so that Numba code reads like the text.

Shapes: N tree nodes, E word entries of the tree, W words, H hypotheses, C candidates of a frame, M word histories.
"""

from typing import Any, NamedTuple, TypeVar

import numpy as np

# Places of the numbers in `SearchArrays.counters`.
HYPOTHESES, HISTORIES, COMMITTED, FRAMES, STAMP, WANTED, NEEDED, LAST_COLLECTION = range(8)
# What a run of the kernel ends with: all frames consumed; arrays too small for `NEEDED`; language model scores missing.
DONE, GROW_HYPOTHESES, GROW_CANDIDATES, GROW_HISTORIES, GROW_COMMITTED, ASK = range(6)

ARC_SLOTS = 1 << 14  # of the language model cache, a power of two
Integer = int | np.int64
_NamedArrays = TypeVar("_NamedArrays", bound="HistoryArrays | CandidateArrays | HypothesisArrays")


class Settings(NamedTuple):
    """lm_scale: of both language models together where a second one is fused late. silence_score: added to the
    log-probability of what enters SIL. compiled: whether the language model is an automaton; else its scores are asked
    for, one by one. delayed: whether a second language model scores histories later.
    """

    beam_size: int
    beam_threshold: float
    acoustic_scale: float
    lm_scale: float
    word_bonus: float
    silence_score: float
    compiled: bool
    delayed: bool


class TreeArrays(NamedTuple):
    """`LexiconTree` as the kernel walks it: children of node n are first_child[n] .. first_child[n + 1] - 1; of all
    boundaries those of node 0.
    """

    label: np.ndarray  # (N,) int8
    parent: np.ndarray  # (N,) int32
    first_child: np.ndarray  # (N + 1,) int32
    word_start: np.ndarray  # (N + 1,) int32
    word: np.ndarray  # (E,) int32
    word_label: np.ndarray  # (E,) int8: label of the node that ends the word
    siblings: np.ndarray  # (E,) int32: pronunciations of the word that end in the same label, this one too
    pron_start: np.ndarray  # (W + 1,) int32
    pron_node: np.ndarray  # (E,) int32: where the pronunciations of a word end
    look_ahead: np.ndarray  # (N,) float64
    word_bound: np.ndarray  # (E,) float64: the word adds no more to a score than this
    enter_bound: np.ndarray  # (N,) float64: entering the node adds no more than this, as a prefix or as a word
    leave_bound: np.ndarray  # (N,) float64: the largest enter_bound of the children
    lm_word: np.ndarray  # (W,) int32: ids that the language model has for the words


class LmArrays(NamedTuple):
    """The part of `NGramAutomaton` that the kernel walks; empty where the language model is not one."""

    backoff_state: np.ndarray
    backoff: np.ndarray
    arc_start: np.ndarray
    arc_word: np.ndarray
    arc_log_prob: np.ndarray
    arc_next: np.ndarray
    unigram: np.ndarray


class ArcArrays(NamedTuple):
    """Language model scores by state and word: the last ones that were used, or all that were asked for."""

    key: np.ndarray  # int64, -1 where free
    log_prob: np.ndarray  # float64
    next_state: np.ndarray  # int32


class HypothesisArrays(NamedTuple):
    """A hypothesis is a word history and a node. blank, label, total: log-probability of the labellings that end in a
    blank, in the node's label, in either. begin: first frame of the word begun; last_begin, last_end: of the last whole
    word. open_children: bit q is set where the child with label q, and the same history, is a hypothesis too.
    """

    history: np.ndarray
    node: np.ndarray
    blank: np.ndarray
    label: np.ndarray
    total: np.ndarray
    begin: np.ndarray
    last_begin: np.ndarray
    last_end: np.ndarray
    score: np.ndarray
    open_children: np.ndarray
    next_boundary: np.ndarray  # the next hypothesis of the same pool
    # Pools: the boundaries of one history. They lead to the same first phonemes.
    pool_first: np.ndarray
    pool_best: np.ndarray
    pool_speech_best: np.ndarray  # the best one that is not SIL, -1 where there is none
    pool_total: np.ndarray
    pool_speech: np.ndarray  # log-probability of the boundaries that are not SIL
    pool_labels: np.ndarray  # bits of the boundaries' labels
    pool_open: np.ndarray  # bits of the children that are hypotheses


class CandidateArrays(NamedTuple):
    """Hypotheses of the next frame; the first H are those of this one. word: -1, or the word that ends and extends
    `history`. entry, source, mass: words that may end, before their language model score is known; source is a
    hypothesis, or -2 - a pool.
    """

    history: np.ndarray
    node: np.ndarray
    word: np.ndarray
    blank: np.ndarray
    label: np.ndarray
    score: np.ndarray
    scratch: np.ndarray
    lm_log_prob: np.ndarray
    lm_state: np.ndarray
    begin: np.ndarray
    last_begin: np.ndarray
    last_end: np.ndarray
    entry: np.ndarray
    source: np.ndarray
    mass: np.ndarray


class HistoryArrays(NamedTuple):
    """A tree of word sequences; the parent comes before its children. lm_log_prob is of all words from the start of the
    sentence, fused what they add to the score. correction: the part of fused that a second language model brought;
    late_state: its state after the last word, -1 while it has not seen the last word; gain: the most that it likes a
    known longer history better than the first model does.
    parent_begin, parent_end: frames of the word before the last.
    """

    parent: np.ndarray
    word: np.ndarray
    num_words: np.ndarray
    lm_state: np.ndarray
    lm_log_prob: np.ndarray
    fused: np.ndarray
    correction: np.ndarray
    late_state: np.ndarray
    gain: np.ndarray
    parent_begin: np.ndarray
    parent_end: np.ndarray
    pool: np.ndarray
    pool_stamp: np.ndarray
    mark: np.ndarray


class CommittedArrays(NamedTuple):
    """Words that every hypothesis shares and that have left the tree of histories, and their frames."""

    word: np.ndarray
    begin: np.ndarray
    end: np.ndarray


class SearchArrays(NamedTuple):
    """Everything that changes in a search. The tables are hash tables of two to four times the arrays' lengths."""

    counters: np.ndarray  # (8,) int64
    hypotheses: HypothesisArrays
    candidates: CandidateArrays
    histories: HistoryArrays
    history_table: np.ndarray  # of (parent, word), -1 where free
    active_table: np.ndarray  # of (history, node)
    active_stamp: np.ndarray
    committed: CommittedArrays
    arcs: ArcArrays
    wanted: np.ndarray  # keys of scores that the language model has not been asked for yet


_DTYPES: dict[str, Any] = {
    **dict.fromkeys(("blank", "label", "total", "score", "scratch", "lm_log_prob", "mass"), np.float64),
    **dict.fromkeys(("fused", "correction", "gain", "pool_total", "pool_speech"), np.float64),
    **dict.fromkeys(("open_children", "pool_labels", "pool_open", "pool_stamp"), np.int64),
}


def empty_arcs(slots: int) -> ArcArrays:
    return ArcArrays(np.full(slots, -1, np.int64), np.empty(slots), np.empty(slots, np.int32))


def new_search(beam_size: int, lm_state: int) -> SearchArrays:
    """The arrays of a search before its first frame: one hypothesis, at the start of the sentence."""
    hypotheses = _allocate(HypothesisArrays, min(beam_size, 512))
    histories = _allocate(HistoryArrays, max(1024, 8 * min(beam_size, 512)))
    search = SearchArrays(
        counters=np.zeros(8, np.int64),
        hypotheses=hypotheses,
        candidates=_allocate(CandidateArrays, 8192),
        histories=histories,
        history_table=np.full(_slots(len(histories.parent)), -1, np.int32),
        active_table=np.zeros(_slots(len(hypotheses.node)), np.int32),
        active_stamp=np.zeros(_slots(len(hypotheses.node)), np.int64),
        committed=CommittedArrays(*(np.zeros(1024, np.int32) for _ in range(3))),
        arcs=empty_arcs(ARC_SLOTS),
        wanted=np.zeros(8192, np.int64),
    )
    search.counters[[HYPOTHESES, HISTORIES]] = 1
    hypotheses.label[0] = -np.inf
    histories.parent[0] = histories.word[0] = -1
    histories.lm_state[0] = lm_state
    return search


def grown(search: SearchArrays, status: int) -> SearchArrays:
    """The same search in arrays that are large enough for what the kernel asked for."""
    needed = int(search.counters[NEEDED])
    if status == GROW_HYPOTHESES:
        hypotheses = _longer(search.hypotheses, max(needed, 2 * len(search.hypotheses.node)))
        slots = _slots(len(hypotheses.node))
        return search._replace(
            hypotheses=hypotheses, active_table=np.zeros(slots, np.int32), active_stamp=np.zeros(slots, np.int64)
        )
    if status == GROW_CANDIDATES:
        size = max(needed, 2 * len(search.candidates.node))
        return search._replace(candidates=_allocate(CandidateArrays, size), wanted=np.zeros(size, np.int64))
    if status == GROW_HISTORIES:
        histories = _longer(search.histories, max(needed, 2 * len(search.histories.parent)))
        return search._replace(histories=histories, history_table=np.full(_slots(len(histories.parent)), -1, np.int32))
    committed = (np.concatenate([array, np.zeros(max(needed, len(array)), np.int32)]) for array in search.committed)
    return search._replace(committed=CommittedArrays(*committed))


def _slots(length: int) -> int:
    """The power of two from 2 * length up."""
    return 1 << max(length, 1).bit_length() + 1


def _allocate(kind: type[_NamedArrays], length: int) -> _NamedArrays:
    return kind(*(np.zeros(length, _DTYPES.get(name, np.int32)) for name in kind._fields))


def _longer(arrays: _NamedArrays, length: int) -> _NamedArrays:
    longer = _allocate(type(arrays), max(length, len(arrays[0])))
    for old, new in zip(arrays, longer, strict=True):
        new[: len(old)] = old
    return longer
