"""The transducer word search against an enumeration of every label string and every word sequence."""

import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scorers import Asked, Batched, Untied, Walked
from transducers import LOUD, random_tables, spelling_tables, spoken
from word_sequences import WIDE, assert_all_found, assert_same_list, brute_force, lexicons, phones_of

from mode_ssm.decode.batch import decode_batch
from mode_ssm.decode.beam_arrays import COMMITTED
from mode_ssm.decode.delayed_fusion import DelayedFusion
from mode_ssm.decode.transducer_kernel import advance_transducer
from mode_ssm.decode.transducer_words import TransducerWordDecoder
from mode_ssm.decode.transducer_words_reference import decode_transducer_reference
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.ops.transducer_loss import transducer_loss
from mode_ssm.vocab import BLANK, SIL, phonemes_to_ids


def forward_log_prob(tables, frames, labels, max_symbols, internal, *, blank_penalty, ilm_scale, silence_score):
    """log of the sum over all ways to lay `labels` on the frames, at most `max_symbols` in each."""
    contexts = [tables.number(labels[:u]) for u in range(len(labels) + 1)]
    alpha = np.full((len(labels) + 1, max_symbols + 1), -np.inf)  # labels so far, and those of this frame
    alpha[0, 0] = 0.0
    for frame in frames:
        scores = tables.log_probs(frame, np.array(contexts))
        for u, label in enumerate(labels):
            step = scores[u, label] - ilm_scale * internal[contexts[u], label] + (silence_score if label == SIL else 0)
            alpha[u + 1, 1:] = np.logaddexp(alpha[u + 1, 1:], alpha[u, :-1] + step)
        left = np.logaddexp.reduce(alpha, axis=1) + scores[:, BLANK] - blank_penalty
        alpha = np.full_like(alpha, -np.inf)
        alpha[:, 0] = left
    return alpha[-1, 0]


def transducer_brute_force(tables, frames, lexicon, lm, max_symbols, *, acoustic_scale, lm_scale, word_bonus, **scores):
    classes, internal = [SIL, *phones_of(lexicon)], tables.internal_lm()
    lengths = range(len(frames) * max_symbols + 1)
    return brute_force(
        itertools.chain.from_iterable(itertools.product(classes, repeat=length) for length in lengths),
        lambda labels: forward_log_prob(tables, frames, labels, max_symbols, internal, **scores),
        lexicon,
        lm,
        acoustic_scale=acoustic_scale,
        lm_scale=lm_scale,
        word_bonus=word_bonus,
    )


def random_frames(rng, frames, tables):
    return rng.normal(0, 1, (frames, tables.d_joint)).astype(np.float32)


scales = {
    "acoustic_scale": st.sampled_from([1.0, 0.4]),
    "lm_scale": st.sampled_from([0.0, 1.0, 1.7]),
    "word_bonus": st.sampled_from([0.0, 0.9, -0.5]),
    "blank_penalty": st.sampled_from([0.0, 1.5]),
    "ilm_scale": st.sampled_from([0.0, 0.3, 1.0]),
    "silence_score": st.sampled_from([0.0, 0.7, -math.inf]),
}


@settings(max_examples=60, deadline=None)
@given(
    lexicon=lexicons(4),
    size=st.sampled_from([(1, 1), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)]),
    context=st.integers(1, 2),
    order=st.integers(1, 6),
    asked=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    **scales,
)
def test_a_wide_beam_equals_brute_force(lexicon, size, context, order, asked, seed, **options):
    rng, (frames, max_symbols) = np.random.default_rng(seed), size
    tables = random_tables(rng, context=context)
    sentences = [" ".join(rng.choice(lexicon.words, rng.integers(1, 5))) for _ in range(8)]
    lm = Walked(NGramLM.estimate(sentences, order, lexicon.words))
    if asked:
        lm = Asked(lm)
    projected = random_frames(rng, frames, tables)
    expected, acoustic = transducer_brute_force(tables, projected, lexicon, lm, max_symbols, **options)
    decoder = TransducerWordDecoder(lexicon, lm, tables, beam_size=WIDE, nbest=WIDE, max_symbols=max_symbols, **options)
    found = decoder.decode(projected)
    assert_all_found(found, expected, acoustic, lm, 1e-6)


@settings(max_examples=60, deadline=None)
@given(
    lexicon=lexicons(25),
    frames=st.integers(0, 15),
    context=st.integers(1, 2),
    max_symbols=st.integers(1, 4),
    beam_size=st.sampled_from([1, 3, 20, 100]),
    beam_threshold=st.sampled_from([math.inf, 5.0]),
    late=st.sampled_from([None, 0, 1, 4]),
    seed=st.integers(0, 2**32 - 1),
    **scales,
)
def test_a_narrow_beam_equals_the_reference(lexicon, frames, context, late, seed, **options):
    rng = np.random.default_rng(seed)
    tables = random_tables(rng, context=context)
    projected = random_frames(rng, frames, tables)
    delayed = None if late is None else DelayedFusion(Batched(Untied("late")), 0.7, late)
    options["lm_scale"] = max(options["lm_scale"], 0.3)  # without the language model, homophones score alike
    decoder = TransducerWordDecoder(lexicon, Untied(), tables, nbest=12, delayed=delayed, **options)
    found, expected = decoder.decode(projected), decode_transducer_reference(decoder, projected)
    assert_same_list(found, expected)


