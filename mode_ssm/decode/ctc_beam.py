"""Words from CTC log-probabilities: a prefix beam search over the lexicon tree with a word language model.

A hypothesis is a word history and a place in the tree. It carries the exact probability of all frame labellings that
end there, those that end in a blank apart from those that end in a label (Hannun et al. 2014, "First-pass large
vocabulary continuous speech recognition using bi-directional recurrent DNNs"). Hypotheses with different histories are
never merged, even where the language model cannot tell them apart: a merged one would score neither of its word
sequences, and its n-best list would miss one of them. The search itself is compiled (`beam_kernel`); it finds what the
few lines of `ctc_beam_reference` find.

Shapes: T frames, V classes, H hypotheses.
"""

import math
from dataclasses import dataclass
from typing import Any

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
from mode_ssm.decode.beam_kernel import advance
from mode_ssm.decode.history_kernel import fill_history_table, shared_history, spell, word_posteriors
from mode_ssm.decode.lexicon_tree import LexiconTree
from mode_ssm.decode.lm_fusion import LmFusion
from mode_ssm.decode.search_graph import SearchGraph
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.scorer import Scorer
from mode_ssm.vocab import BLANK, NUM_CLASSES


@dataclass(frozen=True, kw_only=True, slots=True)
class Hypothesis:
    """A word sequence. score = acoustic_scale * acoustic_score + lm_scale * lm_score + word_bonus * len(words).

    acoustic_score: log-probability of the frames, summed over pronunciations, silences and alignments (blank penalty
    included). lm_score: log-probability of the words and the sentence end. Of every word: the frame in which its first
    phoneme begins and the one after its last phoneme's, on the way through the search that had most mass; and the
    confidence, the part of the probability (softmax of the scores of all complete hypotheses in the beam) that belongs
    to those with the same word at an overlapping time.
    """

    words: tuple[str, ...]
    score: float
    acoustic_score: float
    lm_score: float
    start_frames: tuple[int, ...] = ()
    end_frames: tuple[int, ...] = ()
    confidences: tuple[float, ...] = ()

    @property
    def text(self) -> str:
        return " ".join(self.words)


class CtcSearchState:
    """The beam of one utterance or stream. Made by `CtcWordDecoder.start`, changed by `step`."""

    def __init__(self, search: SearchArrays, asked: AskedScores | None) -> None:
        self.search = search
        self.asked = asked

    @property
    def num_frames(self) -> int:
        """Frames consumed."""
        return int(self.search.counters[FRAMES])


