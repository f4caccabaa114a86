"""One frame of the compiled transducer search: what `transducer_words_reference` does.

States emit labels, one after another (`emission_kernel`), until the blank takes them to the next frame. After every
label, and at the end of the frame, the best stay.

Shapes: T frames, J d_joint.
"""

import numpy as np

from mode_ssm.decode.beam_arrays import (
    COMMITTED,
    DONE,
    FRAMES,
    GROW_CANDIDATES,
    GROW_COMMITTED,
    GROW_HISTORIES,
    GROW_HYPOTHESES,
    HISTORIES,
    HYPOTHESES,
    NEEDED,
    LmArrays,
    SearchArrays,
    Settings,
    TreeArrays,
)
from mode_ssm.decode.compiled import compiled, inner
from mode_ssm.decode.emission_kernel import arrive, emit_labels, end_words, score_labels, take_frames
from mode_ssm.decode.history_kernel import add_history, collect_histories, find_history
from mode_ssm.decode.transducer_arrays import JoinerArrays, StateArrays, TransducerArrays
from mode_ssm.vocab import BLANK


@compiled
def advance_transducer(
    frames: np.ndarray,
    joiner: JoinerArrays,
    tree: TreeArrays,
    lm: LmArrays,
    search: SearchArrays,
    arrays: TransducerArrays,
    settings: Settings,
    max_symbols: int,
) -> tuple[int, int]:
    """Search on through the `exponentials` of projected frames (T, J), with at most `max_symbols` labels in each.

    Returns the number of frames consumed and why it stopped there; after the caller has seen to it, the rest follows.
    """
    for t in range(len(frames)):
        if search.counters[HYPOTHESES] > 0:
            status = _make_room(search, settings)
            if status == DONE:
                status = _advance_frame(frames[t], joiner, tree, lm, search, arrays, settings, max_symbols)
            if status != DONE:
                return t, status
        search.counters[FRAMES] += 1
    return len(frames), DONE


@inner
def _make_room(search: SearchArrays, settings: Settings) -> int:
    """See that half of the tree of histories is free: they cannot be collected within a frame."""
    counters, size = search.counters, len(search.histories.parent)
    if 2 * counters[HISTORIES] <= size:
        return DONE
    if counters[COMMITTED] + counters[HISTORIES] > len(search.committed.word):
        counters[NEEDED] = counters[HISTORIES]
        return GROW_COMMITTED
    collect_histories(search, settings)
    if 4 * counters[HISTORIES] > size:  # else the next collection would come too soon
        counters[NEEDED] = 2 * size
        return GROW_HISTORIES
    return DONE


@inner
def _advance_frame(
    frame: np.ndarray,
    joiner: JoinerArrays,
    tree: TreeArrays,
    lm: LmArrays,
    search: SearchArrays,
    arrays: TransducerArrays,
    settings: Settings,
    max_symbols: int,
) -> int:
    """Until its last step changes nothing but new histories, so that a frame can begin anew in larger arrays."""
    count, num_finished, finished = search.counters[HYPOTHESES], 0, arrays.finished
    if count > len(arrays.emitting.state):
        search.counters[NEEDED] = count
        return GROW_CANDIDATES
    _read_hypotheses(tree, search, arrays)
    arrays.stamps[0] += 1
    stamp = arrays.stamps[0]
    for emitted in range(max_symbols + 1):
        if num_finished + count > len(finished.state):
            search.counters[NEEDED] = num_finished + count
            return GROW_CANDIDATES
        num_finished = _leave_frame(frame, joiner, search, arrays, stamp, count, num_finished)
        best = _score_states(finished, settings, num_finished)
        if emitted == max_symbols:
            break
        floor = best - settings.beam_threshold
        if num_finished >= settings.beam_size:
            floor = max(floor, _nth_largest(finished.score[:num_finished], settings.beam_size))
        num_longer, num_endings, status = emit_labels(tree, search, arrays, settings, count, floor)
        if status == DONE:
            num_longer, status = end_words(tree, lm, search, arrays, settings, num_longer, num_endings, floor)
        if status == DONE:
            count, status = _keep_longer(search, arrays, settings, num_longer, best)
        if status != DONE:
            return status
        if count == 0:
            break
    return _keep_finished(search, arrays, settings, num_finished)


@inner
def _read_hypotheses(tree: TreeArrays, search: SearchArrays, arrays: TransducerArrays) -> None:
    hypotheses = search.hypotheses
    for i in range(search.counters[HYPOTHESES]):
        state, history, node = arrays.emitting.state[i], hypotheses.history[i], hypotheses.node[i]
        state.history, state.node, state.context = history, node, arrays.context[i]
        state.mass, state.bonus = hypotheses.blank[i], search.histories.fused[history] + tree.look_ahead[node]
        state.begin = hypotheses.begin[i]
        state.last_begin, state.last_end = hypotheses.last_begin[i], hypotheses.last_end[i]