def test_acoustic_score_equals_the_transducer_loss_summed_over_silences():
    rng = np.random.default_rng(0)
    tables, lexicon = random_tables(rng), Lexicon({"a": [(1, 2, 2)], "b": [(2, 3)]})
    projected = random_frames(rng, 3, tables)
    lm = NGramLM.estimate(["a b", "b a", "a"], 2)
    decoder = TransducerWordDecoder(lexicon, lm, tables, beam_size=WIDE, nbest=WIDE, max_symbols=8)
    score = {hypothesis.words: hypothesis.acoustic_score for hypothesis in decoder.decode(projected)}["a", "b"]
    losses = []
    for before, between, after in itertools.product([0, 1], repeat=3):
        labels = [SIL] * before + [1, 2, 2] + [SIL] * between + [2, 3] + [SIL] * after
        contexts = np.array([tables.number(labels[:u]) for u in range(len(labels) + 1)])
        lattice = torch.tensor(np.stack([tables.log_probs(frame, contexts) for frame in projected]))[None]
        lengths = torch.tensor([3]), torch.tensor([len(labels)])
        losses.append(transducer_loss(lattice, torch.tensor([labels]), *lengths, blank=BLANK).item())
    assert score == pytest.approx(np.logaddexp.reduce([-loss for loss in losses]), abs=1e-6)


def test_taking_off_the_internal_language_model_divides_by_its_probability():
    rng = np.random.default_rng(1)
    tables, lexicon = random_tables(rng), Lexicon({"a": [(1, 2)], "b": [(3,)]})
    lm = NGramLM.estimate(["a", "b a"], 2)
    projected = random_frames(rng, 4, tables)
    options = {"beam_size": WIDE, "nbest": WIDE, "max_symbols": 1, "silence_score": -math.inf}
    plain = TransducerWordDecoder(lexicon, lm, tables, **options).decode(projected)
    taken_off = TransducerWordDecoder(lexicon, lm, tables, ilm_scale=0.25, **options).decode(projected)
    before = {hypothesis.words: hypothesis.acoustic_score for hypothesis in plain}
    after = {hypothesis.words: hypothesis.acoustic_score for hypothesis in taken_off}
    internal = tables.internal_lm()
    labels = [3, 1, 2]
    own = sum(internal[tables.number(labels[:u]), label] for u, label in enumerate(labels))
    assert after["b", "a"] - before["b", "a"] == pytest.approx(-0.25 * own, abs=1e-9)


def test_every_homophone_and_every_pronunciation_can_be_decoded():
    homophones = ["eight", "ate", "ait", "aight", "eyght", "eit", "eyot", "ayt"]
    lexicon = Lexicon(
        {
            **{word: [phonemes_to_ids(["EY", "T"])] for word in homophones},
            "read": [phonemes_to_ids(["R", "IY", "D"]), phonemes_to_ids(["R", "EH", "D"])],
            "red": [phonemes_to_ids(["R", "EH", "D"])],
            **{word: [phonemes_to_ids(["Y", "UW"])] for word in ("you", "ewe")},
            **{word: [phonemes_to_ids(["OW"])] for word in ("oh", "owe")},
            **{word: [phonemes_to_ids(["EH", "R"])] for word in ("heir", "air")},
        }
    )
    lm = NGramLM.estimate([f"you {word}" for word in lexicon.words], 2, lexicon.words)
    decoder = TransducerWordDecoder(lexicon, lm, spelling_tables(), nbest=200, word_bonus=3.0)

    def heard(phones):
        return {hypothesis.words for hypothesis in decoder.decode(spoken(*([phone] for phone in phones)))}

    you, eight = phonemes_to_ids(["Y", "UW"]), phonemes_to_ids(["EY", "T"])
    assert {("you", word) for word in homophones} <= heard([*you, SIL, *eight, SIL])
    assert {("you",), ("ewe",)} <= heard(you)
    assert {("oh",), ("owe",)} <= heard(phonemes_to_ids(["OW"]))
    assert {("heir",), ("air",)} <= heard(phonemes_to_ids(["EH", "R"]))
    assert ("read",) in heard(phonemes_to_ids(["R", "IY", "D"]))
    assert {("read",), ("red",)} <= heard(phonemes_to_ids(["R", "EH", "D"]))


