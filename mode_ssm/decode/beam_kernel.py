"""One frame of the compiled word search, exact: what `ctc_beam_reference` does, without looking at most of it.

A candidate of the next frame is one of this frame's hypotheses, a child of one, or a word that ends. Hypotheses pull
the mass that flows into them. Everything else is new, gets its mass from one place (the pool of a history's boundaries
counts as one), and matters only if it can enter the beam: a lower bound of the beam's worst score is known as soon as
the hypotheses have their mass.

Shapes: V classes.
"""

import numpy as np

from mode_ssm.decode.arrival_kernel import find_hypothesis, index_hypotheses, pool_mass, pull, word_mass
from mode_ssm.decode.beam_arrays import (
    ASK,
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
    STAMP,
    WANTED,
    CandidateArrays,
    Integer,
    LmArrays,
    SearchArrays,
    Settings,
    TreeArrays,
)
from mode_ssm.decode.compiled import compiled, inner
from mode_ssm.decode.history_kernel import (
    add_history,
    collect_histories,
    find_arc,
    find_history,
    follow_arc,
    fused_score,
    pair,
    slot_of,
)
from mode_ssm.vocab import NUM_CLASSES, SIL

_SLACK = 1e-6  # bounds are sums in another order than scores


@compiled
def advance(
    frames: np.ndarray, tree: TreeArrays, lm: LmArrays, search: SearchArrays, settings: Settings
) -> tuple[int, int]:
    """Search on through frames (T, V) of log-probabilities, the blank's penalty taken off.

    Returns the number of frames consumed and why it stopped there; after the caller has seen to it, the rest follows.
    """
    for t in range(len(frames)):
        if search.counters[HYPOTHESES] > 0:
            status = _make_room(tree, search, settings)
            if status == DONE:
                status = _advance_frame(frames[t], tree, lm, search, settings)
            if status != DONE:
                return t, status
        search.counters[FRAMES] += 1
    return len(frames), DONE


@inner
def _make_room(tree: TreeArrays, search: SearchArrays, settings: Settings) -> int:
    """See that whatever a frame brings has a place."""
    hypotheses, counters = search.hypotheses, search.counters
    count = counters[HYPOTHESES]
    bound = count
    for i in range(count):
        node = hypotheses.node[i] if hypotheses.node[i] >= NUM_CLASSES else 0
        first, last = tree.first_child[node], tree.first_child[node + 1]
        bound += 1 + last - first + tree.word_start[last] - tree.word_start[first]
    if bound > len(search.candidates.node):
        counters[NEEDED] = bound
        return GROW_CANDIDATES
    survivors = min(bound, settings.beam_size)
    if survivors > len(hypotheses.node):
        counters[NEEDED] = survivors
        return GROW_HYPOTHESES
    size = len(search.histories.parent)
    if counters[HISTORIES] + survivors > size:
        if counters[COMMITTED] + counters[HISTORIES] > len(search.committed.word):
            counters[NEEDED] = counters[HISTORIES]
            return GROW_COMMITTED
        collect_histories(search, settings)
        if counters[HISTORIES] + 2 * survivors > size:  # else the next collection would come too soon
            counters[NEEDED] = counters[HISTORIES] + 4 * survivors
            return GROW_HISTORIES
    return DONE


@inner
def _advance_frame(frame: np.ndarray, tree: TreeArrays, lm: LmArrays, search: SearchArrays, settings: Settings) -> int:
    index_hypotheses(tree, search)
    pull(frame, tree, search, settings)
    count = search.counters[HYPOTHESES]
    floor = -np.inf
    if count >= settings.beam_size:
        floor = _nth_largest(search.candidates.score, search.candidates.scratch, count, settings.beam_size)
    floor = max(floor, search.candidates.score[:count].max() - settings.beam_threshold)
    loudest = -np.inf
    for label in range(1, NUM_CLASSES):
        loudest = max(loudest, frame[label])
    count, num_ends = _enter_prefixes(frame, tree, search, settings, floor, loudest)
    if count >= settings.beam_size:
        floor = max(floor, _nth_largest(search.candidates.score, search.candidates.scratch, count, settings.beam_size))
    count = _end_words(frame, tree, lm, search, settings, floor, count, num_ends)
    if search.counters[WANTED] > 0:
        return ASK
    _keep_best(search, settings, count)
    return DONE


