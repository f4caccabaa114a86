"""A beam search for words over the lexicon tree, whatever the network's output is: what all word decoders share.

A hypothesis is a word history and a place in the tree. Hypotheses with different histories are never merged, even where
the language model cannot tell them apart: a merged one would score neither of its word sequences, and its n-best list
would miss one of them. How the mass of a hypothesis goes on from frame to frame is what a decoder adds.

Shapes: T frames, N tree nodes.
"""

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import replace
from types import EllipsisType
from typing import Any, Self

import numpy as np

from mode_ssm.decode.asked_scores import AskedScores
from mode_ssm.decode.beam_arrays import (
    ASK,
    COMMITTED,
    DONE,
    FRAMES,
    GROW_HISTORIES,
    HYPOTHESES,
    SearchArrays,
    Settings,
    grown,
    new_search,
)
from mode_ssm.decode.delayed_fusion import DelayedFusion, LateScores
from mode_ssm.decode.history_kernel import fill_history_table, shared_history, spell, word_posteriors
from mode_ssm.decode.hypothesis import Hypothesis, SearchOptions
from mode_ssm.decode.lexicon_tree import LexiconTree
from mode_ssm.decode.lm_fusion import LmFusion
from mode_ssm.decode.search_graph import SearchGraph
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.scorer import Scorer
from mode_ssm.vocab import NUM_CLASSES


class SearchState:
    """The beam of one utterance or stream. Made by `WordDecoder.start`, changed by `step`."""

    def __init__(self, search: SearchArrays, asked: AskedScores | None, late: LateScores | None) -> None:
        self.search = search
        self.asked = asked
        self.late = late
        self.committed: tuple[str, ...] = ()  # words that have left the search, as far as they were asked for

    @property
    def num_frames(self) -> int:
        """Frames consumed."""
        return int(self.search.counters[FRAMES])


