"""The word search against an enumeration of every frame labelling and every word sequence."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ctc_outputs import ctc_brute_force, emissions, random_log_probs
from hypothesis import given, settings
from hypothesis import strategies as st
from scorers import Asked, Batched, Untied, Walked
from word_sequences import WIDE, assert_all_found, assert_same_list, lexicons

from mode_ssm.decode.ctc_beam import CtcWordDecoder
from mode_ssm.decode.ctc_beam_reference import decode_reference
from mode_ssm.decode.delayed_fusion import DelayedFusion
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.vocab import NUM_CLASSES, SIL, phonemes_to_ids

CMUDICT = Path(__file__).resolve().parents[3] / "shared" / "data" / "lexicon" / "cmudict.dict"


@settings(max_examples=60, deadline=None)
@given(
    lexicon=lexicons(4),
    frames=st.integers(1, 5),
    order=st.integers(1, 6),
    asked=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    acoustic_scale=st.sampled_from([1.0, 0.4]),
    lm_scale=st.sampled_from([0.0, 1.0, 1.7]),
    word_bonus=st.sampled_from([0.0, 0.9, -0.5]),
    blank_penalty=st.sampled_from([0.0, 1.5]),
    silence_score=st.sampled_from([0.0, 0.7, -1.5, -math.inf]),
)
def test_a_wide_beam_equals_brute_force(lexicon, frames, order, asked, seed, **scales):
    rng = np.random.default_rng(seed)
    sentences = [" ".join(rng.choice(lexicon.words, rng.integers(1, 5))) for _ in range(8)]
    lm = Walked(NGramLM.estimate(sentences, order, lexicon.words))
    if asked:
        lm = Asked(lm)
    log_probs = random_log_probs(rng, frames)
    expected, acoustic = ctc_brute_force(log_probs, lexicon, lm, **scales)
    found = CtcWordDecoder(lexicon, lm, beam_size=WIDE, nbest=WIDE, **scales).decode(log_probs)
    assert_all_found(found, expected, acoustic, lm, 1e-9)


@settings(max_examples=80, deadline=None)
@given(
    lexicon=lexicons(25),
    frames=st.integers(0, 30),
    beam_size=st.sampled_from([1, 3, 20, 150]),
    beam_threshold=st.sampled_from([math.inf, 5.0]),
    seed=st.integers(0, 2**32 - 1),
    acoustic_scale=st.sampled_from([1.0, 0.4]),
    lm_scale=st.sampled_from([0.3, 1.7]),
    word_bonus=st.sampled_from([0.0, 0.9, -0.5]),
    silence_score=st.sampled_from([0.0, -1.5]),
    late=st.sampled_from([None, 0, 1, 4]),
)
def test_a_narrow_beam_equals_the_reference(lexicon, frames, seed, late, **options):
    rng = np.random.default_rng(seed)
    log_probs = random_log_probs(rng, frames)
    log_probs[:, [1, 2, 3, SIL]] += 3
    log_probs[rng.random(log_probs.shape) < 0.02] = -np.inf
    delayed = None if late is None else DelayedFusion(Batched(Untied("late")), 0.7, late)
    decoder = CtcWordDecoder(lexicon, Untied(), nbest=12, delayed=delayed, **options)
    found, expected = decoder.decode(log_probs), decode_reference(decoder, log_probs)
    assert_same_list(found, expected)


def test_an_automaton_scores_as_its_model_does_when_asked():
    rng = np.random.default_rng(3)
    lexicon = Lexicon({f"w{i}": [tuple(rng.integers(1, 6, rng.integers(1, 4)))] for i in range(40)})
    lm = NGramLM.estimate([" ".join(rng.choice(lexicon.words, 6)) for _ in range(60)], 4, lexicon.words)
    asked = Asked(Walked(lm))
    log_probs = random_log_probs(rng, 60)
    options = {"beam_size": 60, "word_bonus": 1.0}
    found = CtcWordDecoder(lexicon, asked, **options).decode(log_probs)
    assert found == CtcWordDecoder(lexicon, lm, **options).decode(log_probs)
    assert found[0].lm_score == pytest.approx(lm.sequence_log_prob(found[0].words), rel=1e-6)
    assert asked.asked > 100


def test_acoustic_score_equals_ctc_loss_summed_over_silences():
    rng = np.random.default_rng(0)
    lexicon = Lexicon({"a": [(1, 2, 2)], "b": [(2, 3)]})
    lm = NGramLM.estimate(["a b", "b a", "a"], 2)
    log_probs = random_log_probs(rng, 12)
    found = CtcWordDecoder(lexicon, lm, beam_size=WIDE, nbest=WIDE).decode(log_probs)
    score = {hypothesis.words: hypothesis.acoustic_score for hypothesis in found}["a", "b"]
    sequences = [
        [SIL] * before + [1, 2, 2] + [SIL] * between + [2, 3] + [SIL] * after
        for before, between, after in itertools.product([0, 1], repeat=3)
    ]
    losses = [
        torch.nn.functional.ctc_loss(
            torch.from_numpy(log_probs).double()[:, None], torch.tensor([labels]), [12], [len(labels)], reduction="none"
        ).item()
        for labels in sequences
    ]
    assert score == pytest.approx(np.logaddexp.reduce([-loss for loss in losses]), abs=1e-9)


def test_every_homophone_and_every_pronunciation_can_be_decoded():
    homophones = ["eight", "ate", "ait", "aight", "eyght", "eit", "eyot", "ayt"]
    lexicon = Lexicon(
        {
            **{word: [phonemes_to_ids(["EY", "T"])] for word in homophones},
            "read": [phonemes_to_ids(["R", "IY", "D"]), phonemes_to_ids(["R", "EH", "D"])],
            "red": [phonemes_to_ids(["R", "EH", "D"])],
            "you": [phonemes_to_ids(["Y", "UW"])],
        }
    )
    lm = NGramLM.estimate([f"you {word}" for word in lexicon.words], 2, lexicon.words)
    decoder = CtcWordDecoder(lexicon, lm, nbest=20)
    y, uw, ey, t, r, eh, iy, d = phonemes_to_ids(["Y", "UW", "EY", "T", "R", "EH", "IY", "D"])
    heard = {hypothesis.words for hypothesis in decoder.decode(emissions([y, uw, SIL, ey, t, SIL]))}
    assert {("you", word) for word in homophones} <= heard
    assert decoder.decode(emissions([r, iy, d]))[0].words == ("read",)
    assert {hypothesis.words for hypothesis in decoder.decode(emissions([r, eh, d]))[:2]} == {("read",), ("red",)}


def test_the_language_model_chooses_among_homophones():
    lexicon = Lexicon({"two": [(31, 34)], "to": [(31, 34)], "go": [(14, 25)], "cups": [(20, 3)]})
    lm = NGramLM.estimate(["go to", "go to", "two cups", "two cups", "to go", "go"] * 3, 3, lexicon.words)
    decoder = CtcWordDecoder(lexicon, lm)
    assert decoder.decode(emissions([14, 25, SIL, 31, 34, SIL]))[0].text == "go to"
    assert decoder.decode(emissions([31, 34, SIL, 20, 3, SIL]))[0].text == "two cups"


@pytest.mark.parametrize(
    "labels",
    [
        [1, 2, 2, 2, 0, 3, 3],  # the last phoneme held over frames
        [1, 2, 0, 0, 3],  # no silence between words
        [1, 2, SIL, 3],
        [SIL, 1, 2, SIL, SIL, 0, 3, SIL],
    ],
)
def test_repeats_are_absorbed_and_silence_is_optional(labels):
    lexicon = Lexicon({"a": [(1, 2)], "b": [(3,)]})
    lm = NGramLM.estimate(["a b", "b a"], 2)
    assert CtcWordDecoder(lexicon, lm).decode(emissions(labels))[0].words == ("a", "b")


def test_the_same_phoneme_at_the_end_and_the_start_of_words_needs_a_blank_or_silence():
    lexicon = Lexicon({"a": [(1, 2)], "b": [(2, 1)]})
    lm = NGramLM.estimate(["a b", "b a", "a", "b"], 2)
    decoder = CtcWordDecoder(lexicon, lm)
    assert decoder.decode(emissions([1, 2, 0, 2, 1]))[0].words == ("a", "b")
    assert decoder.decode(emissions([1, 2, SIL, 2, 1]))[0].words == ("a", "b")
    certain = np.full((4, NUM_CLASSES), -math.inf, np.float32)
    certain[np.arange(4), [1, 2, 2, 1]] = 0.0
    assert decoder.decode(certain)[0].words != ("a", "b")


def test_a_narrow_beam_finds_what_a_wide_one_finds_on_clear_emissions():
    rng = np.random.default_rng(1)
    lexicon = Lexicon({f"w{i}": [tuple(rng.integers(1, 10, rng.integers(2, 5)))] for i in range(30)})
    sentences = [" ".join(rng.choice(lexicon.words, 4)) for _ in range(50)]
    lm = NGramLM.estimate(sentences, 3, lexicon.words)
    for sentence in sentences[:5]:
        labels = [label for phones in lexicon.pronounce(sentence) for p in phones for label in (p, p, 0)]
        decoder = CtcWordDecoder(lexicon, lm, beam_size=20)
        pronounced = {w for w in lexicon if lexicon[w] in [lexicon[v] for v in sentence.split()]}
        best = decoder.decode(emissions(labels, confidence=0.9))[0]
        assert len(best.words) == 4
        assert set(best.words) <= pronounced
        wide = CtcWordDecoder(lexicon, lm, beam_size=2000).decode(emissions(labels, confidence=0.9))[0]
        assert best.words == wide.words


def test_lm_scale_and_word_bonus_move_the_choice():
    lexicon = Lexicon({"long": [(1, 2, 3, 4)], "a": [(1, 2)], "b": [(3, 4)]})
    lm = NGramLM.estimate(["long"] * 9 + ["a b"], 2)
    log_probs = emissions([1, 2, 3, 4])
    assert CtcWordDecoder(lexicon, lm).decode(log_probs)[0].words == ("long",)
    assert CtcWordDecoder(lexicon, lm, word_bonus=20.0).decode(log_probs)[0].words == ("a", "b")
    assert CtcWordDecoder(lexicon, lm, lm_scale=0.0, word_bonus=1.0).decode(log_probs)[0].words == ("a", "b")


def test_empty_output_only_when_nothing_else_is_left():
    lexicon = Lexicon({"a": [(1,)], "b": [(1, 2, 3)]})
    lm = NGramLM.estimate(["a b", "b"], 2)
    decoder = CtcWordDecoder(lexicon, lm, beam_size=WIDE)
    silent = decoder.decode(emissions([0, 0, 0, 0]))
    assert silent[0].words != ()
    nothing = decoder.decode(np.zeros((0, NUM_CLASSES), np.float32))
    assert [hypothesis.words for hypothesis in nothing] == [()]
    assert nothing[0].score == pytest.approx(lm.end(lm.start()))
    impossible = np.full((3, NUM_CLASSES), -math.inf, np.float32)
    assert [hypothesis.words for hypothesis in decoder.decode(impossible)] == [()]


def test_an_unfinished_word_is_dropped_when_no_hypothesis_ends_with_a_word():
    lexicon = Lexicon({"a": [(1,)], "b": [(2, 3, 4)]})
    lm = NGramLM.estimate(["a b", "b"], 2)
    labels = np.full((3, NUM_CLASSES), -math.inf, np.float32)
    labels[np.arange(3), [1, 2, 3]] = 0.0
    assert [hypothesis.words for hypothesis in CtcWordDecoder(lexicon, lm).decode(labels)] == [("a",)]


@pytest.mark.skipif(not CMUDICT.exists(), reason="CMUdict is not here")
def test_words_that_other_decoders_lose_are_found_with_the_whole_dictionary():
    lexicon = Lexicon.read(CMUDICT)
    sentences = ["you read oh heir", "heir read you oh", "oh you read", "read heir oh"]
    lm = NGramLM.estimate(sentences, 3, lexicon.words)
    decoder = CtcWordDecoder(lexicon, lm, beam_size=100)
    for sentence in sentences[:2]:
        for pronunciation in (0, 1):
            spoken = [lexicon[word][pronunciation if word == "read" else 0] for word in sentence.split()]
            labels = [label for phones in spoken for phone in (*phones, SIL) for label in (phone, phone, 0)]
            assert decoder.decode(emissions(labels))[0].text == sentence
    assert len(lexicon["read"]) == 2
    homophones = {word for word in lexicon if lexicon["air"][0] in lexicon[word]}
    assert len(homophones) > 6
    wide = CtcWordDecoder(lexicon, lm, beam_size=2000, nbest=2000)
    labels = [label for phone in lexicon["air"][0] for label in (phone, 0)]
    found = wide.decode(emissions(labels, confidence=0.999))
    assert homophones <= {hypothesis.text for hypothesis in found}
