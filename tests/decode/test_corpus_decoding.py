"""Two passes over sentences of two corpora: which corpus is inferred, and what the second pass makes of it."""

import math
from functools import partial

import numpy as np
import pytest

from mode_ssm.decode.batch import decode_batch
from mode_ssm.decode.corpus_decoding import CorpusDecoder
from mode_ssm.decode.ctc_beam import CtcWordDecoder
from mode_ssm.decode.delayed_fusion import DelayedFusion
from mode_ssm.decode.hypothesis import Hypothesis
from mode_ssm.lm.corpora import CorpusModels
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.vocab import BLANK, NUM_CLASSES

# "you" and "ewe" sound alike: only the corpus tells them apart.
LEXICON = Lexicon({"thank": [(1, 2)], "you": [(3,)], "ewe": [(3,)], "seven": [(4, 5)], "grazes": [(6, 2)]})
TEXTS = {
    "talk": ["thank you", "you", "thank you thank you", "you thank"] * 4,
    "farm": ["seven ewe", "ewe grazes", "seven ewe grazes", "ewe"] * 3,
}
OPTIONS = {"beam_size": 50, "nbest": 6, "acoustic_scale": 0.7, "lm_scale": 1.3, "word_bonus": 0.4}


@pytest.fixture(scope="module")
def lms():
    return {name: NGramLM.estimate(text, 2, LEXICON.words) for name, text in TEXTS.items()}


@pytest.fixture(scope="module")
def first():
    return CtcWordDecoder(LEXICON, NGramLM.estimate([*TEXTS["talk"], *TEXTS["farm"]], 2, LEXICON.words), **OPTIONS)


@pytest.fixture(scope="module")
def second(lms):
    return {name: CtcWordDecoder(LEXICON, lm, **OPTIONS) for name, lm in lms.items()}


def spoken(sentence, *, clear=6.0):
    """A frame for each phoneme, a blank after it; other classes have some evidence too."""
    frames = []
    for word in sentence.split():
        for phoneme in LEXICON[word][0]:
            frames += [phoneme, BLANK]
    logits = np.random.default_rng(len(sentence)).normal(0, 0.5, (len(frames), NUM_CLASSES))
    logits[np.arange(len(frames)), frames] += clear
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def texts(nbests):
    return [nbest[0].text for nbest in nbests]


def test_the_block_decides_between_homophones(first, lms, second):
    sentences = ["you", "thank you", "you", "seven ewe grazes", "ewe", "seven ewe"]
    inputs = [spoken(sentence) for sentence in sentences]
    blocks = [("monday", 1)] * 3 + [("monday", 2)] * 3
    assert texts(CorpusDecoder(first, CorpusModels(lms)).decode(inputs))[4] == "you"
    for again in (second, None):
        decoder = CorpusDecoder(first, CorpusModels(lms), again)
        assert texts(decoder.decode(inputs, blocks)) == sentences
        # The order of blocks does not matter, that of sentences within a block stays.
        mixed = [3, 0, 1, 4, 2, 5]
        found = decoder.decode([inputs[i] for i in mixed], [blocks[i] for i in mixed])
        assert texts(found) == [sentences[i] for i in mixed]


def test_a_causal_decoder_looks_at_earlier_sentences_only(first, lms, second):
    inputs, blocks = [spoken("ewe"), spoken("seven ewe grazes"), spoken("ewe")], [1, 1, 1]
    assert texts(CorpusDecoder(first, CorpusModels(lms), second).decode(inputs, blocks))[0] == "ewe"
    causal = CorpusDecoder(first, CorpusModels(lms), second, causal=True)
    assert texts(causal.decode(inputs, blocks)) == ["you", "seven ewe grazes", "ewe"]


def test_the_evidence_is_that_of_the_signal_and_not_of_the_first_language_model(first, lms):
    corpora = CorpusModels(lms)
    nbest = first.decode(spoken("seven ewe", clear=2.0))
    expected = [
        math.log(
            sum(
                math.exp((0.7 * h.acoustic_score + 0.4 * len(h.words)) / 1.3 + lm.sequence_log_prob(h.words))
                for h in nbest
            )
        )
        for lm in lms.values()
    ]
    assert len(nbest) > 2
    assert CorpusDecoder(first, corpora).evidence([nbest])[0] == pytest.approx(np.array(expected))


