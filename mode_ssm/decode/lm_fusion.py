"""How language model scores, scales and the word bonus join the score of a hypothesis."""

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from mode_ssm.lm.ngram_automaton import BOS, EOS, UNK, NGramAutomaton
from mode_ssm.lm.scorer import Scorer


class LmFusion:
    """A sentence scores lm_scale * log P(words, end) + word_bonus * number of words, spread over its words."""

    def __init__(self, scorer: Scorer, *, lm_scale: float = 1.0, word_bonus: float = 0.0) -> None:
        """`lm_scale` multiplies natural log-probabilities; `word_bonus` is in natural-log units."""
        if lm_scale < 0:
            raise ValueError(f"lm_scale must not be negative, not {lm_scale}")
        self.scorer = scorer
        automaton = getattr(scorer, "automaton", None)
        self.automaton: NGramAutomaton | None = automaton() if automaton is not None else None
        self.lm_scale = lm_scale
        self.word_bonus = word_bonus

    def start(self) -> Hashable:
        return self.scorer.start()

    def word(self, state: Any, word: str) -> tuple[float, Hashable]:
        """The LM's log P(word | state) and the next state."""
        return self.scorer.score(state, word)

    def end(self, state: Any) -> float:
        """The LM's log P(sentence end | state)."""
        return self.scorer.end(state)

    def combine(self, lm_log_prob: float, num_words: int) -> float:
        """What LM log-probabilities that sum to `lm_log_prob` and `num_words` words add to the score.

        What the LM forbids stays forbidden at every scale.
        """
        if lm_log_prob == -math.inf:
            return -math.inf
        return self.lm_scale * lm_log_prob + self.word_bonus * num_words

    def look_ahead(self, words: Iterable[str]) -> np.ndarray:
        """What each word would add without a history: (number of words,) float64.

        Raises `ValueError` naming words that the LM cannot produce: they could never be decoded.
        """
        words = list(words)
        if self.automaton is not None:
            numbers = self.lm_words(words)
            log_probs = np.where(numbers < 0, -np.inf, self.automaton.unigram[numbers].astype(np.float64))
        else:
            log_probs = np.array([self.scorer.unigram(word) for word in words])
        impossible = [words[i] for i in np.flatnonzero(log_probs == -np.inf).tolist()]
        if impossible:
            raise ValueError(
                f"{len(impossible)} of {len(words)} lexicon words have no probability in the language model "
                f"(estimate it with vocabulary=lexicon.words): {', '.join(impossible[:5])}"
            )
        return self.lm_scale * log_probs + self.word_bonus

    def lm_words(self, words: Sequence[str]) -> np.ndarray:
        """(number of words,): the automaton's ids, that of `<unk>` for a word it does not know, -1 if there is none.

        Without an automaton the places in `words`.
        """
        if self.automaton is None:
            return np.arange(len(words))
        ids = self.automaton.word_ids
        unknown = ids.get(UNK, -1)
        return np.array([unknown if word in (BOS, EOS) else ids.get(word, unknown) for word in words], np.int64)

    def most(self, words: Sequence[str]) -> np.ndarray:
        """(number of words,): a word adds no more than this after any history."""
        if self.automaton is None:
            return np.full(len(words), self.word_bonus)  # a probability is at most one
        automaton = self.automaton
        most = automaton.unigram.astype(np.float64)
        np.maximum.at(most, automaton.arc_word, automaton.arc_log_prob)
        most += (automaton.order - 1) * max(0.0, float(automaton.backoff.max(initial=0.0)))
        return self.lm_scale * most[self.lm_words(words)] + self.word_bonus
