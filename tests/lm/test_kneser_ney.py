"""Estimation against what KenLM's lmplz printed for the same sentences, and what pruning must keep.

fixtures/lmplz_order3.arpa: lmplz -o 3 --discount_fallback < sentences.txt
fixtures/lmplz_order4_pruned.arpa: lmplz -o 4 --discount_fallback --prune 0 1 1 2 < sentences.txt
"""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mode_ssm.lm.arpa import read_arpa_tables
from mode_ssm.lm.kneser_ney import discounts
from mode_ssm.lm.ngram import NGramLM

FIXTURES = Path(__file__).parent / "fixtures"
SENTENCES = (FIXTURES / "sentences.txt").read_text().splitlines()


def log10_by_ngram(words, tables):
    """{n-gram: (log10 probability, log10 back-off weight)}; without the probability of <s>, which nobody predicts."""
    found = {}
    for table in tables:
        for ids, log_prob, backoff in zip(table.ids, table.log_prob, table.backoff, strict=True):
            ngram = " ".join(words[i] for i in ids)
            found[ngram] = (0.0 if ngram == "<s>" else log_prob / math.log(10), backoff / math.log(10))
    return found


@pytest.mark.parametrize(("order", "prune", "file"), [(3, (), "order3"), (4, (0, 1, 1, 2), "order4_pruned")])
def test_estimate_equals_lmplz(order, prune, file):
    lm = NGramLM.estimate(SENTENCES, order, prune=prune, like_lmplz=True)
    automaton = lm.automaton(single_precision=False)
    ours = log10_by_ngram(automaton.words, automaton.tables())
    theirs = log10_by_ngram(*read_arpa_tables(FIXTURES / f"lmplz_{file}.arpa"))
    assert ours.keys() == theirs.keys()
    assert len(ours) > 300
    for ngram, expected in theirs.items():
        assert ours[ngram] == pytest.approx(expected, abs=2e-6), ngram


def test_lmplz_accepts_that_no_ngram_occurs_four_times():
    counts = np.array([1] * 6 + [2] * 2 + [3])
    y = 6 / 10
    assert discounts(counts, like_lmplz=True) == pytest.approx((1 - 2 * y * 2 / 6, 2 - 3 * y * 1 / 2, 3))
    assert discounts(counts) == (0.5, 1.0, 1.5)


def test_words_of_the_vocabulary_share_what_unknown_words_get_like_lmplz():
    ours = NGramLM.estimate(SENTENCES, 2)
    like_lmplz = NGramLM.estimate(SENTENCES, 2, like_lmplz=True)
    assert like_lmplz.vocabulary == ours.vocabulary
    unknown = like_lmplz.unigram("zebra")
    assert unknown == pytest.approx(like_lmplz.score(0, "elephant")[0])
    words = sum(math.exp(like_lmplz.unigram(word)) for word in like_lmplz.vocabulary)
    assert words + math.exp(like_lmplz.end(0)) + math.exp(unknown) == pytest.approx(1.0)
    assert ours.unigram("zebra") == -math.inf


WORDS = ["a", "b", "c"]


@settings(max_examples=40, deadline=None)
@given(
    text=st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), min_size=1, max_size=20),
    prune=st.sampled_from([(0, 1), (0, 0, 1), (0, 1, 2), (0, 0, 0, 2), (0, 9)]),
    like_lmplz=st.booleans(),
)
def test_pruned_probabilities_sum_to_one_after_every_history(text, prune, like_lmplz):
    lm = NGramLM.estimate(text, 4, WORDS, prune=prune, like_lmplz=like_lmplz)
    outcomes = [*WORDS, *(["<unk>"] if like_lmplz else [])]
    for history in itertools.chain.from_iterable(itertools.product(WORDS, repeat=n) for n in range(4)):
        for state in (0, lm.start()):
            for word in history:
                state = lm.score(state, word)[1]
            values = [math.exp(lm.score(state, word)[0]) for word in outcomes] + [math.exp(lm.end(state))]
            assert sum(values) == pytest.approx(1.0, abs=1e-9)


def test_pruning_leaves_out_what_is_rare_and_lower_orders_are_unchanged():
    whole = NGramLM.estimate(SENTENCES, 3).automaton(single_precision=False)
    pruned = NGramLM.estimate(SENTENCES, 3, prune=(0, 0, 1)).automaton(single_precision=False)
    padded = [f"<s> {sentence} </s>".split() for sentence in SENTENCES]
    trigrams = [tuple(words[i : i + 3]) for words in padded for i in range(len(words) - 2)]
    expected = {ngram for ngram in trigrams if trigrams.count(ngram) > 1}
    before, after = (log10_by_ngram(a.words, a.tables()) for a in (whole, pruned))
    assert {tuple(ngram.split()) for ngram in after if len(ngram.split()) == 3} == expected
    for ngram in before.keys() - after.keys():
        assert len(ngram.split()) == 3
    for ngram in after:
        if len(ngram.split()) < 3:
            assert after[ngram][0] == pytest.approx(before[ngram][0], abs=1e-12)
        else:  # what its rare neighbours had is shared out along the lower order
            assert after[ngram][0] >= before[ngram][0] - 1e-12


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        ((1,), "unigrams cannot be pruned: the first threshold must be 0, not 1"),
        ((0, 2, 1), r"do not fall from order to order, not \(0, 2, 1\)"),
        ((0, -1), "must be counts"),
        ((0, 0, 0, 1), "4 pruning thresholds for a model of order 3"),
    ],
)
def test_thresholds_that_make_no_sense_are_errors(prune, message):
    with pytest.raises(ValueError, match=message):
        NGramLM.estimate(SENTENCES, 3, prune=prune)


def test_upper_case_text_is_named_as_the_reason():
    with pytest.raises(ValueError, match=r"\(wrong case: lower it\): A, AGAIN"):
        NGramLM.estimate([sentence.upper() for sentence in SENTENCES], 2, {w for s in SENTENCES for w in s.split()})
    with pytest.raises(ValueError, match="wrong case or wrong lexicon"):
        NGramLM.estimate(SENTENCES, 2, ["zebra"])
