"""A stream in pieces: the same numbers as offline, and memory that stays flat."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scorers import Asked, Batched, Untied, Walked

from mode_ssm.decode.beam_arrays import HISTORIES
from mode_ssm.decode.ctc_beam import CtcWordDecoder
from mode_ssm.decode.delayed_fusion import DelayedFusion
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.vocab import NUM_CLASSES, SIL


def random_log_probs(seed, frames):
    logits = np.random.default_rng(seed).normal(0, 2, (frames, NUM_CLASSES))
    logits[:, [1, 2, 3, 4, SIL]] += 3
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def lexicon():
    rng = np.random.default_rng(0)
    return Lexicon({f"w{i}": [tuple(rng.integers(1, 5, rng.integers(1, 4)))] for i in range(20)})


@pytest.fixture(scope="module", params=["walked", "asked", "delayed"])
def decoder(request, lexicon):
    rng = np.random.default_rng(1)
    lm = Walked(NGramLM.estimate([" ".join(rng.choice(lexicon.words, 5)) for _ in range(50)], 3, lexicon.words))
    delayed = DelayedFusion(Batched(Forgetful()), every=7) if request.param == "delayed" else None
    lm = Asked(lm) if request.param == "asked" else lm
    return CtcWordDecoder(lexicon, lm, beam_size=30, nbest=8, delayed=delayed)


class Forgetful(Untied):
    """Knows the last two words only, as a network with a bounded context does."""

    def score(self, state, word):
        log_prob, longer = super().score(state, word)
        return log_prob, longer[-2:]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), frames=st.integers(0, 60), cuts=st.lists(st.integers(0, 60)))
def test_however_a_stream_is_cut_it_equals_offline_bit_for_bit(decoder, seed, frames, cuts):
    log_probs = random_log_probs(seed, frames)
    state = decoder.start()
    for chunk in np.split(log_probs, sorted(cut for cut in cuts if cut <= frames)):
        decoder.step(state, chunk)
    assert state.num_frames == frames
    assert decoder.finalize(state) == decoder.decode(log_probs)


def test_partials_grow_into_the_result_and_the_stable_prefix_only_grows(decoder):
    log_probs = random_log_probs(7, 400)
    state, stable = decoder.start(), ()
    for frame in log_probs:
        decoder.step(state, frame)
        longer = decoder.stable_prefix(state)
        assert longer[: len(stable)] == stable
        assert decoder.partial(state)[: len(longer)] == longer
        stable = longer
        assert decoder.finalize(state)[0].words[: len(stable)] == stable
    assert len(stable) > 20


def test_memory_is_flat_over_a_long_stream(decoder):
    state, sizes = decoder.start(), []
    for seed in range(20):
        decoder.step(state, random_log_probs(seed, 1000))
        arrays = [array for part in state.search for array in (part if isinstance(part, tuple) else [part])]
        sizes.append(sum(array.nbytes for array in arrays) - sum(array.nbytes for array in state.search.committed))
        assert state.search.counters[HISTORIES] < 2000
        if state.asked is not None:
            assert len(state.asked.states) < 12000
        if state.late is not None:
            assert len(state.late._states) < 12000
    assert len(set(sizes[10:])) == 1
    assert sizes[-1] < 2_000_000
    assert len(decoder.stable_prefix(state)) > 1000
    assert len(decoder.finalize(state)[0].words) > 1000


def test_words_that_left_the_search_keep_their_frames():
    rng = np.random.default_rng(2)
    lexicon = Lexicon({f"{a}{b}{c}": [(a, b, c)] for a in (1, 2) for b in (1, 3) for c in (2, 4)})
    lm = NGramLM.estimate([" ".join(rng.choice(lexicon.words, 5)) for _ in range(50)], 2, lexicon.words)
    decoder = CtcWordDecoder(lexicon, lm, beam_size=20)
    spoken, labels, starts = [], [], []
    for _ in range(600):
        word = str(rng.choice(lexicon.words))
        spoken.append(lexicon[word][0])
        starts.append(len(labels))
        labels += [label for phone in lexicon[word][0] for label in (phone, 0)] + [SIL]
    log_probs = np.full((len(labels), NUM_CLASSES), -100.0)
    log_probs[np.arange(len(labels)), labels] = 0.0
    best = decoder.decode(log_probs)[0]
    assert [lexicon[word][0] for word in best.words] == spoken
    assert list(best.start_frames) == starts
    ends = zip(starts, best.end_frames, spoken, strict=True)
    assert all(end == start + 2 * len(phones) - 1 for start, end, phones in ends)


def test_a_bad_chunk_leaves_the_stream_as_it_was(decoder):
    log_probs = random_log_probs(3, 20)
    state = decoder.start()
    decoder.step(state, log_probs[:10])
    bad = log_probs[10:].copy()
    bad[4, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or plus infinity at frame 4 of 10"):
        decoder.step(state, bad)
    with pytest.raises(ValueError, match=r"must be \(frames, 41\), not \(5,\)"):
        decoder.step(state, np.zeros(5))
    decoder.step(state, log_probs[10:])
    assert decoder.finalize(state) == decoder.decode(log_probs)


def test_a_frame_without_any_possible_class_ends_all_hypotheses(decoder):
    state = decoder.start()
    decoder.step(state, random_log_probs(3, 20))
    decoder.step(state, np.full(NUM_CLASSES, -np.inf))
    assert decoder.partial(state) == decoder.stable_prefix(state) == ()
    assert [hypothesis.words for hypothesis in decoder.finalize(state)] == [()]
