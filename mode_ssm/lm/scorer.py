"""The seam between language models and search: an incremental word scorer."""

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import numpy as np


class Scorer(Protocol):
    """An incremental language model over words. Natural logarithms throughout.

    A state stands for everything the model remembers of a history; it is hashable, and equal states score all futures
    alike. `<s>` and `</s>` are implied by `start` and `end` and never passed as words.
    """

    @abstractmethod
    def start(self) -> Hashable:
        """The state at the start of a sentence."""
        ...

    @abstractmethod
    def score(self, state: Any, word: str) -> tuple[float, Hashable]:
        """log P(word | state) and the state after the word; -inf for a word that the model cannot produce."""
        ...

    @abstractmethod
    def end(self, state: Any) -> float:
        """log P(sentence end | state)."""
        ...

    @abstractmethod
    def unigram(self, word: str) -> float:
        """log P(word) without a history. Search looks ahead with it inside a word; it never enters a final score."""
        ...

    def sequence_log_prob(self, words: Sequence[str]) -> float:
        """log P of the whole sentence, its end included."""
        total, state = 0.0, self.start()
        for word in words:
            log_prob, state = self.score(state, word)
            total += log_prob
        return total + self.end(state)


class BatchScorer(Protocol):
    """A language model that scores many histories at once, as a network does: for rescoring and delayed fusion.

    A state stands for everything the model remembers of a history; states are not changed by `advance`, so that many
    continuations may start from one. Natural logarithms throughout.
    """

    @abstractmethod
    def start(self) -> Any:
        """The state at the start of a sentence."""
        ...

    @abstractmethod
    def advance(self, states: Sequence[Any], words: Sequence[str]) -> tuple[np.ndarray, list[Any]]:
        """log P(words[i] | states[i]) (n,) float64, and the states after the words."""
        ...

    @abstractmethod
    def end(self, states: Sequence[Any]) -> np.ndarray:
        """log P(sentence end | states[i]) (n,) float64."""
        ...

    @abstractmethod
    def sentence_log_probs(self, sentences: Sequence[Sequence[str]]) -> np.ndarray:
        """log P of whole sentences, their ends included: (n,) float64."""
        ...
