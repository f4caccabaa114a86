"""What flows into the hypotheses of a frame: stays, other hypotheses, and words that end.

A child gets its mass from its parent, the first phoneme of a word from all boundaries of its history (a pool), the
boundary after a word from the ends of all its pronunciations.
"""

import math

import numpy as np

from mode_ssm.decode.beam_arrays import (
    FRAMES,
    HYPOTHESES,
    STAMP,
    HypothesisArrays,
    Integer,
    SearchArrays,
    Settings,
    TreeArrays,
)
from mode_ssm.decode.compiled import inner
from mode_ssm.decode.history_kernel import pair, slot_of
from mode_ssm.vocab import BLANK, NUM_CLASSES, SIL

NO_SOURCE = -1


@inner
def log_add(a: float, b: float) -> float:
    if a < b:
        a, b = b, a
    if b == -np.inf or a - b > 45.0:  # exp(-45) is below the last digit
        return a
    return a + math.log1p(math.exp(b - a))


@inner
def index_hypotheses(tree: TreeArrays, search: SearchArrays) -> None:
    """Totals, the hash table of (history, node), and the pools."""
    hypotheses, histories, counters = search.hypotheses, search.histories, search.counters
    counters[STAMP] += 1
    stamp, mask, pools = counters[STAMP], len(search.active_table) - 1, 0
    for i in range(counters[HYPOTHESES]):
        history, node = hypotheses.history[i], hypotheses.node[i]
        total = log_add(hypotheses.blank[i], hypotheses.label[i])
        hypotheses.total[i] = total
        hypotheses.open_children[i] = 0
        slot = slot_of(pair(history, node), mask)
        while search.active_stamp[slot] == stamp:
            slot = (slot + 1) & mask
        search.active_stamp[slot], search.active_table[slot] = stamp, i
        if node >= NUM_CLASSES:
            continue
        speech = total if node != SIL else -np.inf
        if histories.pool_stamp[history] != stamp:
            pool = pools
            pools += 1
            histories.pool_stamp[history], histories.pool[history] = stamp, pool
            hypotheses.next_boundary[i] = -1
            hypotheses.pool_best[pool], hypotheses.pool_total[pool] = i, total
            hypotheses.pool_speech_best[pool], hypotheses.pool_speech[pool] = i if node != SIL else -1, speech
            hypotheses.pool_labels[pool] = hypotheses.pool_open[pool] = 0
        else:
            pool = histories.pool[history]
            hypotheses.next_boundary[i] = hypotheses.pool_first[pool]
            if total > hypotheses.total[hypotheses.pool_best[pool]]:
                hypotheses.pool_best[pool] = i
            best = hypotheses.pool_speech_best[pool]
            if node != SIL and (best < 0 or total > hypotheses.total[best]):
                hypotheses.pool_speech_best[pool] = i
            hypotheses.pool_total[pool] = log_add(hypotheses.pool_total[pool], total)
            hypotheses.pool_speech[pool] = log_add(hypotheses.pool_speech[pool], speech)
        hypotheses.pool_first[pool] = i
        hypotheses.pool_labels[pool] |= np.int64(1) << np.int64(node)


@inner
def find_hypothesis(
    table: np.ndarray,
    stamps: np.ndarray,
    histories: np.ndarray,
    nodes: np.ndarray,
    stamp: int,
    history: int,
    node: Integer,
) -> int:
    """The hypothesis (history, node) among `histories` and `nodes`, -1 if there is none."""
    mask = len(table) - 1
    slot = slot_of(pair(history, node), mask)
    while stamps[slot] == stamp:
        i = table[slot]
        if histories[i] == history and nodes[i] == node:
            return i
        slot = (slot + 1) & mask
    return -1


@inner
def pool_mass(hypotheses: HypothesisArrays, pool: int, label: Integer) -> float:
    """What can go on to `label` at the start of a word: after the same label only what ends in a blank."""
    mass, i = -np.inf, hypotheses.pool_first[pool]
    while i >= 0:
        mass = log_add(mass, hypotheses.blank[i] if hypotheses.node[i] == label else hypotheses.total[i])
        i = hypotheses.next_boundary[i]
    return mass


