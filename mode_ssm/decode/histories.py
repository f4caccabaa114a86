"""Word histories of the slow searches, interned: equal word sequences share one number."""

import math
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from mode_ssm.decode.delayed_fusion import DelayedFusion
from mode_ssm.decode.hypothesis import Hypothesis, SearchOptions
from mode_ssm.decode.lm_fusion import LmFusion


class Histories:
    """A tree of word sequences, each with its LM log-probability and state. Number 0 is the empty sequence."""

    def __init__(self, fusion: LmFusion, words: Sequence[str]) -> None:
        self._fusion = fusion
        self._words = words
        self._parent = [-1]
        self._word = [-1]
        self._num_words = [0]
        self._state: list[Hashable] = [fusion.start()]
        self._lm_log_prob = [0.0]
        self._child: dict[int, int] = {}  # history * number of words + word -> longer history
        self._fused = np.zeros(1024)
        self._correction: list[float | None] = [0.0]  # of a second language model, None until it has scored the words

    def __len__(self) -> int:
        return len(self._parent)

    def extend(self, histories: np.ndarray, words: np.ndarray) -> np.ndarray:
        """The histories (n,) that follow when `words` (n,) are appended; the LM is asked once for each new one."""
        find = self._child.get
        pairs = (histories * len(self._words) + words).tolist()
        found = [find(pair, -1) for pair in pairs]
        for position, history in enumerate(found):
            if history < 0:  # it may have come into being a moment ago
                pair = pairs[position]
                known = find(pair, -1)
                found[position] = known if known >= 0 else self._add(pair)
        return np.array(found, np.int64)

    def fused(self, histories: np.ndarray) -> np.ndarray:
        """What the words of each history add to the score: (n,)."""
        return self._fused[histories]

    def words(self, history: int) -> tuple[str, ...]:
        words: list[str] = []
        while history > 0:
            words.append(self._words[self._word[history]])
            history = self._parent[history]
        return tuple(reversed(words))

    def finish(self, history: int) -> tuple[float, float]:
        """LM log-probability with the sentence end, and what words and end together add to the score."""
        lm_log_prob = self._lm_log_prob[history] + self._fusion.end(self._state[history])
        return lm_log_prob, self._fusion.combine(lm_log_prob, self._num_words[history])

    def correct(self, histories: np.ndarray, delayed: DelayedFusion) -> None:
        """Let the second language model score `histories` and those that they extend; of others it is forgotten."""
        live = {0}
        for history in histories.tolist():
            above = history
            while above not in live:
                live.add(above)
                above = self._parent[above]
            while self._correction[history] is None:
                words = self.words(history)
                state, late = delayed.scorer.start(), 0.0
                for word in words:
                    log_probs, (state,) = delayed.scorer.advance([state], [word])
                    late += float(log_probs[0])
                lm_log_prob = self._lm_log_prob[history]
                self._correction[history] = self._fusion.lm_scale * delayed.weight * (late - lm_log_prob)
                history = self._parent[history]
        for number in range(len(self)):
            if number not in live:
                self._correction[number] = None
            self._fuse(number)

    def _fuse(self, number: int) -> None:
        """Words that the second model has not scored are worth what the first one says."""
        scored = number
        while self._correction[scored] is None:
            scored = self._parent[scored]
        first = self._fusion.combine(self._lm_log_prob[number], self._num_words[number])
        self._fused[number] = first + (self._correction[scored] or 0.0)

    def _add(self, pair: int) -> int:
        parent, word = divmod(pair, len(self._words))
        log_prob, state = self._fusion.word(self._state[parent], self._words[word])
        number = len(self._parent)
        self._child[pair] = number
        self._parent.append(parent)
        self._word.append(word)
        self._num_words.append(self._num_words[parent] + 1)
        self._state.append(state)
        self._lm_log_prob.append(self._lm_log_prob[parent] + log_prob)
        if number == len(self._fused):
            self._fused = np.concatenate([self._fused, np.zeros_like(self._fused)])
        self._correction.append(None)
        self._fuse(number)
        return number


def hypotheses_of(
    histories: Histories,
    masses: Iterable[tuple[int, float]],
    options: SearchOptions,
    delayed: DelayedFusion | None,
) -> list[Hypothesis]:
    """The n-best list at the end of a search. masses: history and log-probability of each hypothesis that may end."""
    acoustic: dict[int, float] = {}
    for history, mass in masses:
        acoustic[history] = float(np.logaddexp(acoustic.get(history, -math.inf), mass))
    if len(acoustic) > 1:
        acoustic.pop(0, None)
    hypotheses = []
    for history, mass in (acoustic or {0: -math.inf}).items():
        lm_score, fused = histories.finish(history)
        words, late = histories.words(history), None
        if delayed is not None:
            late = float(delayed.scorer.sentence_log_probs([words])[0])
            fused += options.lm_scale * delayed.weight * (late - lm_score)
        score = options.acoustic_scale * mass + fused
        hypotheses.append(
            Hypothesis(words=words, score=score, acoustic_score=mass, lm_score=lm_score, late_lm_score=late)
        )
    hypotheses.sort(key=lambda hypothesis: (-hypothesis.score, hypothesis.words))
    return hypotheses[: options.nbest]