def test_ranking_anew_scores_with_the_mixture(first, lms):
    corpora = CorpusModels(lms)
    decoder = CorpusDecoder(first, corpora)
    inputs = [spoken("ewe", clear=2.0), spoken("seven ewe", clear=2.0)]
    nbests = [first.decode(item) for item in inputs]
    weights = decoder.weights(decoder.evidence(nbests), [1, 1])
    assert weights.posterior == pytest.approx(corpora.posterior(weights.given_others, decoder.evidence(nbests)))
    final = decoder.decode(inputs, [1, 1])
    assert [h.words for h in final[0]] != [h.words for h in nbests[0]]
    for before, after, row in zip(nbests, final, weights.given_others, strict=True):
        assert {h.words for h in before} == {h.words for h in after}
        assert [h.score for h in after] == sorted((h.score for h in after), reverse=True)
        for h in after:
            mixed = math.log(
                sum(w * math.exp(lm.sequence_log_prob(h.words)) for w, lm in zip(row, lms.values(), strict=True))
            )
            assert h.lm_score == pytest.approx(mixed)
            assert h.score == pytest.approx(0.7 * h.acoustic_score + 1.3 * mixed + 0.4 * len(h.words), abs=1e-4)


class OneWordEach:
    """A second language model: every word costs the same."""

    def start(self):
        return 0

    def advance(self, states, words):
        return np.full(len(words), -2.0), [0] * len(words)

    def end(self, states):
        return np.full(len(states), -1.0)

    def sentence_log_probs(self, sentences):
        return np.array([-2.0 * len(words) - 1.0 for words in sentences])


def test_a_delayed_language_model_keeps_its_part_of_the_score(first, lms):
    delayed = first.with_options(delayed=DelayedFusion(OneWordEach(), weight=0.25, every=1))
    for h in CorpusDecoder(delayed, CorpusModels(lms)).decode([spoken("seven ewe", clear=2.0)])[0]:
        both = 0.75 * h.lm_score + 0.25 * (-2.0 * len(h.words) - 1.0)
        assert h.score == pytest.approx(0.7 * h.acoustic_score + 1.3 * both + 0.4 * len(h.words), abs=1e-4)


def test_the_second_search_is_that_of_the_probable_corpus_and_others_keep_the_first(first, lms, second):
    inputs = [spoken(sentence) for sentence in ("thank you thank you", "seven ewe grazes")]
    both = CorpusDecoder(first, CorpusModels(lms), second).decode(inputs)
    assert both == [second["talk"].decode(inputs[0]), second["farm"].decode(inputs[1])]
    only_farm = CorpusDecoder(first, CorpusModels(lms), {"farm": second["farm"]}).decode(inputs)
    assert only_farm == [first.decode(inputs[0]), second["farm"].decode(inputs[1])]


def test_worker_processes_change_nothing(first, lms, second):
    inputs, blocks = [spoken("ewe"), spoken("seven ewe"), spoken("thank you"), spoken("you")], [1, 1, 2, 2]
    decoder = CorpusDecoder(first, CorpusModels(lms), {"farm": second["farm"]})
    assert decoder.decode(inputs, blocks, partial(decode_batch, processes=2)) == decoder.decode(inputs, blocks)


def test_nothing_heard_says_nothing(first, lms, second):
    decoder = CorpusDecoder(first, CorpusModels(lms, {"talk": 1.0, "farm": 3.0}))
    silent = Hypothesis(words=(), score=-math.inf, acoustic_score=-math.inf, lm_score=-1.0)
    weights = decoder.weights(decoder.evidence([[silent]]))
    assert weights.posterior == pytest.approx(np.array([[0.25, 0.75]]))
    assert decoder.second_pass([np.zeros((0, NUM_CLASSES))], [[silent]], weights)[0][0].score == -math.inf
    assert decoder.decode([]) == []


def test_bad_settings_are_named(first, lms, second):
    corpora = CorpusModels(lms)
    with pytest.raises(ValueError, match="no language model of corpus 'zoo'; there are talk, farm"):
        CorpusDecoder(first, corpora, {"zoo": first})
    with pytest.raises(ValueError, match="needs lm_scale above 0, not 0"):
        CorpusDecoder(first.with_options(lm_scale=0.0), corpora)
    decoder = CorpusDecoder(first, corpora, purity=2.0)
    with pytest.raises(ValueError, match="2 sentences but 1 blocks"):
        decoder.weights(np.zeros((2, 2)), [1])
    with pytest.raises(ValueError, match="purity of a block must be from 0 to 1"):
        decoder.weights(np.zeros((2, 2)), [1, 1])
