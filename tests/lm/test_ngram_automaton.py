"""The flat arrays say what the model says: walked by hand they give its scores, and they give the n-grams back."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mode_ssm.lm.ngram import NGramLM
from mode_ssm.lm.ngram_automaton import NGramTable, compile_automaton

WORDS = ["a", "b", "c", "d"]
TEXT = st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), min_size=1, max_size=20)


def walk(automaton, state, word):
    """log P(word | state) and the next state, as the contract of the arrays reads."""
    total = 0.0
    while True:
        arcs = range(automaton.arc_start[state], automaton.arc_start[state + 1])
        for arc in arcs:
            if automaton.arc_word[arc] == word:
                return total + float(automaton.arc_log_prob[arc]), int(automaton.arc_next[arc])
        total += float(automaton.backoff[state])
        state = int(automaton.backoff_state[state])


@settings(max_examples=40, deadline=None)
@given(text=TEXT, order=st.integers(1, 4), prune=st.sampled_from([(), (0, 1)]), queries=TEXT)
def test_walking_the_arrays_gives_the_scores_of_the_model(text, order, prune, queries):
    lm = NGramLM.estimate(text, order, WORDS, prune=prune if order > 1 else ())
    automaton = lm.automaton()
    assert automaton.order == lm.order
    for sentence in queries:
        state, own = automaton.start, lm.start()
        for word in sentence.split():
            log_prob, state = walk(automaton, state, automaton.word_ids[word])
            expected, own = lm.score(own, word)
            assert log_prob == pytest.approx(expected, abs=2e-6)
            assert state == own
        assert automaton.end_log_prob[state] == pytest.approx(lm.end(own), abs=2e-6)
        assert walk(automaton, state, automaton.word_ids["</s>"])[0] == pytest.approx(lm.end(own), abs=2e-6)


@settings(max_examples=40, deadline=None)
@given(text=TEXT, order=st.integers(1, 4))
def test_following_many_at_once_equals_one_by_one(text, order):
    automaton = NGramLM.estimate(text, order, WORDS).automaton(single_precision=False)
    states = np.repeat(np.arange(len(automaton.backoff)), len(WORDS) + 2)
    words = np.tile(np.arange(1, len(WORDS) + 3), len(automaton.backoff)) - 2 * (states % 3 == 0)
    log_probs, next_states = automaton.follow(states, np.minimum(words, len(WORDS) + 1))
    for state, word, log_prob, next_state in zip(states, words, log_probs, next_states, strict=True):
        expected = walk(automaton, state, min(word, len(WORDS) + 1)) if word >= 0 else (-math.inf, 0)
        assert (log_prob, next_state) == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(text=TEXT, order=st.integers(1, 4), prune=st.sampled_from([(), (0, 1)]))
def test_its_tables_compile_to_itself(text, order, prune):
    automaton = NGramLM.estimate(text, order, WORDS, prune=prune if order > 1 else ()).automaton(single_precision=False)
    again = compile_automaton(automaton.words, automaton.tables())
    for name in ("backoff_state", "backoff", "arc_start", "arc_word", "arc_log_prob", "arc_next", "end_log_prob"):
        assert np.array_equal(getattr(again, name), getattr(automaton, name)), name
    assert again.start == automaton.start


def test_layout():
    automaton = NGramLM.estimate(["a b", "b a", "a"], 3, WORDS).automaton()
    num_states, num_arcs = len(automaton.backoff), len(automaton.arc_word)
    assert automaton.word_ids == {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "c": 4, "d": 5}
    assert {name: (getattr(automaton, name).dtype.name, getattr(automaton, name).shape) for name in (
        "backoff_state", "backoff", "arc_start", "arc_word", "arc_log_prob", "arc_next", "end_log_prob", "unigram",
    )} == {
        "backoff_state": ("int32", (num_states,)),
        "backoff": ("float32", (num_states,)),
        "arc_start": ("int64", (num_states + 1,)),
        "arc_word": ("int32", (num_arcs,)),
        "arc_log_prob": ("float32", (num_arcs,)),
        "arc_next": ("int32", (num_arcs,)),
        "end_log_prob": ("float32", (num_states,)),
        "unigram": ("float32", (6,)),
    }  # fmt: skip
    assert automaton.arc_word[:6].tolist() == list(range(6))
    assert automaton.unigram[0] == -np.inf
    assert automaton.backoff_state[0] == -1
    assert automaton.backoff[0] == 0
    assert (automaton.backoff_state[1:] < np.arange(1, num_states)).all()


def test_histories_that_predict_alike_are_one_state():
    lm = NGramLM.estimate(["a b c d", "a b", "c a"], 3, WORDS)
    states = {history: lm.start() for history in ("a b c d", "d", "c d", "d d")}
    for history in states:
        for word in history.split():
            states[history] = lm.score(states[history], word)[1]
    assert states["a b c d"] == states["c d"]  # both "c d", where the model has seen the sentence end
    assert states["d"] == states["d d"]  # neither "<s> d" nor "d d" was seen


def test_an_ngram_without_its_history_is_an_error():
    unigrams = NGramTable(ids=np.arange(4)[:, None], log_prob=np.full(4, -1.4), backoff=np.zeros(4))
    bigrams = NGramTable(ids=np.array([[0, 2]]), log_prob=np.array([-0.1]), backoff=np.zeros(1))
    trigrams = NGramTable(ids=np.array([[0, 2, 3], [2, 3, 1]]), log_prob=np.array([-0.1, -0.2]), backoff=np.zeros(2))
    with pytest.raises(ValueError, match="'a b </s>' is in the model without its history"):
        compile_automaton(["<s>", "</s>", "a", "b"], [unigrams, bigrams, trigrams])


def test_a_model_in_memory_survives_pickling():
    lm = NGramLM.estimate(["a b", "b a", "a"], 3, WORDS)
    pickled = pickle.dumps(lm)
    lm.automaton().follow(np.zeros(1, np.int64), np.ones(1, np.int64))
    assert len(pickle.dumps(lm)) == len(pickled)
    again = pickle.loads(pickled)
    assert again.sequence_log_prob(["a", "c", "b"]) == lm.sequence_log_prob(["a", "c", "b"])
