"""A second language model inside the search and after it, against sums over all word sequences."""

import numpy as np
import pytest
from ctc_outputs import ctc_brute_force, emissions, random_log_probs
from hypothesis import given, settings
from hypothesis import strategies as st
from scorers import Batched, Untied, Walked
from word_sequences import WIDE, lexicons

from mode_ssm.decode.beam_arrays import HISTORIES
from mode_ssm.decode.ctc_beam import CtcWordDecoder
from mode_ssm.decode.ctc_beam_reference import decode_reference
from mode_ssm.decode.delayed_fusion import DelayedFusion
from mode_ssm.decode.rescoring import add_late_scores, reranked
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.vocab import SIL

SCALES = {"acoustic_scale": 0.6, "lm_scale": 1.4, "word_bonus": 0.3}


@settings(max_examples=40, deadline=None)
@given(
    lexicon=lexicons(4),
    frames=st.integers(1, 5),
    every=st.sampled_from([0, 1, 2, 4]),
    weight=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_wide_beam_equals_brute_force_with_both_models(lexicon, frames, every, weight, seed):
    rng = np.random.default_rng(seed)
    sentences = [" ".join(rng.choice(lexicon.words, 3)) for _ in range(8)]
    first, second = Walked(NGramLM.estimate(sentences, 2, lexicon.words)), Untied("late")
    log_probs = random_log_probs(rng, frames)
    expected, _ = ctc_brute_force(log_probs, lexicon, first, **SCALES)
    delayed = DelayedFusion(Batched(second), weight, every)
    found = CtcWordDecoder(lexicon, first, beam_size=WIDE, nbest=WIDE, delayed=delayed, **SCALES).decode(log_probs)
    assert {hypothesis.words for hypothesis in found} - {()} == set(expected)
    for hypothesis in found:
        if hypothesis.words:
            late = second.sequence_log_prob(hypothesis.words)
            change = SCALES["lm_scale"] * weight * (late - first.sequence_log_prob(hypothesis.words))
            assert hypothesis.score == pytest.approx(expected[hypothesis.words] + change, abs=1e-9)
            assert hypothesis.late_lm_score == pytest.approx(late, abs=1e-9)


def test_ranking_a_whole_list_anew_equals_fusion_at_the_end():
    rng = np.random.default_rng(0)
    lexicon = Lexicon({f"w{i}": [tuple(rng.integers(1, 6, rng.integers(1, 4)))] for i in range(20)})
    lm = NGramLM.estimate([" ".join(rng.choice(lexicon.words, 6)) for _ in range(60)], 3, lexicon.words)
    second = Batched(Untied("late"))
    options = {"beam_size": 60, "nbest": 1000, **SCALES}
    log_probs = [random_log_probs(rng, frames) for frames in (40, 0, 25)]
    nbests = [CtcWordDecoder(lexicon, lm, **options).decode(utterance) for utterance in log_probs]
    late = add_late_scores(nbests, second)
    decoder = CtcWordDecoder(lexicon, lm, delayed=DelayedFusion(second, 0.4, every=0), **options)
    for utterance, nbest in zip(log_probs, late, strict=True):
        expected = decoder.decode(utterance)
        found = reranked(nbest, lm_scale=SCALES["lm_scale"], weight=0.4)
        assert [hypothesis.words for hypothesis in found] == [hypothesis.words for hypothesis in expected]
        assert [h.score for h in found] == pytest.approx([h.score for h in expected], abs=1e-9)
    assert [h.words for h in reranked(late[0], lm_scale=1.4, weight=0.0)] == [h.words for h in nbests[0]]


class Prefers(Untied):
    """One word far above all others."""

    def __init__(self, word):
        self.word = word

    def _log_prob(self, *key):
        return -0.1 if key[-1] == self.word else -5.0


def test_fusion_in_time_keeps_a_sentence_that_the_beam_would_have_lost():
    lexicon = Lexicon({"to": [(31, 34)], "two": [(31, 34)], "go": [(14, 25)], "oh": [(25,)], "glow": [(14, 21, 25)]})
    lm = NGramLM.estimate(["to go go go", "to oh go", "to glow go"] * 12 + ["two go"], 3, lexicon.words)
    log_probs = emissions([31, 34, SIL, *[14, 25, SIL] * 6], confidence=0.3)
    found = {}
    for every in (0, 3):
        delayed = DelayedFusion(Batched(Prefers("two")), 0.9, every)
        found[every] = CtcWordDecoder(lexicon, lm, beam_size=8, delayed=delayed).decode(log_probs)[0].words[0]
    assert found == {0: "to", 3: "two"}


def test_every_word_of_a_history_is_scored_once_and_together_with_others():
    rng = np.random.default_rng(1)
    lexicon = Lexicon({f"w{i}": [tuple(rng.integers(1, 6, 2))] for i in range(20)})
    lm = NGramLM.estimate([" ".join(rng.choice(lexicon.words, 6)) for _ in range(60)], 2, lexicon.words)
    asked = []

    class Noted(Batched):
        def advance(self, states, words):
            asked.extend(zip(states, words, strict=True))
            return super().advance(states, words)

    second = Noted(Untied("late"))
    decoder = CtcWordDecoder(lexicon, lm, beam_size=50, delayed=DelayedFusion(second, 0.5, every=5))
    state = decoder.start()
    decoder.step(state, random_log_probs(rng, 160))
    assert len(asked) == len(set(asked)) > 100
    assert len(second.calls) <= 12 * 5  # a call for each word that fits into five frames, at most
    before = len(asked)
    assert decoder.finalize(state) == decoder.finalize(state)
    assert len(asked) == before  # frame 60 was a turn of the second model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 1.5}, "weight of the second language model must be from 0 to 1, not 1.5"),
        ({"every": -1}, "must be 0 or more, not -1"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DelayedFusion(Batched(Untied()), **options)


def test_lists_without_late_scores_cannot_be_ranked_by_them():
    lexicon = Lexicon({"a": [(1,)]})
    nbest = CtcWordDecoder(lexicon, NGramLM.estimate(["a"], 1)).decode(emissions([1, 0]))
    with pytest.raises(ValueError, match="add_late_scores gives them"):
        reranked(nbest, lm_scale=1.0, weight=0.5)
    with pytest.raises(ValueError, match="from 0 to 1, not 2"):
        reranked(nbest, lm_scale=1.0, weight=2)


@pytest.mark.parametrize("every", [3, 10])
def test_scores_are_forgotten_at_the_turns_of_the_network_however_full_the_tree_of_histories_is(every):
    rng = np.random.default_rng(every)
    lexicon = Lexicon({f"w{i}": [tuple(rng.integers(1, 4, rng.integers(1, 4)))] for i in range(12)})
    delayed = DelayedFusion(Batched(Untied("late")), 0.7, every)
    decoder = CtcWordDecoder(
        lexicon, Untied(), beam_size=120, nbest=12, delayed=delayed, acoustic_scale=0.3, word_bonus=0.5
    )
    log_probs = random_log_probs(rng, 160)
    state, sizes = decoder.start(), []
    for frame in log_probs:
        decoder.step(state, frame)
        sizes.append(int(state.search.counters[HISTORIES]))
    assert np.diff(sizes).min() < 0  # the tree was full at least once, and histories have left it
    found, expected = decoder.finalize(state), decode_reference(decoder, log_probs)
    assert [h.words for h in found] == [h.words for h in expected]
    assert [h.score for h in found] == pytest.approx([h.score for h in expected], abs=1e-9)
