"""Word histories and language model scores of the compiled search.

The tree of histories holds what some hypothesis extends or may soon extend again. When its arrays are full, histories
that no hypothesis descends from are dropped, and the words above the last one that all hypotheses share leave the tree.
So memory does not grow with the length of the stream, but for twelve bytes a word.
"""

import numpy as np

from mode_ssm.decode.beam_arrays import (
    COMMITTED,
    HISTORIES,
    HYPOTHESES,
    ArcArrays,
    HistoryArrays,
    Integer,
    LmArrays,
    SearchArrays,
    Settings,
)
from mode_ssm.decode.compiled import compiled, inner

_MIXER = -7046029254386353131  # the golden ratio of 64 bits


@inner
def pair(first: Integer, second: Integer) -> Integer:
    """Two numbers as one key."""
    return (np.int64(first) << 32) | np.int64(second)


@inner
def slot_of(key: Integer, mask: int) -> Integer:
    mixed = key * np.int64(_MIXER)
    return (mixed ^ (mixed >> 31)) & mask


@inner
def find_history(table: np.ndarray, parents: np.ndarray, words: np.ndarray, parent: int, word: int) -> int:
    """The history `parent` + `word`, -1 if it is not in the tree of `parents` and `words`."""
    mask = len(table) - 1
    slot = slot_of(pair(parent, word), mask)
    while table[slot] >= 0:
        found = table[slot]
        if parents[found] == parent and words[found] == word:
            return found
        slot = (slot + 1) & mask
    return -1


@inner
def add_history(
    search: SearchArrays, settings: Settings, parent: int, word: int, lm_log_prob: float, lm_state: int
) -> int:
    """A new history; the caller has made sure that it is new and that there is room."""
    histories = search.histories
    number = search.counters[HISTORIES]
    search.counters[HISTORIES] += 1
    histories.parent[number] = parent
    histories.word[number] = word
    histories.num_words[number] = histories.num_words[parent] + 1
    histories.lm_state[number] = lm_state
    histories.lm_log_prob[number] = lm_log_prob
    histories.correction[number] = histories.correction[parent]
    histories.late_state[number] = -1 if settings.delayed else 0
    histories.gain[number] = 0.0
    histories.fused[number] = fused_score(
        settings.lm_scale, settings.word_bonus, lm_log_prob, histories.num_words[number], histories.correction[number]
    )
    histories.pool_stamp[number] = 0
    _enter(histories, search.history_table, number)
    return number


@inner
def fused_score(lm_scale: float, word_bonus: float, lm_log_prob: float, num_words: int, correction: float) -> float:
    if lm_log_prob == -np.inf:  # what the language model forbids stays forbidden at every scale
        return -np.inf
    return lm_scale * lm_log_prob + word_bonus * num_words + correction


@compiled
def fill_history_table(search: SearchArrays) -> None:
    """Make the hash table of the tree anew."""
    search.history_table[:] = -1
    for number in range(search.counters[HISTORIES]):
        if search.histories.parent[number] >= 0:
            _enter(search.histories, search.history_table, number)


@inner
def _enter(histories: HistoryArrays, table: np.ndarray, number: int) -> None:
    mask = len(table) - 1
    slot = slot_of(pair(histories.parent[number], histories.word[number]), mask)
    while table[slot] >= 0:
        slot = (slot + 1) & mask
    table[slot] = number


@compiled
def shared_history(search: SearchArrays) -> int:
    """The longest history that all hypotheses share. Leaves the number of live histories below in `mark`, 0: dead."""
    histories, hypotheses = search.histories, search.hypotheses
    mark = histories.mark
    mark[: search.counters[HISTORIES]] = 0
    count = search.counters[HYPOTHESES]
    for i in range(count):
        mark[hypotheses.history[i]] += 1
    for number in range(search.counters[HISTORIES] - 1, 0, -1):
        if mark[number] > 0 and histories.parent[number] >= 0:
            mark[histories.parent[number]] += mark[number]
    shared = 0
    for number in range(search.counters[HISTORIES]):  # of those with all hypotheses below, the longest comes last
        if mark[number] == count:
            shared = number
    return shared


@inner
def collect_histories(search: SearchArrays, settings: Settings) -> None:
    """Drop dead histories; words above the shared one move to `committed`, where the caller has made room.

    Words that a second language model has yet to see stay, and so does what it has scored until its next turn.
    """
    histories, hypotheses, counters = search.histories, search.hypotheses, search.counters
    shared = shared_history(search)
    while histories.late_state[shared] < 0:
        shared = histories.parent[shared]
    _commit(search, shared)
    mark, kept = histories.mark, 0
    for number in range(shared, counters[HISTORIES]):
        above = histories.parent[number]
        scored = settings.delayed and histories.late_state[number] >= 0 and above >= shared and mark[above] >= 0
        if mark[number] == 0 and not scored:
            mark[number] = -1
            continue
        histories.parent[kept] = -1 if number == shared else mark[histories.parent[number]]
        histories.word[kept] = histories.word[number]
        histories.num_words[kept] = histories.num_words[number]
        histories.lm_state[kept] = histories.lm_state[number]
        histories.lm_log_prob[kept] = histories.lm_log_prob[number]
        histories.fused[kept] = histories.fused[number]
        histories.correction[kept] = histories.correction[number]
        histories.late_state[kept] = histories.late_state[number]
        histories.gain[kept] = histories.gain[number]
        histories.parent_begin[kept] = histories.parent_begin[number]
        histories.parent_end[kept] = histories.parent_end[number]
        mark[number] = kept
        kept += 1
    histories.pool_stamp[:kept] = 0
    for i in range(counters[HYPOTHESES]):
        hypotheses.history[i] = mark[hypotheses.history[i]]
    counters[HISTORIES] = kept
    fill_history_table(search)