@inner
def _enter_prefixes(
    frame: np.ndarray, tree: TreeArrays, search: SearchArrays, settings: Settings, floor: float, loudest: float
) -> tuple[int, int]:
    """Candidates for the children that are no hypotheses yet, and the words that may end, whose score is still unknown.

    Returns how many candidates there are now, and how many words.
    """
    hypotheses, histories, candidates = search.hypotheses, search.histories, search.candidates
    hypothesis_history, hypothesis_node = hypotheses.history, hypotheses.node
    first_child, word_start, labels = tree.first_child, tree.word_start, tree.label
    enter_bound, word_bound, look_ahead = tree.enter_bound, tree.word_bound, tree.look_ahead
    ended_entry, ended_source, ended_mass = candidates.entry, candidates.source, candidates.mass
    scale, now = settings.acoustic_scale, search.counters[FRAMES]
    count, num_ends = search.counters[HYPOTHESES], 0
    for i in range(search.counters[HYPOTHESES]):
        history, node = hypothesis_history[i], hypothesis_node[i]
        fused, bound = histories.fused[history], floor - _SLACK - histories.gain[history]
        if node > SIL:
            total, repeated = hypotheses.total[i], np.int64(1) << np.int64(labels[node])
            source, opened, begin = i, hypotheses.open_children[i], hypotheses.begin[i]
        else:
            pool = histories.pool[history]
            if hypotheses.pool_best[pool] != i:
                continue
            total, repeated = hypotheses.pool_total[pool], hypotheses.pool_labels[pool]
            source, opened, begin, node = -2 - pool, hypotheses.pool_open[pool], now, 0
            mass = hypotheses.pool_speech[pool] + frame[SIL] + settings.silence_score
            score = scale * mass + (fused + look_ahead[SIL])
            if (opened >> SIL) & 1 == 0 and score > -np.inf and score >= floor:
                speech = hypotheses.pool_speech_best[pool]
                _add(candidates, count, history, SIL, mass, score, begin)
                candidates.last_begin[count] = hypotheses.last_begin[speech]
                candidates.last_end[count] = hypotheses.last_end[speech]
                count += 1
        if scale * (total + loudest) + fused + tree.leave_bound[node] < bound:
            continue
        base = scale * total + fused
        for child in range(first_child[node], first_child[node + 1]):
            label = np.int64(labels[child])
            if base + scale * frame[label] + enter_bound[child] < bound:
                continue
            mass = total
            if (repeated >> label) & 1:  # the same label again is a new one only after a blank
                mass = hypotheses.blank[i] if source >= 0 else pool_mass(hypotheses, -2 - source, label)
            mass += frame[label]
            if mass == -np.inf:
                continue
            acoustic = scale * mass
            if (opened >> label) & 1 == 0 and first_child[child + 1] > first_child[child]:
                score = acoustic + (fused + look_ahead[child])
                if score > -np.inf and score >= bound:
                    _add(candidates, count, history, child, mass, score, begin)
                    candidates.last_begin[count] = hypotheses.last_begin[i]
                    candidates.last_end[count] = hypotheses.last_end[i]
                    count += 1
            for entry in range(word_start[child], word_start[child + 1]):
                if acoustic + fused + word_bound[entry] >= bound:
                    ended_entry[num_ends], ended_source[num_ends], ended_mass[num_ends] = entry, source, mass
                    num_ends += 1
    return count, num_ends


@inner
def _add(
    candidates: CandidateArrays, place: int, history: int, node: Integer, mass: float, score: float, begin: int
) -> None:
    candidates.history[place], candidates.node[place], candidates.word[place] = history, node, -1
    candidates.blank[place], candidates.label[place], candidates.score[place] = -np.inf, mass, score
    candidates.begin[place] = begin


