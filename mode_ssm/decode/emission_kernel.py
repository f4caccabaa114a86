"""Labels of the compiled transducer search: their scores at a frame, and what emits them.

What a state cannot become is not looked at: a bound on what a label, a word and a history can bring is below what
already stands at the end of the frame.

Shapes: V classes.
"""

import math
from typing import Any

import numpy as np

from mode_ssm.decode.arrival_kernel import log_add
from mode_ssm.decode.beam_arrays import (
    ASK,
    DONE,
    FRAMES,
    GROW_CANDIDATES,
    NEEDED,
    WANTED,
    Integer,
    LmArrays,
    SearchArrays,
    Settings,
    TreeArrays,
)
from mode_ssm.decode.compiled import inner
from mode_ssm.decode.history_kernel import find_arc, find_history, follow_arc, fused_score, pair, slot_of
from mode_ssm.decode.transducer_arrays import JoinerArrays, ScoreArrays, StateArrays, TransducerArrays
from mode_ssm.vocab import BLANK, NUM_CLASSES, SIL

_SLACK = 1e-6  # bounds are sums in another order than scores
_SPREAD = 1_000_003  # keeps keys of states apart


@inner
def score_labels(frame: np.ndarray, joiner: JoinerArrays, scores: ScoreArrays, context: int, stamp: int) -> None:
    """log_softmax(W tanh(frame + predictor) + b) + offset, once for a context."""
    if scores.stamp[context] == stamp:
        return
    scores.stamp[context] = stamp
    hidden, predictor, weight = scores.hidden, joiner.predictor[context], joiner.weight
    label, offset = scores.label[context], joiner.offset[context]
    for j in range(len(hidden)):
        hidden[j] = 1.0 - 2.0 / (1.0 + frame[j] * predictor[j])
    label[:] = joiner.bias
    for j in range(len(hidden)):
        for symbol in range(NUM_CLASSES):
            label[symbol] += hidden[j] * weight[j, symbol]
    largest, total = label.max(), 0.0
    for symbol in range(NUM_CLASSES):
        total += math.exp(label[symbol] - largest)
    norm, loudest = largest + math.log(total), -np.inf
    for symbol in range(NUM_CLASSES):
        label[symbol] += offset[symbol] - norm
        if symbol != BLANK:
            loudest = max(loudest, label[symbol])
    scores.loudest[context] = loudest


@inner
def emit_labels(
    tree: TreeArrays, search: SearchArrays, arrays: TransducerArrays, settings: Settings, count: int, floor: float
) -> tuple[int, int, int]:
    """All `count` emitting states emit a label each way that does not score below `floor`.

    Returns how many longer states there are, how many words may end, and `DONE` or what it takes to go on.
    """
    longer, scores, endings = arrays.longer, arrays.scores, arrays.endings
    histories_fused, histories_gain = search.histories.fused, search.histories.gain
    first_child, word_start, labels = tree.first_child, tree.word_start, tree.label
    enter_bound, word_bound, look_ahead = tree.enter_bound, tree.word_bound, tree.look_ahead
    num_contexts, scale, now = len(scores.label), settings.acoustic_scale, search.counters[FRAMES]
    arrays.stamps[0] += 1
    stamp, num_longer, num_endings, room = arrays.stamps[0], 0, 0, len(endings)
    for i in range(count):
        source = arrays.emitting.state[i]
        node, mass = source.node, source.mass
        label_scores, shifted = scores.label[source.context], source.context * NUM_CLASSES
        fused, begin = histories_fused[source.history], now if node == 0 else source.begin
        bound = floor - _SLACK - histories_gain[source.history]
        if num_longer == room:
            search.counters[NEEDED] = 2 * room
            return num_longer, num_endings, GROW_CANDIDATES
        if node == 0 and source.context % NUM_CLASSES != SIL:
            arrived, after = mass + label_scores[SIL], (shifted + SIL) % num_contexts
            if arrived > -np.inf and scale * arrived + fused >= floor:
                num_longer = _go_on(longer, stamp, num_longer, source, 0, after, arrived, fused, now)
        if scale * (mass + scores.loudest[source.context]) + fused + tree.leave_bound[node] < bound:
            continue
        for child in range(first_child[node], first_child[node + 1]):
            label = np.int64(labels[child])
            arrived = mass + label_scores[label]
            acoustic = scale * arrived
            if arrived == -np.inf or acoustic + fused + enter_bound[child] < bound:
                continue
            after = (shifted + label) % num_contexts
            first, last = word_start[child], word_start[child + 1]
            if num_longer == room or num_endings + last - first > room:
                search.counters[NEEDED] = 2 * room + last - first
                return num_longer, num_endings, GROW_CANDIDATES
            bonus = fused + look_ahead[child]
            if acoustic + bonus >= floor and first_child[child + 1] > first_child[child]:
                num_longer = _go_on(longer, stamp, num_longer, source, child, after, arrived, bonus, begin)
            for entry in range(first, last):
                if acoustic + fused + word_bound[entry] >= bound:
                    ending = endings[num_endings]
                    ending.entry, ending.source, ending.context, ending.mass = entry, i, after, arrived
                    num_endings += 1
    return num_longer, num_endings, DONE


