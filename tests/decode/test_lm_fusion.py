import math

import numpy as np
import pytest

from mode_ssm.decode.ctc_beam import CtcWordDecoder
from mode_ssm.decode.histories import Histories
from mode_ssm.decode.lm_fusion import LmFusion
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.lm.scorer import Scorer
from mode_ssm.vocab import NUM_CLASSES


class NoRepeats(Scorer):
    """A scorer with another kind of state: every word of the vocabulary at most once, uniformly."""

    def __init__(self, vocabulary):
        self.vocabulary = frozenset(vocabulary)
        self.calls = 0

    def start(self):
        return frozenset()

    def score(self, state, word):
        self.calls += 1
        if word in state:
            return -math.inf, state
        return -math.log(len(self.vocabulary) - len(state) + 1), state | {word}

    def end(self, state):
        return -math.log(len(self.vocabulary) - len(state) + 1)

    def unigram(self, word):
        return -math.log(len(self.vocabulary)) if word in self.vocabulary else -math.inf


def test_a_sentence_adds_scaled_log_probs_and_a_bonus_for_each_word():
    lm = NGramLM.estimate(["a b", "b a", "a a b"], 3)
    histories = Histories(LmFusion(lm, lm_scale=0.7, word_bonus=0.4), ("a", "b"))
    number = np.zeros(1, np.int64)
    for word in (0, 1, 1):
        number = histories.extend(number, np.array([word]))
    words = histories.words(int(number[0]))
    assert words == ("a", "b", "b")
    lm_log_prob, added = histories.finish(int(number[0]))
    assert lm_log_prob == pytest.approx(lm.sequence_log_prob(words))
    assert added == pytest.approx(0.7 * lm.sequence_log_prob(words) + 3 * 0.4)
    assert histories.fused(number)[0] == pytest.approx(added - 0.7 * lm.end(lm.score(lm.score(0, "b")[1], "b")[1]))


def test_equal_word_sequences_share_a_number_and_ask_the_lm_once():
    scorer = NoRepeats("abcd")
    histories = Histories(LmFusion(scorer), tuple("abcd"))
    first = histories.extend(np.zeros(4, np.int64), np.array([2, 1, 2, 1]))
    assert first[0] == first[2] != first[1] == first[3]
    again = histories.extend(np.zeros(2, np.int64), np.array([1, 2]))
    assert again.tolist() == [first[1], first[0]]
    assert scorer.calls == 2
    assert len(histories) == 3


def test_numbers_stay_right_when_many_histories_grow():
    lm = NGramLM.estimate(["a b", "b a", "a a b"], 2)
    histories = Histories(LmFusion(lm, word_bonus=1.0), ("a", "b"))
    number = np.zeros(1, np.int64)
    for _ in range(1200):
        number = histories.extend(np.repeat(number, 2), np.array([0, 1]))[:1]
    assert len(histories) == 2401
    assert histories.words(int(number[0])) == ("a",) * 1200
    repeat = lm.score(lm.score(0, "a")[1], "a")[0]
    assert histories.fused(number)[0] == pytest.approx(lm.score(lm.start(), "a")[0] + 1199 * repeat + 1200)


def test_what_the_lm_forbids_stays_forbidden_at_scale_zero():
    assert LmFusion(NoRepeats("ab"), lm_scale=0.0, word_bonus=1.0).combine(-math.inf, 2) == -math.inf


def test_look_ahead_is_what_a_word_adds_without_history():
    lm = NGramLM.estimate(["a b", "b a", "a a b"], 2)
    found = LmFusion(lm, lm_scale=2.0, word_bonus=0.5).look_ahead(["b", "a"])
    assert found == pytest.approx([2 * lm.unigram("b") + 0.5, 2 * lm.unigram("a") + 0.5])


def test_any_scorer_drives_the_search():
    lexicon = Lexicon({"one": [(1,)], "won": [(1,)], "too": [(2,)]})
    log_probs = np.log(np.full((6, NUM_CLASSES), 1e-4))
    log_probs[np.arange(6), [1, 0, 1, 0, 2, 0]] = -0.01
    found = CtcWordDecoder(lexicon, NoRepeats(lexicon.words)).decode(log_probs)
    assert {hypothesis.words for hypothesis in found[:2]} == {("one", "won", "too"), ("won", "one", "too")}
    assert all(len(set(hypothesis.words)) == len(hypothesis.words) for hypothesis in found)
    assert found[0].lm_score == pytest.approx(-math.log(4 * 3 * 2 * 1))