@inner
def _leave_frame(
    frame: np.ndarray,
    joiner: JoinerArrays,
    search: SearchArrays,
    arrays: TransducerArrays,
    stamp: int,
    count: int,
    num_finished: int,
) -> int:
    """All `count` emitting states emit the blank; returns how many states are finished now."""
    finished, histories, now = arrays.finished, search.histories, search.counters[FRAMES]
    for i in range(count):
        source = arrays.emitting.state[i]
        score_labels(frame, joiner, arrays.scores, source.context, now + 1)
        mass = source.mass + arrays.scores.label[source.context, BLANK]
        if mass == -np.inf:
            continue
        place, leads = arrive(finished, stamp, num_finished, source.history, -1, source.node, source.context, mass)
        num_finished = max(num_finished, place + 1)
        finished.state[place].bonus = source.bonus
        if leads:
            take_frames(finished.state[place], source, source.begin)
            if source.node == 0 and source.last_end == now + 1:  # a word has just ended, by a better way than before
                histories.parent_begin[source.history] = source.parent_begin
                histories.parent_end[source.history] = source.parent_end
    return num_finished


@inner
def _score_states(states: StateArrays, settings: Settings, count: int) -> float:
    """Scores of the first `count` states; returns the best."""
    best = -np.inf
    for place in range(count):
        state = states.state[place]
        states.score[place] = settings.acoustic_scale * state.mass + state.bonus
        best = max(best, states.score[place])
    return best


@inner
def _keep_longer(
    search: SearchArrays, arrays: TransducerArrays, settings: Settings, count: int, best: float
) -> tuple[int, int]:
    """The best of the longer states emit next, their words become histories; `best` is that of the finished ones.

    Returns how many emit, and `DONE` or what it takes to go on.
    """
    longer, emitting, histories = arrays.longer, arrays.emitting, search.histories
    best = max(best, _score_states(longer, settings, count))
    floor, equal = _cut(longer.score[:count], settings, best)
    kept = 0
    for place in range(count):
        score = longer.score[place]
        if score < floor or (score == floor and equal == 0):
            continue
        equal -= score == floor
        state = longer.state[place]
        if state.word >= 0:
            history = find_history(search.history_table, histories.parent, histories.word, state.history, state.word)
            if history < 0:
                if search.counters[HISTORIES] == len(histories.parent):
                    search.counters[NEEDED] = 2 * len(histories.parent)
                    return kept, GROW_HISTORIES
                history = add_history(search, settings, state.history, state.word, state.lm_log_prob, state.lm_state)
                histories.parent_begin[history] = state.parent_begin
                histories.parent_end[history] = state.parent_end
            state.history = history
        emitting.state[kept] = state
        kept += 1
    return kept, DONE


@inner
def _keep_finished(search: SearchArrays, arrays: TransducerArrays, settings: Settings, count: int) -> int:
    """The best of the finished states become the hypotheses."""
    finished, hypotheses = arrays.finished, search.hypotheses
    survivors = min(count, settings.beam_size)
    if survivors > len(hypotheses.node):
        search.counters[NEEDED] = survivors
        return GROW_HYPOTHESES
    floor, equal = _cut(finished.score[:count], settings, _score_states(finished, settings, count))
    kept = 0
    for place in range(count):
        score = finished.score[place]
        if score < floor or (score == floor and equal == 0):
            continue
        equal -= score == floor
        state = finished.state[place]
        hypotheses.history[kept], hypotheses.node[kept] = state.history, state.node
        arrays.context[kept] = state.context
        hypotheses.blank[kept], hypotheses.label[kept] = state.mass, -np.inf
        hypotheses.begin[kept] = state.begin
        hypotheses.last_begin[kept], hypotheses.last_end[kept] = state.last_begin, state.last_end
        hypotheses.score[kept] = score
        kept += 1
    search.counters[HYPOTHESES] = kept
    return DONE


@inner
def _cut(scores: np.ndarray, settings: Settings, best: float) -> tuple[float, int]:
    """The score from which on states stay, and how many of those with this very score."""
    floor = best - settings.beam_threshold
    if len(scores) <= settings.beam_size:
        return floor, len(scores)
    last = _nth_largest(scores, settings.beam_size)
    if last < floor:
        return floor, len(scores)
    return last, settings.beam_size - int(np.count_nonzero(scores > last))


@inner
def _nth_largest(values: np.ndarray, n: int) -> float:
    return np.partition(values, len(values) - n)[len(values) - n]
