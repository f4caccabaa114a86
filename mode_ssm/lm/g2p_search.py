"""Beam search for the graphones of a word under an n-gram model of graphones, compiled."""

import numpy as np
from numba import njit

from mode_ssm.lm.ngram_automaton import NGramAutomaton


def search(candidates: list[np.ndarray], automaton: NGramAutomaton, beam_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The most probable sequences with one of `candidates[i]` (ids of the automaton) at place i.

    Returns ids (H, L) and their log probabilities (H,) with the sentence end, best first; H is at most `beam_size`.
    """
    ends = np.cumsum([len(own) for own in candidates])
    scores, parents, chosen = _search(
        np.concatenate(candidates).astype(np.int64),
        ends,
        beam_size,
        automaton.start,
        automaton.backoff_state,
        automaton.backoff,
        automaton.arc_start,
        automaton.arc_word,
        automaton.arc_log_prob,
        automaton.arc_next,
        automaton.end_log_prob,
    )
    order = np.argsort(-scores, kind="stable")
    ids = np.empty((len(order), len(candidates)), np.int64)
    at = order
    for place in reversed(range(len(candidates))):
        ids[:, place] = chosen[place, at]
        at = parents[place, at]
    return ids, scores[order]


@njit(cache=True, nogil=True)
def _search(  # type: ignore[no-untyped-def]
    candidates,
    ends,
    beam_size,
    start,
    backoff_state,
    backoff,
    arc_start,
    arc_word,
    arc_log_prob,
    arc_next,
    end_log_prob,
):
    num_places = len(ends)
    parents = np.zeros((num_places, beam_size), np.int64)
    chosen = np.zeros((num_places, beam_size), np.int64)
    states = np.full(1, start, np.int64)
    scores = np.zeros(1, np.float64)
    first = 0
    for place in range(num_places):
        width = ends[place] - first
        option_scores = np.empty(len(states) * width, np.float64)
        option_states = np.empty(len(states) * width, np.int64)
        for option in range(len(option_scores)):
            word = candidates[first + option % width]
            state = states[option // width]
            score = scores[option // width]
            while True:
                arc = arc_start[state] + np.searchsorted(arc_word[arc_start[state] : arc_start[state + 1]], word)
                if arc < arc_start[state + 1] and arc_word[arc] == word:
                    break
                score += backoff[state]
                state = backoff_state[state]
            option_scores[option] = score + arc_log_prob[arc]
            option_states[option] = arc_next[arc]
        kept = np.argsort(-option_scores, kind="mergesort")[:beam_size]
        parents[place, : len(kept)] = kept // width
        chosen[place, : len(kept)] = candidates[first + kept % width]
        states = option_states[kept]
        scores = option_scores[kept]
        first = ends[place]
    for hypothesis in range(len(states)):
        scores[hypothesis] += end_log_prob[states[hypothesis]]
    return scores, parents, chosen