class WordDecoder(ABC):
    """Beam search for word sequences. Holds no state between utterances and can be pickled.

    A decoder says what frames it takes (`_checked`) and how one moves the beam (`_advance`).
    """

    def __init__(self, lexicon: Lexicon, scorer: Scorer, options: SearchOptions, delayed: DelayedFusion | None) -> None:
        """A word sequence is worth what `Hypothesis` says.

        Inside a word a hypothesis is charged the best unigram that can still follow. A scorer with an `automaton` is
        walked by compiled code, any other one is called once for each new state and word. `delayed` brings in a second
        language model. Raises `ValueError` for lexicon words that the language model cannot produce.
        """
        self.words = lexicon.words
        self.tree = LexiconTree.build(lexicon)
        self._prepare(scorer, options, delayed)

    def with_options(
        self, *, scorer: Scorer | None = None, delayed: DelayedFusion | EllipsisType | None = ..., **options: Any
    ) -> Self:
        """The same decoder but for what is given; the lexicon's tree is shared."""
        other = copy.copy(self)
        other._prepare(
            self.fusion.scorer if scorer is None else scorer,
            replace(self.options, **options),
            self.delayed if isinstance(delayed, EllipsisType) else delayed,
        )
        return other

    def _prepare(self, scorer: Scorer, options: SearchOptions, delayed: DelayedFusion | None) -> None:
        if not self.words:
            raise ValueError("the lexicon has no words")
        self.options, self.delayed = options, delayed
        self.fusion = LmFusion(scorer, lm_scale=options.lm_scale, word_bonus=options.word_bonus)
        self.look_ahead = self.tree.best_below(self.fusion.look_ahead(self.words))
        self.look_ahead[:NUM_CLASSES] = 0.0  # no word has begun
        self._graph = SearchGraph.build(self.tree, self.fusion, self.words, self.look_ahead, options.acoustic_scale)
        self._settings = Settings(
            beam_size=options.beam_size,
            beam_threshold=float(options.beam_threshold),
            acoustic_scale=float(options.acoustic_scale),
            lm_scale=float(options.lm_scale),
            word_bonus=float(options.word_bonus),
            silence_score=float(options.silence_score),
            compiled=self.fusion.automaton is not None,
            delayed=self.delayed is not None,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._graph = self._graph.read_only()

    def decode(self, inputs: np.ndarray) -> list[Hypothesis]:
        """The best word sequences of an utterance (T, size), best first, at most `nbest` and at least one.

        Every hypothesis ends at the end of a word or in the silence after it. Should none that the beam kept do so, the
        unfinished word is dropped. The empty sequence is returned only when no other is left. Raises `ValueError` for a
        wrong shape and for bad numbers.
        """
        frames, state = self._checked(inputs, (2,)), self.start()
        self._consume(state, frames)
        return self.finalize(state)

    def start(self) -> SearchState:
        """The state before the first frame."""
        automaton, beam_size = self.fusion.automaton, self.options.beam_size
        late = None if self.delayed is None else LateScores(self.delayed)
        if automaton is not None:
            return SearchState(new_search(beam_size, automaton.start), None, late)
        return SearchState(new_search(beam_size, 0), AskedScores(self.fusion.start()), late)

    def step(self, state: SearchState, inputs: np.ndarray) -> None:
        """Take in one frame (size,) or any number of them (T, size); how an utterance is cut makes no difference.

        Raises `ValueError` as `decode` does; the state is then as it was.
        """
        self._consume(state, self._checked(inputs, (1, 2)))

    def _consume(self, state: SearchState, frames: np.ndarray) -> None:
        if state.late is None or self.delayed is None or self.delayed.every == 0:
            self._search(state, frames)
            return
        every = self.delayed.every
        while len(frames) > 0:
            until = every - state.num_frames % every
            self._search(state, frames[:until])
            if state.num_frames % every == 0:
                state.late.fuse(state.search, self.words, self._settings)
            frames = frames[until:]

    def _search(self, state: SearchState, frames: np.ndarray) -> None:
        consumed, status = self._advance(state, frames)
        while status != DONE:
            self._provide(state, status)
            frames = frames[consumed:]
            consumed, status = self._advance(state, frames)

    def partial(self, state: SearchState) -> tuple[str, ...]:
        """Whole words of the hypothesis that is best now; later frames may change them."""
        hypotheses, count = state.search.hypotheses, int(state.search.counters[HYPOTHESES])
        if count == 0:
            return ()
        return self._words(state, int(hypotheses.history[hypotheses.score[:count].argmax()]))

    def stable_prefix(self, state: SearchState) -> tuple[str, ...]:
        """Words that all hypotheses share: no later frame changes them, unless none of the hypotheses survives it."""
        if state.search.counters[HYPOTHESES] == 0:
            return ()
        return self._words(state, shared_history(state.search))

    def finalize(self, state: SearchState) -> list[Hypothesis]:
        """What `decode` returns of the frames so far; the state is unchanged and may go on."""
        search, settings = state.search, self._settings
        count = int(search.counters[HYPOTHESES])
        history, node = search.hypotheses.history[:count], search.hypotheses.node[:count]
        complete = node < NUM_CLASSES
        if not np.any(complete & (search.histories.num_words[history] > 0)):
            complete[:] = True
        if np.any(search.histories.num_words[history[complete]] > 0):
            complete &= search.histories.num_words[history] > 0
        rows = np.flatnonzero(complete)
        if len(rows) == 0:
            lm_score = self.fusion.end(self.fusion.start())
            return [Hypothesis(words=(), score=-math.inf, acoustic_score=-math.inf, lm_score=lm_score)]
        total = np.logaddexp(search.hypotheses.blank[rows], search.hypotheses.label[rows])
        rows, total = rows[(order := np.argsort(-total, kind="stable"))], total[order]
        # Of equal histories the first row is the best.
        numbers, first, inverse = np.unique(history[rows], return_index=True, return_inverse=True)
        acoustic = np.full(len(numbers), -np.inf)
        np.logaddexp.at(acoustic, inverse, total)
        lm_scores = search.histories.lm_log_prob[numbers] + self._end_log_probs(state, numbers)
        late_scores, both = self._late_scores(state, numbers, lm_scores)
        with np.errstate(invalid="ignore"):  # 0 * -inf
            fused = settings.lm_scale * both + settings.word_bonus * search.histories.num_words[numbers]
        scores = settings.acoustic_scale * acoustic + np.where(both > -np.inf, fused, -np.inf)
        best = np.argsort(-scores, kind="stable")
        spelled, start = spell(
            search,
            numbers[best],
            search.hypotheses.last_begin[rows[first[best]]],
            search.hypotheses.last_end[rows[first[best]]],
        )
        shown = min(self.options.nbest, len(best))
        while shown < len(best) and scores[best[shown]] == scores[best[shown - 1]]:
            shown += 1  # equal ones are ordered by their words
        confidences = word_posteriors(spelled, start, _softmax(scores[best]), shown)
        spelled_before = np.column_stack([array[: search.counters[COMMITTED]] for array in search.committed])
        hypotheses = []
        for place in range(shown):
            part = slice(int(start[place]), int(start[place + 1]))
            word, begin, end = np.concatenate([spelled_before, spelled[part]]).T
            # A word's frames are those of its best arrival, and those of the next word may be of another one.
            begin = np.minimum.accumulate(begin[::-1])[::-1]
            end = np.minimum(end, np.append(begin[1:], state.num_frames))
            hypotheses.append(
                Hypothesis(
                    words=tuple(self.words[index] for index in word.tolist()),
                    score=float(scores[best[place]]),
                    acoustic_score=float(acoustic[best[place]]),
                    lm_score=float(lm_scores[best[place]]),
                    start_frames=tuple(begin.tolist()),
                    end_frames=tuple(end.tolist()),
                    confidences=(1.0,) * len(spelled_before) + tuple(confidences[part].tolist()),
                    late_lm_score=None if late_scores is None else float(late_scores[best[place]]),
                )
            )
        hypotheses.sort(key=lambda hypothesis: (-hypothesis.score, hypothesis.words))
        return hypotheses[: self.options.nbest]

    @abstractmethod
    def _checked(self, inputs: np.ndarray, num_axes: tuple[int, ...]) -> np.ndarray:
        """The frames (T, size) float64 that `_advance` takes, from inputs (T, size) or (size,).

        Raises `ValueError` for bad numbers and for a wrong shape: the number of axes must be among `num_axes`.
        """

    @abstractmethod
    def _advance(self, state: SearchState, frames: np.ndarray) -> tuple[int, int]:
        """Let compiled code search on through frames (T, size).

        Returns the number of frames consumed and why it stopped there: a status of `beam_arrays`, `DONE` at the end.
        """

    def _provide(self, state: SearchState, status: int) -> None:
        """What `_advance` has stopped for: scores of the language model, or longer arrays."""
        if status == ASK:
            assert state.asked is not None
            state.search = state.asked.ask(state.search, self.fusion, self.words)
            return
        state.search = grown(state.search, status)
        if status == GROW_HISTORIES:
            fill_history_table(state.search)

    def _words(self, state: SearchState, history: int) -> tuple[str, ...]:
        frames = np.zeros(1, np.int32)
        spelled, _ = spell(state.search, np.array([history], np.int32), frames, frames)
        new = state.search.committed.word[len(state.committed) : state.search.counters[COMMITTED]]
        state.committed += tuple(self.words[number] for number in new.tolist())
        return state.committed + tuple(self.words[number] for number in spelled[:, 0].tolist())

    def _late_scores(
        self, state: SearchState, histories: np.ndarray, lm_scores: np.ndarray
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """The second language model's scores of whole sentences, if there is one, and both models' together."""
        if state.late is None or self.delayed is None:
            return None, lm_scores
        late = state.late.sentence_log_probs(state.search, histories, self.words)
        return late, self.delayed.mixed(lm_scores, late)

    def _end_log_probs(self, state: SearchState, histories: np.ndarray) -> np.ndarray:
        numbers = state.search.histories.lm_state[histories]
        if state.asked is None:
            assert self.fusion.automaton is not None
            return self.fusion.automaton.end_log_prob[numbers].astype(np.float64)
        return np.array([self.fusion.end(state.asked.states[number]) for number in numbers.tolist()])


def _softmax(scores: np.ndarray) -> np.ndarray:
    if scores.max() == -np.inf:
        return np.full(len(scores), 1 / len(scores))
    weights = np.exp(scores - scores.max())
    return np.asarray(weights / weights.sum())
