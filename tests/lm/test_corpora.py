"""Which corpus a sentence is from: Bayes by hand, and blocks by enumeration."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mode_ssm.lm.corpora import CorpusModels, load_models
from mode_ssm.lm.ngram import NGramLM

VOCABULARY = ["please", "thank", "you", "seven", "horses"]
TEXTS = {
    "talk": ["thank you", "please", "thank you please"] * 3,
    "random": ["seven horses please", "horses you seven", "thank seven"] * 3,
}


@pytest.fixture
def models():
    lms = {name: NGramLM.estimate(text, 3, VOCABULARY) for name, text in TEXTS.items()}
    return CorpusModels(lms, {"talk": 3, "random": 1}), lms


def alone(corpora, evidence):
    return posteriors(corpora, evidence[None], purity=0.0)[0]


def posteriors(corpora, evidence, **block):
    return corpora.posterior(corpora.given_others(evidence, **block), evidence)


def test_the_posterior_is_bayes_rule(models):
    corpora, lms = models
    nbest, log_weights = [["thank", "you"], ["seven", "you"]], [-1.0, -0.5]
    joint = [
        share * sum(math.exp(w + lms[name].sequence_log_prob(h)) for h, w in zip(nbest, log_weights, strict=True))
        for name, share in (("talk", 0.75), ("random", 0.25))
    ]
    found = alone(corpora, corpora.evidence(nbest, log_weights))
    assert found == pytest.approx(np.array(joint) / sum(joint))
    assert found[0] > 0.9
    assert alone(corpora, corpora.evidence([["seven", "horses"]]))[1] > 0.8


@settings(max_examples=60, deadline=None)
@given(
    evidence=st.lists(st.tuples(*[st.floats(-6, 6)] * 3), min_size=1, max_size=4),
    prior=st.tuples(*[st.floats(0.1, 1)] * 3),
    purity=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    causal=st.booleans(),
)
def test_block_posteriors_equal_enumeration(evidence, prior, purity, causal):
    lm = NGramLM.estimate(["a"], 1)
    corpora = CorpusModels({"a": lm, "b": lm, "c": lm}, dict(zip("abc", prior, strict=True)))
    shares = np.array(prior) / sum(prior)
    likelihood = np.exp(np.array(evidence))
    given_others = corpora.given_others(np.array(evidence), purity=purity, causal=causal)
    found = corpora.posterior(given_others, np.array(evidence))
    for i in range(len(evidence)):
        seen = i + 1 if causal else len(evidence)
        expected = np.zeros((2, 3))  # without and with the sentence's own signal
        for block in range(3):
            for own in itertools.product(range(3), repeat=seen):
                joint = shares[block]
                for sentence, corpus in enumerate(own):
                    joint *= purity * (corpus == block) + (1 - purity) * shares[corpus]
                    joint *= likelihood[sentence, corpus] if sentence != i else 1.0
                expected[:, own[i]] += joint, joint * likelihood[i, own[i]]
        expected /= expected.sum(axis=1, keepdims=True)
        assert given_others[i] == pytest.approx(expected[0], abs=1e-9)
        assert found[i] == pytest.approx(expected[1], abs=1e-9)


def test_the_block_decides_what_a_sentence_leaves_open(models):
    corpora, _ = models
    open_ = np.zeros(2)
    clear = np.array([-30.0, 0.0])
    block = np.stack([open_, clear, open_, clear])
    together = posteriors(corpora, block, purity=0.9)
    causal = posteriors(corpora, block, purity=0.9, causal=True)
    assert alone(corpora, open_) == pytest.approx([0.75, 0.25])
    assert together[0, 1] > 0.9
    assert causal[0] == pytest.approx([0.75, 0.25])
    assert 0.25 < causal[2, 1] < together[2, 1]


def test_a_sentence_that_no_corpus_can_produce_says_nothing(models):
    corpora, _ = models
    impossible = corpora.evidence([["zebra"]])
    assert np.isneginf(impossible).all()
    assert alone(corpora, impossible) == pytest.approx([0.75, 0.25])
    with_clear = posteriors(corpora, np.stack([impossible, [-30.0, 0.0]]))
    assert with_clear[0, 1] > 0.9


def test_long_blocks_stay_finite(models):
    corpora, _ = models
    evidence = np.tile([-800.0, 0.0], (500, 1))
    evidence[7] = [0.0, -800.0]
    for purity in (0.95, 1.0):
        found = posteriors(corpora, evidence, purity=purity)
        assert np.isfinite(found).all()
        assert found.sum(axis=1) == pytest.approx(np.ones(500))
    assert posteriors(corpora, evidence, purity=0.95)[7, 0] > 0.99
    assert posteriors(corpora, evidence, purity=1.0)[7, 1] > 0.99


def test_a_sentence_is_of_one_corpus_of_the_mixture_from_end_to_end(models):
    corpora, lms = models
    sentences = [["thank", "you"], ["seven"], []]
    expected = [
        math.log(sum(w * math.exp(lm.sequence_log_prob(s)) for w, lm in zip((0.4, 0.6), lms.values(), strict=True)))
        for s in sentences
    ]
    assert corpora.mixed_log_probs(sentences, np.array([0.4, 0.6])) == pytest.approx(expected)
    of_one = [lms["talk"].sequence_log_prob(s) for s in sentences]
    assert corpora.mixed_log_probs(sentences, np.array([1.0, 0.0])) == pytest.approx(of_one)
    assert corpora.log_probs([]).shape == (2, 0)


def test_the_mixture_by_what_was_heard_predicts_better_than_a_pooled_model():
    """Sentences of two kinds; the posterior of each comes from a noisy hypothesis, one of its words replaced."""
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(20)]

    def sentence(step):
        found = [int(rng.integers(20))]
        for _ in range(6):
            found.append((found[-1] + step + int(rng.integers(3))) % 20)
        return [words[i] for i in found]

    train = {name: [" ".join(sentence(step)) for _ in range(150)] for name, step in (("up", 1), ("down", -5))}
    lms = {name: NGramLM.estimate(text, 2, words) for name, text in train.items()}
    pooled = NGramLM.estimate([*train["up"], *train["down"]], 2, words)
    corpora = CorpusModels(lms)
    totals = np.zeros(2)
    for step in (1, -5) * 30:
        truth = sentence(step)
        heard = list(truth)
        heard[int(rng.integers(len(heard)))] = str(rng.choice(words))
        weights = alone(corpora, corpora.evidence([heard]))
        totals += [corpora.mixed_log_probs([truth], weights)[0], pooled.sequence_log_prob(truth)]
    assert totals[0] > totals[1] + 60  # more than one nat a sentence


def test_bad_input_is_named(models):
    corpora, lms = models
    with pytest.raises(ValueError, match="at least one language model"):
        CorpusModels({})
    for prior in ({"talk": 1.0}, {"talk": 1.0, "random": 0.0}, {"talk": 1.0, "other": 1.0}):
        with pytest.raises(ValueError, match="the prior needs a positive number for each of talk, random"):
            CorpusModels(lms, prior)
    with pytest.raises(ValueError, match="no hypotheses"):
        corpora.evidence([])
    with pytest.raises(ValueError, match="2 hypotheses but 1 weights"):
        corpora.evidence([["thank"], ["you"]], [0.0])
    with pytest.raises(ValueError, match=r"purity of a block must be from 0 to 1, not 1\.5"):
        corpora.given_others(np.zeros((2, 2)), purity=1.5)
    with pytest.raises(ValueError, match=r"evidence must be numbers \(sentences, 2 corpora\)"):
        corpora.given_others(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="evidence must be numbers"):
        corpora.given_others(np.full((1, 2), np.nan))


def test_text_files_become_models_and_models_are_opened(tmp_path):
    text, mapped = tmp_path / "talk.txt", tmp_path / "random.ngram"
    text.write_text("Thank you.\n\nPlease!\nThank you, please.\n")
    NGramLM.estimate(TEXTS["random"], 3, VOCABULARY).save(mapped)
    found = load_models([str(text), str(mapped)], VOCABULARY, 2)
    talk = NGramLM.estimate(["thank you", "please", "thank you please"], 2, VOCABULARY)
    for words in (["thank", "you"], ["horses"]):
        assert found["talk"].sequence_log_prob(words) == pytest.approx(talk.sequence_log_prob(words))
        expected = NGramLM.load(mapped).sequence_log_prob(words)
        assert found["random"].sequence_log_prob(words) == pytest.approx(expected)
    assert list(found) == ["talk", "random"]
    assert load_models([], VOCABULARY, 2) == {}


def test_a_bad_file_of_a_corpus_is_named(tmp_path):
    def load(content):
        path = tmp_path / "talk.txt"
        path.write_text(content)
        return load_models([str(path)] * 2, VOCABULARY, 2)

    with pytest.raises(ValueError, match=r"corpus missing\.txt: no such file"):
        load_models(["missing.txt"], VOCABULARY, 2)
    with pytest.raises(ValueError, match=r"talk\.txt: no sentences; expected one a line"):
        load("\n \n")
    with pytest.raises(ValueError, match=r"corpus .*talk\.txt: .*training words are not in the vocabulary"):
        load("zebras graze\n")
    with pytest.raises(ValueError, match=r"corpus .*talk\.txt: another one is called 'talk' too"):
        load("please\n")
