"""Entropy pruning against the divergence computed by enumeration."""

import itertools
import math
from pathlib import Path

import pytest

from mode_ssm.lm.ngram import NGramLM
from mode_ssm.lm.ngram_automaton import NGramTable
from mode_ssm.lm.ngram_mixture import backoff_weights, rows_of_histories
from mode_ssm.lm.ngram_pruning import entropy_prune

WORDS = ["a", "b", "c"]
TEXT = ["a b c", "a b c", "a b a", "b a", "c", "a b", "c c b a", "b b"]
SENTENCES = (Path(__file__).parent / "fixtures" / "sentences.txt").read_text().splitlines()


def ngrams(lm, order):
    automaton = lm.automaton(single_precision=False)
    tables = automaton.tables()
    if len(tables) < order:
        return set()
    return {tuple(automaton.words[i] for i in ids) for ids in tables[order - 1].ids}


def without(lm, dropped):
    """`lm` without one bigram, its back-off weights made anew."""
    automaton = lm.automaton(single_precision=False)
    words, (unigrams, bigrams) = automaton.words, automaton.tables()
    keep = [tuple(words[i] for i in ids) != dropped for ids in bigrams.ids]
    kept = NGramTable(ids=bigrams.ids[keep], log_prob=bigrams.log_prob[keep], backoff=bigrams.backoff[keep])
    history = rows_of_histories(unigrams.ids, kept.ids)
    unigrams.backoff[:] = backoff_weights(words, [unigrams], kept.ids, history, kept.log_prob)
    return NGramLM(words, [unigrams, kept])


def rise_of_perplexity(lm, smaller):
    """exp(sum over histories and words of P(history) P(word | history) log P / P') - 1, histories being one word."""
    divergence = 0.0
    for history in ["<s>", *WORDS]:
        weight = 1.0 if history == "<s>" else math.exp(lm.unigram(history))
        states = [model.start() if history == "<s>" else model.score(0, history)[1] for model in (lm, smaller)]
        for word in [*WORDS, "</s>"]:
            values = [
                model.end(state) if word == "</s>" else model.score(state, word)[0]
                for model, state in zip((lm, smaller), states, strict=True)
            ]
            divergence += weight * math.exp(values[0]) * (values[0] - values[1])
    return math.expm1(divergence)


@pytest.mark.parametrize("threshold", [1e-3, 1e-2, 5e-2])
def test_bigrams_go_whose_removal_costs_less_than_the_threshold(threshold):
    lm = NGramLM.estimate(TEXT, 2, WORDS)
    costs = {ngram: rise_of_perplexity(lm, without(lm, ngram)) for ngram in ngrams(lm, 2)}
    assert min(costs.values()) < 1e-2 < max(costs.values())
    assert min(abs(cost - threshold) for cost in costs.values()) > 1e-6
    assert ngrams(entropy_prune(lm, threshold), 2) == {ngram for ngram, cost in costs.items() if cost >= threshold}


@pytest.mark.parametrize("threshold", [1e-4, 1e-3, 1e-2, 1.0])
def test_probabilities_sum_to_one_and_histories_stay(threshold):
    lm = entropy_prune(NGramLM.estimate(TEXT, 4, WORDS), threshold)
    for k in range(2, lm.order + 1):
        assert {ngram[:-1] for ngram in ngrams(lm, k)} <= ngrams(lm, k - 1)
    for history in itertools.chain.from_iterable(itertools.product(WORDS, repeat=n) for n in range(4)):
        for state in (0, lm.start()):
            for word in history:
                state = lm.score(state, word)[1]
            values = [math.exp(lm.score(state, word)[0]) for word in WORDS] + [math.exp(lm.end(state))]
            assert sum(values) == pytest.approx(1.0, abs=1e-9)


def test_a_higher_threshold_leaves_fewer_ngrams_and_a_higher_perplexity_of_the_training_text():
    lm = NGramLM.estimate(SENTENCES, 3)
    pruned = [lm, *(entropy_prune(lm, threshold) for threshold in (1e-5, 1e-4, 1e-3))]
    sizes = [sum(len(ngrams(model, k)) for k in (2, 3)) for model in pruned]
    perplexities = [model.perplexity(SENTENCES).perplexity for model in pruned]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.8 * sizes[0]
    assert perplexities == sorted(perplexities)
    assert perplexities[1] < 1.01 * perplexities[0]


def test_a_threshold_must_be_positive():
    with pytest.raises(ValueError, match="must be positive, not 0"):
        entropy_prune(NGramLM.estimate(TEXT, 2), 0)
