"""The n-gram model against a slow reading of the formulas, and ARPA against hand-worked numbers."""

import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mode_ssm.lm.kneser_ney import FALLBACK_DISCOUNTS, discounts
from mode_ssm.lm.ngram import NGramLM


class SlowKneserNey:
    """Interpolated modified Kneser-Ney, one dictionary look-up at a time."""

    def __init__(self, sentences, order, vocabulary):
        self.outcomes = [*vocabulary, "</s>"]
        padded = [("<s>", *sentence.split(), "</s>") for sentence in sentences]
        raw = [
            Counter(words[i : i + k] for words in padded for i in range(len(words) - k + 1))
            for k in range(1, order + 1)
        ]
        self.counts = []
        for k in range(1, order + 1):
            before = defaultdict(set)
            for ngram in raw[k] if k < order else ():
                before[ngram[1:]].add(ngram[0])
            self.counts.append(
                {
                    ngram: count if k == order or ngram[0] == "<s>" else len(before[ngram])
                    for ngram, count in raw[k - 1].items()
                    if ngram != ("<s>",)
                }
            )
        self.discounts = [self.find_discounts(list(counts.values())) for counts in self.counts]

    @staticmethod
    def find_discounts(counts):
        t1, t2, t3, t4 = (sum(c == n for c in counts) for n in (1, 2, 3, 4))
        if 0 in (t1, t2, t3, t4):
            return 0.5, 1.0, 1.5
        y = t1 / (t1 + 2 * t2)
        d1, d2, d3 = 1 - 2 * y * t2 / t1, 2 - 3 * y * t3 / t2, 3 - 4 * y * t4 / t3
        return (d1, d2, d3) if 0 < d1 <= 1 and 0 < d2 <= 2 and 0 < d3 <= 3 else (0.5, 1.0, 1.5)

    def probability(self, word, history):
        history = history[max(0, len(history) - len(self.counts) + 1) :]
        lower = self.probability(word, history[1:]) if history else 1 / len(self.outcomes)
        counts = {v: c for (*h, v), c in self.counts[len(history)].items() if tuple(h) == history}
        if not counts:
            return lower
        discount = [0.0, *self.discounts[len(history)]]
        total = sum(counts.values())
        freed = sum(discount[min(c, 3)] for c in counts.values())
        count = counts.get(word, 0)
        return (count - discount[min(count, 3)]) / total + freed / total * lower


def state_after(lm, history):
    """The state after a history that starts with <s> or, without it, at nothing."""
    words = list(history)
    state = lm.start() if words[:1] == ["<s>"] else 0
    for word in words[1:] if words[:1] == ["<s>"] else words:
        state = lm.score(state, word)[1]
    return state


def probabilities(lm, state):
    return [math.exp(lm.score(state, word)[0]) for word in lm.vocabulary] + [math.exp(lm.end(state))]


def corpus(seed, vocabulary, sentences):
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, len(vocabulary) + 1)
    lengths = rng.integers(1, 7, sentences)
    return [" ".join(rng.choice(vocabulary, n, p=weights / weights.sum())) for n in lengths]


VOCABULARY = [f"w{i:02d}" for i in range(12)]