def test_one_frame_may_hold_several_labels_but_no_more_than_allowed():
    lexicon = Lexicon({"a": [(1, 2, 3)]})
    lm = NGramLM.estimate(["a"], 1)
    frames = spoken([], [1, 2, 3], [])
    assert TransducerWordDecoder(lexicon, lm, spelling_tables(), max_symbols=3).decode(frames)[0].words == ("a",)
    one_each = TransducerWordDecoder(lexicon, lm, spelling_tables(), max_symbols=1).decode(frames)[0]
    three = TransducerWordDecoder(lexicon, lm, spelling_tables(), max_symbols=3).decode(frames)[0]
    assert three.acoustic_score > one_each.acoustic_score + 3


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("chunk", [1, 7])
def test_a_stream_gives_what_the_whole_utterance_gives(asked, chunk):
    rng = np.random.default_rng(4)
    tables = random_tables(rng)
    lexicon = Lexicon({f"w{i}": [tuple(rng.choice(LOUD[:3], rng.integers(1, 4)))] for i in range(40)})
    lm = NGramLM.estimate([" ".join(rng.choice(lexicon.words, 6)) for _ in range(60)], 3, lexicon.words)
    decoder = TransducerWordDecoder(lexicon, Asked(lm) if asked else lm, tables, beam_size=40, word_bonus=1.0)
    projected = random_frames(rng, 400, tables)  # so long that histories are collected
    state = decoder.start()
    for first in range(0, len(projected), chunk):
        decoder.step(state, projected[first : first + chunk])
        stable = decoder.stable_prefix(state)
        assert decoder.partial(state)[: len(stable)] == stable
    assert state.num_frames == 400
    found = decoder.finalize(state)
    assert found == decoder.decode(projected)
    assert state.search.counters[COMMITTED] > 0
    assert found[0].words[: len(stable)] == stable


def test_an_automaton_scores_as_its_model_does_when_asked():
    rng = np.random.default_rng(3)
    tables = random_tables(rng)
    lexicon = Lexicon({f"w{i}": [tuple(rng.integers(1, 4, rng.integers(1, 4)))] for i in range(40)})
    lm = NGramLM.estimate([" ".join(rng.choice(lexicon.words, 6)) for _ in range(60)], 4, lexicon.words)
    asked = Asked(Walked(lm))
    projected = random_frames(rng, 40, tables)
    options = {"beam_size": 60, "word_bonus": 1.0}
    found = TransducerWordDecoder(lexicon, asked, tables, **options).decode(projected)
    assert found == TransducerWordDecoder(lexicon, lm, tables, **options).decode(projected)
    assert asked.asked > 100


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(0)
    lexicon = Lexicon({"a": [(1, 2)], "b": [(2,), (3, 1)], "c": [(3,)]})
    lm = NGramLM.estimate(["a b c", "c b", "b a"], 3)
    decoder = TransducerWordDecoder(lexicon, lm, random_tables(rng), beam_size=20, nbest=3, ilm_scale=0.2)
    return decoder, [random_frames(rng, rng.integers(1, 12), decoder.tables) for _ in range(12)]


def test_worker_processes_change_nothing_but_time(small):
    decoder, utterances = small
    assert decode_batch(decoder, utterances, processes=2) == [decoder.decode(item) for item in utterances]


def test_a_copy_of_a_decoder_runs_the_same_compiled_code(small):
    decoder, utterances = small
    copy = pickle.loads(pickle.dumps(decoder))
    assert not any(array.flags.writeable for array in copy._joiner)
    expected = [decoder.decode(item) for item in utterances]
    compiled = len(advance_transducer.signatures)
    assert [copy.decode(item) for item in utterances] == expected
    assert len(advance_transducer.signatures) == compiled


def test_other_options_share_the_tables(small):
    decoder, utterances = small
    other = decoder.with_options(ilm_scale=0.0, max_symbols=2)
    fresh = TransducerWordDecoder(
        Lexicon({"a": [(1, 2)], "b": [(2,), (3, 1)], "c": [(3,)]}),
        decoder.fusion.scorer,
        decoder.tables,
        beam_size=20,
        nbest=3,
        max_symbols=2,
    )
    assert [other.decode(item) for item in utterances] == [fresh.decode(item) for item in utterances]
    assert other.tables is decoder.tables


def test_an_empty_utterance_has_no_words(small):
    decoder, _ = small
    nothing = decoder.decode(np.zeros((0, 5), np.float32))
    assert [hypothesis.words for hypothesis in nothing] == [()]
    assert nothing[0].acoustic_score == 0.0


@pytest.mark.parametrize(
    ("projected", "message"),
    [
        (np.zeros((4, 41)), r"projected frames must be \(frames, 5\), not \(4, 41\)"),
        (np.zeros(5), r"projected frames must be \(frames, 5\), not \(5,\)"),
        (np.where(np.arange(4)[:, None] == 2, np.nan, np.zeros((4, 5))), "NaN or infinity at frame 2 of 4"),
    ],
)
def test_bad_frames_are_named(small, projected, message):
    decoder, _ = small
    with pytest.raises(ValueError, match=message):
        decoder.decode(projected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size must be at least 1, not 0"),
        ({"max_symbols": 0}, "max_symbols must be at least 1, not 0"),
        ({"ilm_scale": -0.1}, "ilm_scale must be from 0 to 1, not -0.1"),
        ({"ilm_scale": math.nan}, "ilm_scale must be from 0 to 1, not nan"),
    ],
)
def test_bad_settings_are_named(small, options, message):
    with pytest.raises(ValueError, match=message):
        small[0].with_options(**options)