@inner
def _go_on(
    longer: StateArrays,
    stamp: int,
    num_longer: int,
    source: Any,
    node: int,
    context: Integer,
    mass: float,
    bonus: float,
    begin: int,
) -> int:
    """A word goes on, or silence begins; returns how many longer states there are now."""
    place, leads = arrive(longer, stamp, num_longer, source.history, -1, node, context, mass)
    longer.state[place].bonus = bonus
    if leads:
        take_frames(longer.state[place], source, begin)
    return max(num_longer, place + 1)


@inner
def end_words(
    tree: TreeArrays,
    lm: LmArrays,
    search: SearchArrays,
    arrays: TransducerArrays,
    settings: Settings,
    num_longer: int,
    num_endings: int,
    floor: float,
) -> tuple[int, int]:
    """The words that may end, if the language model lets them score `floor`.

    Returns how many longer states there are now, and `DONE` or what it takes to go on. Scores that the language model
    has to be asked for are counted in `WANTED`, their keys stand in `wanted`.
    """
    longer, histories, arcs, now = arrays.longer, search.histories, search.arcs, search.counters[FRAMES]
    stamp, room, wanted = arrays.stamps[0], len(longer.state), 0
    for number in range(num_endings):
        ending = arrays.endings[number]
        source = arrays.emitting.state[ending.source]
        history, word = source.history, tree.word[ending.entry]
        lm_log_prob, lm_state = 0.0, 0
        known = find_history(search.history_table, histories.parent, histories.word, history, word)
        if known >= 0:
            history, word, bonus = known, -1, histories.fused[known]
        else:
            key = pair(histories.lm_state[history], tree.lm_word[word])
            if settings.compiled:
                slot = slot_of(key, len(arcs.key) - 1)
                if arcs.key[slot] != key:
                    slot = follow_arc(lm, arcs, histories.lm_state[history], tree.lm_word[word])
            else:
                slot = find_arc(arcs.key, key)
                if slot < 0:
                    if wanted < len(search.wanted):  # those without a place are asked for in another turn
                        search.wanted[wanted] = key
                        wanted += 1
                    continue
            lm_log_prob, lm_state = histories.lm_log_prob[history] + arcs.log_prob[slot], arcs.next_state[slot]
            num_words, correction = histories.num_words[history] + 1, histories.correction[history]
            bonus = fused_score(settings.lm_scale, settings.word_bonus, lm_log_prob, num_words, correction)
        score = settings.acoustic_scale * ending.mass + bonus
        if score == -np.inf or score < floor:
            continue
        if num_longer == room:
            search.counters[NEEDED] = 2 * room
            return num_longer, GROW_CANDIDATES
        place, leads = arrive(longer, stamp, num_longer, history, word, 0, ending.context, ending.mass)
        num_longer = max(num_longer, place + 1)
        state = longer.state[place]
        state.bonus, state.lm_log_prob, state.lm_state = bonus, lm_log_prob, lm_state
        if leads:
            state.begin = state.last_begin = now if source.node == 0 else source.begin
            state.last_end = now + 1
            state.parent_begin, state.parent_end = source.last_begin, source.last_end
    search.counters[WANTED] = wanted
    return num_longer, ASK if wanted > 0 else DONE


@inner
def arrive(
    states: StateArrays,
    stamp: int,
    count: int,
    history: int,
    word: int,
    node: Integer,
    context: Integer,
    mass: float,
) -> tuple[int, bool]:
    """Add `mass` to a state, the next of `count` if it is new; its place, and whether no larger mass came before."""
    mask = len(states.table) - 1
    slot = slot_of(pair(history, node) + _SPREAD * pair(word, context), mask)
    while states.stamp[slot] == stamp:
        place = states.table[slot]
        state = states.state[place]
        if state.history == history and state.node == node and state.context == context and state.word == word:
            leads = mass > state.loudest
            state.mass, state.loudest = log_add(state.mass, mass), max(state.loudest, mass)
            return place, leads
        slot = (slot + 1) & mask
    states.stamp[slot], states.table[slot] = stamp, count
    state = states.state[count]
    state.history, state.word, state.node, state.context = history, word, node, context
    state.mass = state.loudest = mass
    return count, True


@inner
def take_frames(state: Any, source: Any, begin: int) -> None:
    state.begin, state.last_begin, state.last_end = begin, source.last_begin, source.last_end
    state.parent_begin, state.parent_end = source.parent_begin, source.parent_end