@inner
def _end_words(
    frame: np.ndarray,
    tree: TreeArrays,
    lm: LmArrays,
    search: SearchArrays,
    settings: Settings,
    floor: float,
    count: int,
    num_ends: int,
) -> int:
    """Candidates for the words that end; returns how many candidates there are now.

    Scores that the language model has to be asked for are counted in `WANTED`, their keys stand in `wanted`.
    """
    hypotheses, candidates, histories, arcs = search.hypotheses, search.candidates, search.histories, search.arcs
    hypothesis_history, hypothesis_node, pool_best = hypotheses.history, hypotheses.node, hypotheses.pool_best
    parents, words, fused, lm_state = histories.parent, histories.word, histories.fused, histories.lm_state
    gain = histories.gain
    history_table, active = search.history_table, (search.active_table, search.active_stamp)
    entries, sources, masses = candidates.entry, candidates.source, candidates.mass
    tree_word, word_bound, lm_word = tree.word, tree.word_bound, tree.lm_word
    arc_key, arc_log_prob = arcs.key, arcs.log_prob
    arc_mask, stamp = len(arc_key) - 1, search.counters[STAMP]
    wanted = 0
    for place in range(num_ends):
        entry, source, mass = entries[place], sources[place], masses[place]
        origin = source if source >= 0 else pool_best[-2 - source]
        history = hypothesis_history[origin]
        if settings.acoustic_scale * mass + fused[history] + word_bound[entry] < floor - _SLACK - gain[history]:
            continue
        word, boundary = tree_word[entry], np.int64(tree.word_label[entry])
        longer = find_history(history_table, parents, words, history, word)
        if longer >= 0:
            if find_hypothesis(*active, hypothesis_history, hypothesis_node, stamp, longer, boundary) >= 0:
                continue  # it pulls for itself
            lm_log_prob, next_state = histories.lm_log_prob[longer], histories.lm_state[longer]
            correction = histories.correction[longer]
        else:
            key = pair(lm_state[history], lm_word[word])
            if settings.compiled:
                slot = slot_of(key, arc_mask)
                if arc_key[slot] != key:
                    slot = follow_arc(lm, arcs, lm_state[history], lm_word[word])
            else:
                slot = find_arc(arc_key, key)
                if slot < 0:
                    search.wanted[wanted] = key
                    wanted += 1
                    continue
            lm_log_prob, next_state = histories.lm_log_prob[history] + arc_log_prob[slot], arcs.next_state[slot]
            correction = histories.correction[history]
        num_words = histories.num_words[history] + 1
        added = fused_score(settings.lm_scale, settings.word_bonus, lm_log_prob, num_words, correction)
        if tree.siblings[entry] > 1:
            mass, best = word_mass(tree, search, history, word, boundary)
            if best != source:
                continue  # another one of its pronunciations speaks for all
            mass += frame[boundary]
        score = settings.acoustic_scale * mass + (added + tree.look_ahead[boundary])
        if score > -np.inf and score >= floor:
            begin = hypotheses.begin[origin] if source >= 0 else search.counters[FRAMES]
            _add(candidates, count, history, boundary, mass, score, begin)
            candidates.last_begin[count] = hypotheses.last_begin[origin]
            candidates.last_end[count] = hypotheses.last_end[origin]
            candidates.word[count] = word
            candidates.lm_log_prob[count], candidates.lm_state[count] = lm_log_prob, next_state
            count += 1
    search.counters[WANTED] = wanted
    return count


@inner
def _keep_best(search: SearchArrays, settings: Settings, count: int) -> None:
    """The best candidates become the hypotheses; of equal ones at the end of the beam, the first."""
    hypotheses, candidates, histories = search.hypotheses, search.candidates, search.histories
    floor, equal = -np.inf, count
    if count > settings.beam_size:
        floor = _nth_largest(candidates.score, candidates.scratch, count, settings.beam_size)
        equal = settings.beam_size
        for place in range(count):
            equal -= candidates.score[place] > floor
    threshold = candidates.score[:count].max() - settings.beam_threshold
    kept = 0
    for place in range(count):
        score = candidates.score[place]
        if score == -np.inf or score < floor or score < threshold:
            continue
        if score == floor:
            if equal == 0:
                continue
            equal -= 1
        history = candidates.history[place]
        begin, end = candidates.last_begin[place], candidates.last_end[place]
        if candidates.word[place] >= 0:
            word, parent = candidates.word[place], history
            history = find_history(search.history_table, histories.parent, histories.word, parent, word)
            if history < 0:
                history = add_history(
                    search, settings, parent, word, candidates.lm_log_prob[place], candidates.lm_state[place]
                )
                histories.parent_begin[history], histories.parent_end[history] = begin, end
            begin, end = candidates.begin[place], search.counters[FRAMES] + 1
        hypotheses.history[kept], hypotheses.node[kept] = history, candidates.node[place]
        hypotheses.blank[kept], hypotheses.label[kept] = candidates.blank[place], candidates.label[place]
        hypotheses.begin[kept] = candidates.begin[place]
        hypotheses.last_begin[kept], hypotheses.last_end[kept] = begin, end
        hypotheses.score[kept] = score
        kept += 1
    search.counters[HYPOTHESES] = kept


@inner
def _nth_largest(values: np.ndarray, scratch: np.ndarray, count: int, n: int) -> float:
    """The n-th largest of the first `count` values (Hoare's selection)."""
    scratch[:count] = values[:count]
    low, high, wanted = 0, count - 1, n - 1
    while low < high:
        pivot = scratch[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while scratch[i] > pivot:
                i += 1
            while scratch[j] < pivot:
                j -= 1
            if i <= j:
                scratch[i], scratch[j] = scratch[j], scratch[i]
                i += 1
                j -= 1
        if wanted <= j:
            high = j
        elif wanted >= i:
            low = i
        else:
            break
    return scratch[wanted]