class CtcWordDecoder:
    """Beam search for word sequences. Holds no state between utterances and can be pickled."""

    def __init__(
        self,
        lexicon: Lexicon,
        scorer: Scorer,
        *,
        beam_size: int = 100,
        nbest: int = 10,
        acoustic_scale: float = 1.0,
        lm_scale: float = 1.0,
        word_bonus: float = 0.0,
        blank_penalty: float = 0.0,
        beam_threshold: float = math.inf,
    ) -> None:
        """A word sequence is worth what `Hypothesis` says.

        `blank_penalty` is taken off the blank's log-probability at every frame. After every frame the best `beam_size`
        hypotheses stay, of these only those whose score is within `beam_threshold` of the best; inside a word a
        hypothesis is charged the best unigram that can still follow. A scorer with an `automaton` is walked by compiled
        code, any other one is called once for each new state and word. Raises `ValueError` for settings out of range
        and for lexicon words that the language model cannot produce.
        """
        for key, count in (("beam_size", beam_size), ("nbest", nbest)):
            if count < 1:
                raise ValueError(f"{key} must be at least 1, not {count}")
        for key, value in (("acoustic_scale", acoustic_scale), ("beam_threshold", beam_threshold)):
            if not value > 0:
                raise ValueError(f"{key} must be positive, not {value}")
        self.beam_size = beam_size
        self.nbest = nbest
        self.acoustic_scale = acoustic_scale
        self.blank_penalty = blank_penalty
        self.beam_threshold = beam_threshold
        self.words = lexicon.words
        self.fusion = LmFusion(scorer, lm_scale=lm_scale, word_bonus=word_bonus)
        self.tree = LexiconTree.build(lexicon)
        self.look_ahead = self.tree.best_below(self.fusion.look_ahead(self.words))
        self.look_ahead[:NUM_CLASSES] = 0.0  # no word has begun
        self._graph = SearchGraph.build(self.tree, self.fusion, self.words, self.look_ahead, acoustic_scale)
        self._settings = Settings(
            beam_size=beam_size,
            beam_threshold=float(beam_threshold),
            acoustic_scale=float(acoustic_scale),
            lm_scale=float(lm_scale),
            word_bonus=float(word_bonus),
            compiled=self.fusion.automaton is not None,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._graph = self._graph.read_only()

    def decode(self, log_probs: np.ndarray) -> list[Hypothesis]:
        """The best word sequences of an utterance, best first, at most `nbest` and at least one.

        log_probs: (T, V) natural-log class probabilities. Every hypothesis ends at the end of a word or in the silence
        after it. Should none that the beam kept do so, the unfinished word is dropped. The empty sequence is returned
        only when no other is left. Raises `ValueError` for a wrong shape, NaN, or plus infinity.
        """
        if log_probs.ndim != 2:
            raise ValueError(f"log_probs must be (frames, {NUM_CLASSES}), not {log_probs.shape}")
        state = self.start()
        self.step(state, log_probs)
        return self.finalize(state)

    def start(self) -> CtcSearchState:
        """The state before the first frame."""
        automaton = self.fusion.automaton
        if automaton is not None:
            return CtcSearchState(new_search(self.beam_size, automaton.start), None)
        return CtcSearchState(new_search(self.beam_size, 0), AskedScores(self.fusion.start()))

    def step(self, state: CtcSearchState, log_probs: np.ndarray) -> None:
        """Take in one frame (V,) or any number of them (T, V); how an utterance is cut makes no difference.

        Raises `ValueError` as `decode` does; the state is then as it was.
        """
        frames = self._checked(log_probs)
        consumed = 0
        while True:
            count, status = advance(frames[consumed:], self._graph.tree, self._graph.lm, state.search, self._settings)
            consumed += count
            if status == DONE:
                return
            if status == ASK:
                assert state.asked is not None
                state.search = state.asked.ask(state.search, self.fusion, self.words)
                continue
            state.search = grown(state.search, status)
            if status == GROW_HISTORIES:
                fill_history_table(state.search)

    def partial(self, state: CtcSearchState) -> tuple[str, ...]:
        """Whole words of the hypothesis that is best now; later frames may change them."""
        hypotheses, count = state.search.hypotheses, int(state.search.counters[HYPOTHESES])
        if count == 0:
            return ()
        return self._words(state.search, int(hypotheses.history[hypotheses.score[:count].argmax()]))

    def stable_prefix(self, state: CtcSearchState) -> tuple[str, ...]:
        """Words that all hypotheses share: no later frame changes them, unless none of the hypotheses survives it."""
        if state.search.counters[HYPOTHESES] == 0:
            return ()
        return self._words(state.search, shared_history(state.search))

    def finalize(self, state: CtcSearchState) -> list[Hypothesis]:
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
        with np.errstate(invalid="ignore"):  # 0 * -inf
            fused = settings.lm_scale * lm_scores + settings.word_bonus * search.histories.num_words[numbers]
        scores = settings.acoustic_scale * acoustic + np.where(lm_scores > -np.inf, fused, -np.inf)
        best = np.argsort(-scores, kind="stable")
        spelled, start = spell(
            search,
            numbers[best],
            search.hypotheses.last_begin[rows[first[best]]],
            search.hypotheses.last_end[rows[first[best]]],
        )
        shown = min(self.nbest, len(best))
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
                )
            )
        hypotheses.sort(key=lambda hypothesis: (-hypothesis.score, hypothesis.words))
        return hypotheses[: self.nbest]

    def _checked(self, log_probs: np.ndarray) -> np.ndarray:
        """(T, V) float64, the blank's penalty taken off."""
        if log_probs.ndim not in (1, 2) or log_probs.shape[-1] != NUM_CLASSES:
            raise ValueError(f"log_probs must be (frames, {NUM_CLASSES}), not {log_probs.shape}")
        frames = np.array(log_probs, np.float64, order="C", ndmin=2)
        if not np.all(frames < math.inf):
            frame = int(np.argmin((frames < math.inf).all(axis=1)))
            raise ValueError(f"log_probs hold NaN or plus infinity at frame {frame} of {len(frames)}")
        frames[:, BLANK] -= self.blank_penalty
        return frames

    def _words(self, search: SearchArrays, history: int) -> tuple[str, ...]:
        frames = np.zeros(1, np.int32)
        spelled, _ = spell(search, np.array([history], np.int32), frames, frames)
        numbers = [*search.committed.word[: search.counters[COMMITTED]].tolist(), *spelled[:, 0].tolist()]
        return tuple(self.words[number] for number in numbers)

    def _end_log_probs(self, state: CtcSearchState, histories: np.ndarray) -> np.ndarray:
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