@inner
def word_mass(tree: TreeArrays, search: SearchArrays, history: int, word: int, label: Integer) -> tuple[float, int]:
    """What can go on to the last label of `word` after `history`, over its pronunciations with this last label.

    Returns the sum, and where its largest part comes from: a hypothesis, -2 - a pool, or `NO_SOURCE`.
    """
    hypotheses, histories, stamp = search.hypotheses, search.histories, search.counters[STAMP]
    mass, best, source = -np.inf, -np.inf, NO_SOURCE
    for entry in range(tree.pron_start[word], tree.pron_start[word + 1]):
        node = tree.pron_node[entry]
        if tree.label[node] != label:
            continue
        parent = tree.parent[node]
        if parent == 0:
            if histories.pool_stamp[history] != stamp:
                continue
            pool = histories.pool[history]
            part, place = pool_mass(hypotheses, pool, label), -2 - pool
        else:
            place = find_hypothesis(
                search.active_table, search.active_stamp, hypotheses.history, hypotheses.node, stamp, history, parent
            )
            if place < 0:
                continue
            part = hypotheses.blank[place] if tree.label[parent] == label else hypotheses.total[place]
        mass = log_add(mass, part)
        if part > best:
            best, source = part, place
    return mass, source


@inner
def pull(frame: np.ndarray, tree: TreeArrays, search: SearchArrays, settings: Settings) -> None:
    """Every hypothesis at the next frame: what stays, and what flows in from other hypotheses.

    Of several ways to get there, frames of words are those of the way with the largest mass.
    """
    hypotheses, candidates, histories = search.hypotheses, search.candidates, search.histories
    hypothesis_history, hypothesis_node = hypotheses.history, hypotheses.node
    pool_stamp, labels, parents = histories.pool_stamp, tree.label, tree.parent
    active = (search.active_table, search.active_stamp)
    now, stamp = search.counters[FRAMES], search.counters[STAMP]
    for i in range(search.counters[HYPOTHESES]):
        history, node = hypothesis_history[i], hypothesis_node[i]
        label = np.int64(labels[node])
        bit = np.int64(1) << label
        blank, labelled = hypotheses.total[i] + frame[BLANK], hypotheses.label[i] + frame[label]
        begin, last_begin, last_end = hypotheses.begin[i], hypotheses.last_begin[i], hypotheses.last_end[i]
        stay, inflow, source = max(blank, labelled), -np.inf, NO_SOURCE
        if node > SIL:
            parent = parents[node]
            if parent == 0:
                if pool_stamp[history] == stamp:
                    pool = histories.pool[history]
                    hypotheses.pool_open[pool] |= bit
                    inflow, source = pool_mass(hypotheses, pool, label) + frame[label], hypotheses.pool_best[pool]
                    if inflow > stay:
                        begin = now
            else:
                source = find_hypothesis(*active, hypothesis_history, hypothesis_node, stamp, history, parent)
                if source >= 0:
                    hypotheses.open_children[source] |= bit
                    repeated = labels[parent] == label
                    inflow = (hypotheses.blank[source] if repeated else hypotheses.total[source]) + frame[label]
                    if inflow > stay:
                        begin = hypotheses.begin[source]
        elif node == SIL:
            pool = histories.pool[history]
            hypotheses.pool_open[pool] |= bit
            inflow = hypotheses.pool_speech[pool] + frame[SIL] + settings.silence_score
            source = hypotheses.pool_speech_best[pool]
        elif node > 0:
            if last_end == now and labelled > blank:
                last_end = now + 1  # the last phoneme is held
            parent = histories.parent[history]
            if parent >= 0:
                mass, place = word_mass(tree, search, parent, histories.word[history], label)
                inflow = mass + frame[label]
                if inflow > stay:
                    origin = place if place >= 0 else hypotheses.pool_best[-2 - place]
                    last_begin, last_end = hypotheses.begin[origin] if place >= 0 else now, now + 1
                    histories.parent_begin[history] = hypotheses.last_begin[origin]
                    histories.parent_end[history] = hypotheses.last_end[origin]
        if source >= 0 and inflow > stay:
            last_begin, last_end = hypotheses.last_begin[source], hypotheses.last_end[source]
        candidates.history[i], candidates.node[i], candidates.word[i] = history, node, -1
        candidates.blank[i], candidates.label[i] = blank, log_add(labelled, inflow)
        candidates.begin[i], candidates.last_begin[i], candidates.last_end[i] = begin, last_begin, last_end
        score = settings.acoustic_scale * log_add(blank, candidates.label[i])
        candidates.score[i] = score + (histories.fused[history] + tree.look_ahead[node])
