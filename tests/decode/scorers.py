"""Language models to search with."""

import hashlib
import math

import numpy as np

from mode_ssm.lm.ngram import NGramLM
from mode_ssm.lm.scorer import BatchScorer, Scorer


class Walked(Scorer):
    """An n-gram automaton, as the search walks it: float32 weights, float64 sums."""

    def __init__(self, lm: NGramLM) -> None:
        self._automaton = lm.automaton()

    def automaton(self):
        return self._automaton

    def start(self):
        return self._automaton.start

    def score(self, state, word):
        log_probs, states = self._automaton.follow(np.array([state]), np.array([self._automaton.word_ids[word]]))
        return float(log_probs[0]), int(states[0])

    def end(self, state):
        return float(self._automaton.end_log_prob[state])

    def unigram(self, word):
        return float(self._automaton.unigram[self._automaton.word_ids[word]])


class Asked(Scorer):
    """Another model without its automaton, so that it has to be asked."""

    def __init__(self, model: Scorer) -> None:
        self.model = model
        self.asked = 0

    def start(self):
        return self.model.start()

    def score(self, state, word):
        self.asked += 1
        return self.model.score(state, word)

    def end(self, state):
        return self.model.end(state)

    def unigram(self, word):
        return self.model.unigram(word)


class Untied(Scorer):
    """Log-probabilities that differ for any two histories, so that no beam has to choose among equals."""

    def __init__(self, name="") -> None:
        self.name = name

    def start(self):
        return ()

    def score(self, state, word):
        return self._log_prob(state, word), (*state, word)

    def end(self, state):
        return self._log_prob(state, "")

    def unigram(self, word):
        return self._log_prob(None, word)

    def _log_prob(self, *key):
        digest = hashlib.blake2b(repr((self.name, *key)).encode(), digest_size=8).digest()
        return math.log(1e-3 + 0.5 * int.from_bytes(digest) / 2**64)


class Batched(BatchScorer):
    """A model that is asked word by word, as one that takes many histories at once."""

    def __init__(self, model: Scorer) -> None:
        self.model = model
        self.calls = []

    def start(self):
        return self.model.start()

    def advance(self, states, words):
        self.calls.append(len(words))
        scored = [self.model.score(state, word) for state, word in zip(states, words, strict=True)]
        return np.array([log_prob for log_prob, _ in scored]), [state for _, state in scored]

    def end(self, states):
        return np.array([self.model.end(state) for state in states])

    def sentence_log_probs(self, sentences):
        return np.array([self.model.sequence_log_prob(words) for words in sentences])
