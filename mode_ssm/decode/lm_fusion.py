"""How language model scores, scales and the word bonus join the score of a hypothesis."""

import math
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np

from mode_ssm.lm.scorer import Scorer


class LmFusion:
    """A sentence scores lm_scale * log P(words, end) + word_bonus * number of words, spread over its words."""

    def __init__(self, scorer: Scorer, *, lm_scale: float = 1.0, word_bonus: float = 0.0) -> None:
        """`lm_scale` multiplies natural log-probabilities; `word_bonus` is in natural-log units."""
        if lm_scale < 0:
            raise ValueError(f"lm_scale must not be negative, not {lm_scale}")
        self.scorer = scorer
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
        log_probs = np.array([self.scorer.unigram(word) for word in words])
        impossible = [word for word, log_prob in zip(words, log_probs, strict=True) if log_prob == -np.inf]
        if impossible:
            raise ValueError(
                f"{len(impossible)} of {len(words)} lexicon words have no probability in the language model "
                f"(estimate it with vocabulary=lexicon.words): {', '.join(impossible[:5])}"
            )
        return self.lm_scale * log_probs + self.word_bonus
