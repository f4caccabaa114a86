"""Toy lexicons, and the score of every word sequence by enumeration: what wide beams have to find."""

import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import strategies as st

from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.vocab import SIL

WIDE = 10**6  # hypotheses: a beam that keeps all


def lexicons(max_size):
    pronunciations = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple), min_size=1, max_size=2)
    return st.lists(pronunciations, min_size=1, max_size=max_size).map(
        lambda entries: Lexicon({f"w{i}": entry for i, entry in enumerate(entries)})
    )


def phones_of(lexicon):
    return sorted({phone for word in lexicon for phones in lexicon[word] for phone in phones})


def readings(labels, lexicon):
    """Every way to read a label string as words: one item for each choice of pronunciations and silences."""

    def rest(position, silence_allowed):
        if position == len(labels):
            yield ()
            return
        if silence_allowed and labels[position] == SIL:
            yield from rest(position + 1, False)
        for word in lexicon:
            for phones in lexicon[word]:
                if tuple(labels[position : position + len(phones)]) == phones:
                    for tail in rest(position + len(phones), True):
                        yield (word, *tail)

    return rest(0, True)


def brute_force(strings, log_prob, lexicon, lm, *, acoustic_scale=1.0, lm_scale=1.0, word_bonus=0.0):
    """Score and acoustic score of every word sequence, from `log_prob(labels)` of all label strings."""
    acoustic = defaultdict(lambda: -math.inf)
    for labels in strings:
        if found := list(readings(labels, lexicon)):
            of_string = log_prob(labels)
            for words in found:
                acoustic[words] = np.logaddexp(acoustic[words], of_string)
    scored = {
        words: acoustic_scale * of_words + lm_scale * lm.sequence_log_prob(words) + word_bonus * len(words)
        for words, of_words in acoustic.items()
        if words and of_words > -math.inf
    }
    return scored, acoustic


def assert_all_found(found, expected, acoustic, lm, tolerance):
    """`found` holds every word sequence with its scores, best first; the empty one where there is no other."""
    if not expected:
        assert {hypothesis.words for hypothesis in found} == {()}
        return
    assert {hypothesis.words for hypothesis in found} == set(expected)
    assert len(found) == len(expected)
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(expected[hypothesis.words], abs=tolerance)
        assert hypothesis.acoustic_score == pytest.approx(acoustic[hypothesis.words], abs=tolerance)
        assert hypothesis.lm_score == pytest.approx(lm.sequence_log_prob(hypothesis.words), abs=tolerance)
    scores = [hypothesis.score for hypothesis in found]
    assert scores == sorted(scores, reverse=True)


def assert_same_list(found, expected):
    """Both n-best lists name the same words in the same order, with the same scores."""
    assert [hypothesis.words for hypothesis in found] == [hypothesis.words for hypothesis in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.score == pytest.approx(theirs.score, abs=1e-9)
        assert ours.acoustic_score == pytest.approx(theirs.acoustic_score, abs=1e-9)
        assert ours.lm_score == pytest.approx(theirs.lm_score, abs=1e-9)
        assert ours.late_lm_score == pytest.approx(theirs.late_lm_score, abs=1e-9)
