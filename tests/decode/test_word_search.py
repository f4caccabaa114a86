"""What all word decoders have in common, whatever they search in."""

import pickle

import numpy as np
import pytest
from ctc_outputs import emissions, random_log_probs
from transducers import random_tables, spelling_tables, spoken

from mode_ssm.decode.ctc_beam import CtcWordDecoder
from mode_ssm.decode.transducer_words import TransducerWordDecoder
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.vocab import NUM_CLASSES, SIL

LEXICON = Lexicon({"a": [(1, 2)], "b": [(2,), (3, 1)], "c": [(3,)]})
LM = NGramLM.estimate(["a b c", "c b", "b a"], 3, LEXICON.words)


@pytest.fixture(scope="module", params=["ctc", "transducer"])
def search(request):
    """A decoder, an utterance for it, and a decoder of the same kind with other options, made anew."""
    rng = np.random.default_rng(0)
    if request.param == "ctc":
        frames = random_log_probs(rng, 30)
        return CtcWordDecoder(LEXICON, LM), frames, CtcWordDecoder(LEXICON, LM, beam_size=7, word_bonus=2.0)
    tables = random_tables(rng)
    frames = rng.normal(0, 1, (30, tables.d_joint)).astype(np.float32)
    other = TransducerWordDecoder(LEXICON, LM, tables, beam_size=7, word_bonus=2.0)
    return TransducerWordDecoder(LEXICON, LM, tables), frames, other


def test_other_options_give_a_decoder_of_the_same_kind_and_leave_the_first_alone(search):
    decoder, frames, fresh = search
    before = decoder.decode(frames)
    other = decoder.with_options(beam_size=7, word_bonus=2.0)
    assert type(other) is type(decoder)
    assert other.tree is decoder.tree
    assert other.decode(frames) == fresh.decode(frames) != before
    assert decoder.decode(frames) == before


def test_a_copy_with_other_options_finds_the_same(search):
    decoder, frames, fresh = search
    copy = pickle.loads(pickle.dumps(decoder)).with_options(beam_size=7, word_bonus=2.0)
    assert copy.decode(frames) == fresh.decode(frames)


def test_a_stream_takes_a_frame_alone_and_an_utterance_does_not(search):
    decoder, frames, _ = search
    state = decoder.start()
    for frame in frames:
        decoder.step(state, frame)
    assert decoder.finalize(state) == decoder.decode(frames)
    with pytest.raises(ValueError, match=r"must be \(frames, \d+\), not \(\d+,\)"):
        decoder.decode(frames[0])


@pytest.mark.parametrize("shape", [(3, NUM_CLASSES + 1), (NUM_CLASSES + 1,), (1, 3, NUM_CLASSES), ()])
def test_frames_of_another_shape_leave_a_stream_as_it_was(search, shape):
    decoder, frames, _ = search
    state = decoder.start()
    decoder.step(state, frames[:10])
    with pytest.raises(ValueError, match=r"must be \(frames, \d+\), not \("):
        decoder.step(state, np.zeros(shape, np.float32))
    assert state.num_frames == 10
    decoder.step(state, frames[10:])
    assert decoder.finalize(state) == decoder.decode(frames)


def test_words_of_ctc_carry_their_frames_and_confidences():
    lexicon = Lexicon({"a": [(1, 2)], "b": [(3,)], "c": [(3, 4)], "d": [(7,)]})
    lm = NGramLM.estimate(["a b", "b a", "a c", "d"], 2)
    labels = [0, 1, 1, 0, 2, 2, SIL, 0, 3, 0, 0]
    found = CtcWordDecoder(lexicon, lm, beam_size=1000, nbest=1000).decode(emissions(labels, confidence=0.999))
    best = found[0]
    assert best.words == ("a", "b")
    assert (best.start_frames, best.end_frames) == ((1, 8), (6, 9))
    weights = np.exp([hypothesis.score - best.score for hypothesis in found])
    with_a = [hypothesis.words[:1] == ("a",) and hypothesis.start_frames[0] < 6 for hypothesis in found]
    assert best.confidences[0] == pytest.approx(weights[with_a].sum() / weights.sum(), abs=1e-3)
    assert 0.9 < best.confidences[0] <= 1.0
    for hypothesis in found:
        lengths = {len(hypothesis.words), len(hypothesis.start_frames), len(hypothesis.confidences)}
        assert lengths == {len(hypothesis.end_frames)}
        times = np.array([hypothesis.start_frames, hypothesis.end_frames]).T.ravel()
        assert np.all(np.diff(times) >= 0)
        assert times[0] >= 0
        assert times[-1] <= len(labels)


def test_words_of_the_transducer_carry_their_frames_and_confidences():
    lexicon = Lexicon({"a": [(1, 2)], "b": [(3,)], "c": [(3, 4)]})
    lm = NGramLM.estimate(["a b", "b a", "a c"], 2)
    decoder = TransducerWordDecoder(lexicon, lm, spelling_tables(), word_bonus=5.0, max_symbols=1)
    best = decoder.decode(spoken([], [1], [], [2], [SIL], [], [3], []))[0]
    assert best.words == ("a", "b")
    assert (best.start_frames, best.end_frames) == ((1, 6), (4, 7))
    assert len(best.confidences) == 2
    assert all(0 < confidence <= 1 for confidence in best.confidences)


def test_equally_likely_homophones_share_the_confidence():
    lexicon = Lexicon({"two": [(1, 2)], "too": [(1, 2)]})
    lm = NGramLM.estimate(["two", "too"], 1)
    found = CtcWordDecoder(lexicon, lm).decode(emissions([1, 2]))
    assert [hypothesis.words for hypothesis in found[:2]] == [("too",), ("two",)]
    assert [hypothesis.confidences[0] for hypothesis in found[:2]] == pytest.approx([0.5, 0.5], abs=0.01)