@pytest.mark.parametrize("order", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("sentences", [3, 400])
def test_estimate_equals_the_slow_reference(order, sentences):
    text = corpus(order, VOCABULARY[:-1], sentences)
    lm = NGramLM.estimate(text, order, VOCABULARY)
    slow = SlowKneserNey(text, order, VOCABULARY)
    assert lm.order == order
    for sentence in corpus(99, VOCABULARY, 15):
        history = ("<s>",)
        state = lm.start()
        for word in [*sentence.split(), "</s>"]:
            expected = math.log(slow.probability(word, history))
            log_prob, state = (lm.end(state), None) if word == "</s>" else lm.score(state, word)
            assert log_prob == pytest.approx(expected, abs=1e-12)
            history = (*history, word)


def test_discounts_come_from_the_counts_of_counts_of_a_large_enough_corpus():
    counts = np.array([1] * 40 + [2] * 12 + [3] * 6 + [4] * 3 + [9] * 5)
    y = 40 / 64
    assert discounts(counts) == pytest.approx((1 - 2 * y * 12 / 40, 2 - 3 * y * 6 / 12, 3 - 4 * y * 3 / 6))
    assert discounts(np.array([1, 1, 2, 3])) == FALLBACK_DISCOUNTS
    assert discounts(np.array([1] + [2] * 5 + [3] * 90 + [4])) == FALLBACK_DISCOUNTS  # the second would be negative
    text = corpus(0, VOCABULARY, 400)
    assert SlowKneserNey(text, 2, VOCABULARY).discounts[1] != FALLBACK_DISCOUNTS


@settings(max_examples=40, deadline=None)
@given(
    text=st.lists(st.lists(st.sampled_from([*VOCABULARY[:4], "other"]), max_size=5).map(" ".join), min_size=1),
    order=st.integers(1, 4),
)
def test_probabilities_sum_to_one_after_every_history(text, order):
    lm = NGramLM.estimate(text, order, VOCABULARY[:5], max_unknown=1.0)
    for length in range(3):
        for history in itertools.product(VOCABULARY[:5], repeat=length):
            for start in [(), ("<s>",)]:
                values = probabilities(lm, state_after(lm, start + history))
                assert sum(values) == pytest.approx(1.0, abs=1e-9)
                assert min(values) > 0


def test_the_unknown_neighbour_of_a_word_is_not_predicted():
    lm = NGramLM.estimate(["a zzz b", "a b", "a b"], 3, ["a", "b"])
    assert lm.vocabulary == ("a", "b")
    assert lm.score(lm.start(), "zzz") == (-math.inf, 0)
    assert "zzz" not in lm


def test_a_text_in_the_wrong_case_is_an_error_that_says_why():
    with pytest.raises(ValueError, match=r"4 of 4 training words are not in the vocabulary of 2 \(wrong case.*: A, B"):
        NGramLM.estimate(["A B", "B A"], 2, ["a", "b"])


def test_order_falls_to_the_longest_ngram_of_the_text():
    assert NGramLM.estimate(["a", "b"], 5).order == 3


def test_reserved_words_and_missing_text_are_errors():
    with pytest.raises(ValueError, match="no sentences"):
        NGramLM.estimate([], 3, ["a"])
    with pytest.raises(ValueError, match="holds <s> or </s> as a word"):
        NGramLM.estimate(["<s> a </s>"], 2, ["a"])
    with pytest.raises(ValueError, match="reserved"):
        NGramLM.estimate(["a"], 2, ["a", "<unk>"])
    with pytest.raises(ValueError, match="at least 1, not 0"):
        NGramLM.estimate(["a"], 0)


def test_sequence_log_prob_and_perplexity_agree():
    text = corpus(1, VOCABULARY, 50)
    lm = NGramLM.estimate(text, 3, VOCABULARY)
    held_out = corpus(2, VOCABULARY, 20)
    total = sum(lm.sequence_log_prob(sentence.split()) for sentence in held_out)
    words = sum(len(sentence.split()) + 1 for sentence in held_out)
    result = lm.perplexity([*held_out, "w00 nowhere"])
    extra = lm.score(lm.start(), "w00")[0] + lm.end(0)
    assert result.num_unknown == 1
    assert result.num_words == words + 2
    assert result.perplexity == pytest.approx(math.exp(-(total + extra) / (words + 2)))


def test_a_higher_order_predicts_held_out_text_of_its_kind_better():
    rng = np.random.default_rng(0)

    def sentence():
        words = [0]
        for _ in range(6):
            words.append((words[-1] * 2 + rng.integers(0, 2)) % 12)
        return " ".join(VOCABULARY[word] for word in words)

    train, test = [sentence() for _ in range(300)], [sentence() for _ in range(50)]
    perplexity = [NGramLM.estimate(train, order, VOCABULARY).perplexity(test).perplexity for order in (1, 2)]
    assert perplexity[1] < 0.5 * perplexity[0]


ARPA = """\\data\\
ngram 1=5
ngram 2=3
ngram 3=1

\\1-grams:
-99\t<s>\t-0.3
-0.7\t</s>
-0.5\ta\t-0.2
-0.6\tb\t-0.1
-1.2\t<unk>

\\2-grams:
-0.4\t<s> a\t-0.25
-0.35\ta b\t-0.15
-0.2\tb </s>

\\3-grams:
-0.05\t<s> a b

\\end\\
"""


def test_hand_worked_arpa(tmp_path):
    path = tmp_path / "model.arpa"
    path.write_text(ARPA)
    lm = NGramLM.read_arpa(path)
    assert lm.order == 3
    assert lm.vocabulary == ("a", "b")
    ln10 = math.log(10)
    # <s> a | <s> a b | back off from "a b" to "b </s>"
    assert lm.sequence_log_prob(["a", "b"]) == pytest.approx(ln10 * (-0.4 - 0.05 + (-0.15 - 0.2)))
    # back off from <s> to b | back off from b to a | back off from "b a" (no such history) and a to </s>
    assert lm.sequence_log_prob(["b", "a"]) == pytest.approx(ln10 * ((-0.3 - 0.6) + (-0.1 - 0.5) + (-0.2 - 0.7)))
    # an unknown word after "<s> a": back off twice to <unk>; then nothing is remembered
    assert lm.sequence_log_prob(["a", "q"]) == pytest.approx(ln10 * (-0.4 + (-0.25 - 0.2 - 1.2) - 0.7))
    assert lm.unigram("b") == pytest.approx(-0.6 * ln10)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_arpa_round_trip(tmp_path, order):
    text = corpus(7, VOCABULARY, 80)
    lm = NGramLM.estimate(text, order, VOCABULARY)
    lm.write_arpa(tmp_path / "model.arpa")
    again = NGramLM.read_arpa(tmp_path / "model.arpa")
    assert again.vocabulary == lm.vocabulary
    for sentence in corpus(8, VOCABULARY, 30):
        words = sentence.split()
        assert again.sequence_log_prob(words) == pytest.approx(lm.sequence_log_prob(words), abs=1e-6)
    again.write_arpa(tmp_path / "again.arpa")
    assert (tmp_path / "again.arpa").read_text() == (tmp_path / "model.arpa").read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("-0.6\tb\t-0.1", "-0.6\ta\t-0.1", "line 10: 'a' occurs twice"),
        ("-0.35\ta b\t-0.15", "-0.35\ta c\t-0.15", "line 15: 'c' has no unigram"),
        ("-0.35\ta b\t-0.15", "x\ta b\t-0.15", "line 15: not a number"),
        ("ngram 2=3", "ngram 2=4", "line 18: 3 2-grams where the header announces 4"),
        ("ngram 2=3", "ngram 2=2", "line 16: not one of the 2 2-grams"),
        ("-0.2\tb </s>", "-0.2\ta b", "'a b' occurs twice among the 2-grams"),
        ("-0.4\t<s> a\t-0.25", "-0.4\tb a", "'<s> a b' is in the model without its history"),
        ("\\end\\", "", "not a whole ARPA file"),
        ("\\data\\", "", "no \\data\\ line; not an ARPA file"),
        ("\\3-grams:", "\\4-grams:", "expected"),
        ("-0.7\t</s>", "-0.7\tend", "no unigram"),
    ],
)
def test_broken_arpa_files_are_named(tmp_path, old, new, message):
    path = tmp_path / "broken.arpa"
    path.write_text(ARPA.replace(old, new))
    with pytest.raises(ValueError, match=message.replace("\\", "\\\\")):
        NGramLM.read_arpa(path)
