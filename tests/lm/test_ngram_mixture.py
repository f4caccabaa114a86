"""Interpolation: normalised, exact where the n-grams are, and weights that held-out text cannot better."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mode_ssm.lm.ngram import NGramLM
from mode_ssm.lm.ngram_mixture import InterpolatedScorer, interpolate, tune_weights

WORDS = ["a", "b", "c"]
TEXT = st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), min_size=1, max_size=12)


def state_after(model, history, *, start):
    state = model.start() if start else model.score(model.start(), "nobody says this")[1]
    for word in history:
        state = model.score(state, word)[1]
    return state


@settings(max_examples=40, deadline=None)
@given(
    texts=st.tuples(TEXT, TEXT), orders=st.tuples(st.integers(1, 3), st.integers(1, 3)), weight=st.floats(0.05, 0.95)
)
def test_probabilities_sum_to_one_after_every_history(texts, orders, weight):
    models = [NGramLM.estimate(text, order) for text, order in zip(texts, orders, strict=True)]
    weights = (weight, 1 - weight)
    for mixed in (interpolate(models, weights), InterpolatedScorer(models, weights)):
        known = {word for model in models for word in model.vocabulary}
        for history in itertools.chain.from_iterable(itertools.product(WORDS, repeat=n) for n in range(3)):
            for start in (True, False):
                state = state_after(mixed, history, start=start)
                values = [math.exp(mixed.score(state, word)[0]) for word in known] + [math.exp(mixed.end(state))]
                assert sum(values) == pytest.approx(1.0, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(texts=st.tuples(TEXT, TEXT), order=st.integers(1, 3), weight=st.floats(0.05, 0.95))
def test_ngrams_of_the_union_have_the_interpolated_probability(texts, order, weight):
    models = [NGramLM.estimate(text, order) for text in texts]
    mixed, exact = interpolate(models, (weight, 1 - weight)), InterpolatedScorer(models, (weight, 1 - weight))
    for sentence in itertools.chain(*texts):
        words = sentence.split()
        assert mixed.sequence_log_prob(words) == pytest.approx(exact.sequence_log_prob(words), abs=1e-9)


def test_equal_models_interpolate_to_themselves():
    lm = NGramLM.estimate(["a b c", "b a", "c c a", "a"], 3, [*WORDS, "d"])
    mixed = interpolate([lm, lm], (3, 1))
    for words in itertools.product([*WORDS, "d"], repeat=3):
        assert mixed.sequence_log_prob(words) == pytest.approx(lm.sequence_log_prob(words), abs=1e-9)


def test_the_unknown_word_of_the_models_stays():
    models = [NGramLM.estimate(["a b"], 2, like_lmplz=True), NGramLM.estimate(["b c"], 2, like_lmplz=True)]
    mixed = interpolate(models, (0.5, 0.5))
    expected = sum(0.5 * math.exp(model.unigram("zebra")) for model in models)
    assert math.exp(mixed.unigram("zebra")) == pytest.approx(expected)
    # a word that only the other model knows is an unknown one to this model
    expected = 0.5 * math.exp(models[0].unigram("zebra")) + 0.5 * math.exp(models[1].unigram("c"))
    assert math.exp(mixed.unigram("c")) == pytest.approx(expected)


def test_tuned_weights_maximise_the_likelihood_of_held_out_text():
    rng = np.random.default_rng(0)

    def sentences(number, p):
        return [" ".join(rng.choice(WORDS, 5, p=p)) for _ in range(number)]

    models = [NGramLM.estimate(sentences(80, p), 2, WORDS) for p in ([0.8, 0.1, 0.1], [0.1, 0.1, 0.8])]
    held_out = [*sentences(60, [0.8, 0.1, 0.1]), *sentences(20, [0.1, 0.1, 0.8]), "zebra"]
    found = tune_weights(models, held_out)
    assert sum(found) == pytest.approx(1.0)

    def log_likelihood(weight):
        mixed = InterpolatedScorer(models, (weight, 1 - weight))
        return sum(mixed.sequence_log_prob(sentence.split()) for sentence in held_out[:-1])

    grid = np.linspace(0.01, 0.99, 99)
    best = grid[int(np.argmax([log_likelihood(weight) for weight in grid]))]
    assert found[0] == pytest.approx(best, abs=0.011)
    assert 0.55 < found[0] < 0.9


def test_a_model_that_does_not_help_gets_next_to_nothing():
    models = [NGramLM.estimate(["a b c"] * 5, 3, WORDS), NGramLM.estimate(["c b a"] * 5, 3, WORDS)]
    assert tune_weights(models, ["a b c"] * 10)[0] > 0.95


@pytest.mark.parametrize("weights", [(1.0,), (0.5, 0.0), (0.5, -1.0), (1.0, math.inf), (math.nan, 1.0)])
def test_bad_weights_are_errors(weights):
    lm = NGramLM.estimate(["a"], 1)
    with pytest.raises(ValueError, match="2 models need as many positive weights"):
        interpolate([lm, lm], weights)
    with pytest.raises(ValueError, match="2 models need as many positive weights"):
        InterpolatedScorer([lm, lm], weights)


def test_no_held_out_text_is_an_error():
    lm = NGramLM.estimate(["a"], 1)
    with pytest.raises(ValueError, match="cannot be tuned"):
        tune_weights([lm, lm], [])
