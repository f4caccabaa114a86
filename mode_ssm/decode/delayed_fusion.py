"""A second language model in the search, one that scores many histories at once: a network.

Every few frames it scores the words that it has not seen of all hypotheses in the beam; until then such a word costs
what the first language model says. So the beam is pruned by both, not only re-ordered at the end.

A sentence then scores lm_scale * ((1 - weight) * first + weight * second) where it had lm_scale * first before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mode_ssm.decode.beam_arrays import HISTORIES, HYPOTHESES, HistoryArrays, SearchArrays, Settings
from mode_ssm.decode.correction_kernel import forget_corrections, spread_corrections
from mode_ssm.lm.scorer import BatchScorer

_FEW = 1024


@dataclass(frozen=True, slots=True)
class DelayedFusion:
    """weight: the second model's part of the language model score. every: frames between its turns; 0: at the end."""

    scorer: BatchScorer
    weight: float = 0.5
    every: int = 15

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"the weight of the second language model must be from 0 to 1, not {self.weight}")
        if self.every < 0:
            raise ValueError(f"frames between turns of the second language model must be 0 or more, not {self.every}")

    def mixed(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Log-probabilities of both models as one; what either forbids stays forbidden unless its weight is zero."""
        if self.weight in (0, 1):
            return second if self.weight else first
        return (1 - self.weight) * first + self.weight * second


class LateScores:
    """What the second model knows of the histories of one search: its states and log-probabilities."""

    def __init__(self, fusion: DelayedFusion) -> None:
        self._fusion = fusion
        self._states: list[Any] = [fusion.scorer.start()]
        self._log_probs = [0.0]

    def fuse(self, search: SearchArrays, words: Sequence[str], settings: Settings) -> None:
        """Score what the hypotheses hold, and let it count."""
        histories = search.histories
        live = search.hypotheses.history[: search.counters[HYPOTHESES]]
        scored = self._score(histories, live, words)
        lm_scale = settings.lm_scale * self._fusion.weight
        for number in scored:
            late = self._log_probs[histories.late_state[number]]
            histories.correction[number] = lm_scale * (late - histories.lm_log_prob[number])
        if forget_corrections(search) or scored:
            spread_corrections(search, settings)
        if len(self._states) > _FEW + 4 * int(search.counters[HISTORIES]):
            self._forget(histories.late_state[: search.counters[HISTORIES]])

    def sentence_log_probs(self, search: SearchArrays, numbers: np.ndarray, words: Sequence[str]) -> np.ndarray:
        """log P of the histories `numbers` (n,), each with the end of the sentence; the search is left as it is."""
        late = LateScores(self._fusion)
        late._states, late._log_probs = list(self._states), list(self._log_probs)
        histories = search.histories._replace(late_state=search.histories.late_state.copy())
        late._score(histories, numbers, words)
        known = histories.late_state[numbers].tolist()
        ends = self._fusion.scorer.end([late._states[number] for number in known])
        return np.array([late._log_probs[number] for number in known]) + ends

    def _score(self, histories: HistoryArrays, numbers: np.ndarray, words: Sequence[str]) -> list[int]:
        """Advance over the unseen words of histories, one word of all at a time; returns the histories it changed."""
        unseen: set[int] = set()
        for number in numbers.tolist():
            while histories.late_state[number] < 0 and number not in unseen:
                unseen.add(number)
                number = int(histories.parent[number])
        waiting = sorted(unseen)
        while waiting:
            parents = histories.late_state[histories.parent[waiting]].tolist()
            ready = [place for place, parent in enumerate(parents) if parent >= 0]
            before = [parents[place] for place in ready]
            numbers_ready = [waiting[place] for place in ready]
            log_probs, states = self._fusion.scorer.advance(
                [self._states[number] for number in before],
                [words[word] for word in histories.word[numbers_ready].tolist()],
            )
            histories.late_state[numbers_ready] = np.arange(len(ready)) + len(self._states)
            self._states += states
            self._log_probs += (log_probs + np.array([self._log_probs[number] for number in before])).tolist()
            waiting = [number for number in waiting if histories.late_state[number] < 0]
        return sorted(unseen)

    def _forget(self, late_state: np.ndarray) -> None:
        """Keep only the states that some history refers to."""
        known = late_state >= 0
        kept, late_state[known] = np.unique(late_state[known], return_inverse=True)
        self._states = [self._states[number] for number in kept.tolist()]
        self._log_probs = [self._log_probs[number] for number in kept.tolist()]