@inner
def _commit(search: SearchArrays, shared: int) -> None:
    """The words of the strict ancestors of `shared` that have one."""
    histories, committed = search.histories, search.committed
    first = search.counters[COMMITTED]
    count, number = 0, shared
    while histories.parent[number] >= 0:
        number = histories.parent[number]
        count += histories.word[number] >= 0
    number, place = shared, first + count
    while histories.parent[number] >= 0:
        child, number = number, histories.parent[number]
        if histories.word[number] >= 0:
            place -= 1
            committed.word[place] = histories.word[number]
            committed.begin[place] = histories.parent_begin[child]
            committed.end[place] = histories.parent_end[child]
    search.counters[COMMITTED] = first + count


@compiled
def spell(
    search: SearchArrays, of: np.ndarray, last_begin: np.ndarray, last_end: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Words of the histories `of` (n,) that are not committed, given the frames of their last words.

    Returns (words of all, 3): word, first frame, frame after; and where each history starts in it (n + 1,).
    """
    histories = search.histories
    start = np.zeros(len(of) + 1, np.int64)
    for i in range(len(of)):
        start[i + 1] = start[i]
        number = of[i]
        while number >= 0:
            start[i + 1] += histories.word[number] >= 0
            number = histories.parent[number]
    spelled = np.empty((start[-1], 3), np.int32)
    for i in range(len(of)):
        begin, end, number = last_begin[i], last_end[i], of[i]
        for place in range(start[i + 1] - 1, start[i] - 1, -1):
            spelled[place, 0], spelled[place, 1], spelled[place, 2] = histories.word[number], begin, end
            begin, end = histories.parent_begin[number], histories.parent_end[number]
            number = histories.parent[number]
    return spelled, start


@compiled
def word_posteriors(spelled: np.ndarray, start: np.ndarray, posterior: np.ndarray, count: int) -> np.ndarray:
    """For every word of the first `count` of the spelled histories: the posterior of the histories that have the same
    word at an overlapping time.
    """
    found = np.zeros(start[count])
    by_word = np.argsort(spelled[:, 0], kind="mergesort")  # stable: within a word by history
    history = np.empty(len(spelled), np.int32)
    for i in range(len(posterior)):
        history[start[i] : start[i + 1]] = i
    first = 0
    while first < len(by_word):
        last = first
        while last < len(by_word) and spelled[by_word[last], 0] == spelled[by_word[first], 0]:
            last += 1
        for place in range(first, last):
            word = by_word[place]
            if word >= start[count]:
                break
            begin, end, counted = spelled[word, 1], spelled[word, 2], -1
            for other in by_word[first:last]:
                overlaps = spelled[other, 1] == begin or (spelled[other, 1] < end and begin < spelled[other, 2])
                if overlaps and history[other] != counted:
                    counted = history[other]
                    found[word] = min(1.0, found[word] + posterior[counted])
        first = last
    return found


@inner
def find_arc(keys: np.ndarray, key: Integer) -> Integer:
    """The slot of a score among those that were asked for, -1 if it is not there."""
    mask = len(keys) - 1
    slot = slot_of(key, mask)
    while keys[slot] >= 0:
        if keys[slot] == key:
            return slot
        slot = (slot + 1) & mask
    return -1


@inner
def follow_arc(lm: LmArrays, arcs: ArcArrays, state: int, word: int) -> Integer:
    """Enter log P(word | state) and the next state in the cache `arcs`; returns the slot."""
    slot = slot_of(pair(state, word), len(arcs.key) - 1)
    arcs.key[slot] = pair(state, word)
    log_prob = 0.0
    while state > 0:
        low, end = lm.arc_start[state], lm.arc_start[state + 1]
        high = end
        while low < high:
            middle = (low + high) >> 1
            if lm.arc_word[middle] < word:
                low = middle + 1
            else:
                high = middle
        if low < end and lm.arc_word[low] == word:
            arcs.log_prob[slot], arcs.next_state[slot] = log_prob + lm.arc_log_prob[low], lm.arc_next[low]
            return slot
        log_prob += lm.backoff[state]
        state = lm.backoff_state[state]
    arcs.log_prob[slot], arcs.next_state[slot] = log_prob + lm.unigram[word], lm.arc_next[word]
    return slot


@compiled
def add_arcs(arcs: ArcArrays, keys: np.ndarray, log_probs: np.ndarray, next_states: np.ndarray) -> None:
    """Enter scores that were asked for; the table has room for them."""
    mask = len(arcs.key) - 1
    for i in range(len(keys)):
        slot = slot_of(keys[i], mask)
        while arcs.key[slot] >= 0 and arcs.key[slot] != keys[i]:
            slot = (slot + 1) & mask
        arcs.key[slot], arcs.log_prob[slot], arcs.next_state[slot] = keys[i], log_probs[i], next_states[i]
