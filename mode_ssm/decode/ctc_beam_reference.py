"""The word search in the plainest form: every candidate of every frame, in NumPy. What `CtcWordDecoder` is tested
against.

Shapes: T frames, V classes, H hypotheses, E extensions of hypotheses by one label.
"""

import math

import numpy as np

from mode_ssm.decode.ctc_beam import CtcWordDecoder
from mode_ssm.decode.histories import Histories, hypotheses_of
from mode_ssm.decode.hypothesis import Hypothesis
from mode_ssm.vocab import BLANK, NUM_CLASSES, SIL


def decode_reference(decoder: CtcWordDecoder, log_probs: np.ndarray) -> list[Hypothesis]:
    """`decoder.decode(log_probs)` without frames and confidences of the words."""
    frames = log_probs.astype(np.float64)
    frames[:, BLANK] -= decoder.options.blank_penalty
    search = _Search(decoder)
    for frame_log_probs in frames:
        search.step(frame_log_probs)
    return search.finalize()


class _Search:
    """The beam of one utterance: arrays over hypotheses."""

    def __init__(self, decoder: CtcWordDecoder) -> None:
        self._decoder = decoder
        self._tree = decoder.tree
        self._num_children = np.diff(decoder.tree.child_start)
        self._num_words = np.diff(decoder.tree.word_start)
        self._histories = Histories(decoder.fusion, decoder.words)
        self._history = np.zeros(1, np.int64)  # (H,)
        self._node = np.zeros(1, np.int64)  # (H,)
        self._blank = np.zeros(1)  # (H,) log-probability of labellings that end in a blank
        self._label = np.full(1, -math.inf)  # (H,) ... that end in the node's label
        self._num_frames = 0

    def step(self, frame: np.ndarray) -> None:
        """Advance by one frame of log-probabilities (V,)."""
        if len(self._node) == 0:
            return
        tree, total = self._tree, np.logaddexp(self._blank, self._label)
        last = tree.label[self._node]
        source, child = _expand(self._node, tree.child_start, tree.child, self._num_children)  # (E,)
        label = tree.label[child]
        # The same label again is a new one only after a blank.
        mass = np.where(label == last[source], self._blank[source], total[source]) + frame[label]
        mass += np.where(label == SIL, self._decoder.options.silence_score, 0.0)
        inner = np.flatnonzero(self._num_children[child])
        ending, word = _expand(child, tree.word_start, tree.word, self._num_words)
        longer = self._histories.extend(self._history[source[ending]], word)

        history = np.concatenate([self._history, self._history[source[inner]], longer])
        node = np.concatenate([self._node, child[inner], label[ending]])
        labelled = np.concatenate([self._label + frame[last], mass[inner], mass[ending]])
        blank = np.full(len(node), -math.inf)
        blank[: len(total)] = total + frame[BLANK]
        self._merge_and_prune(history, node, blank, labelled)
        self._num_frames += 1
        delayed = self._decoder.delayed
        if delayed is not None and delayed.every > 0 and self._num_frames % delayed.every == 0:
            self._histories.correct(np.unique(self._history), delayed)

    def _merge_and_prune(self, history: np.ndarray, node: np.ndarray, blank: np.ndarray, label: np.ndarray) -> None:
        key = history * len(self._tree) + node
        order = np.argsort(key, kind="stable")
        key = key[order]
        first = np.flatnonzero(np.diff(key, prepend=-1))
        blank = np.maximum.reduceat(blank[order], first)  # at most one of equal hypotheses comes by a blank
        label = np.logaddexp.reduceat(label[order], first)
        history, node = np.divmod(key[first], len(self._tree))
        decoder = self._decoder
        score = decoder.options.acoustic_scale * np.logaddexp(blank, label)
        score += self._histories.fused(history) + decoder.look_ahead[node]
        kept = np.flatnonzero(score > -math.inf)
        if len(kept):
            kept = kept[score[kept] >= score[kept].max() - decoder.options.beam_threshold]
        if len(kept) > decoder.options.beam_size:
            kept = kept[np.argpartition(-score[kept], decoder.options.beam_size - 1)[: decoder.options.beam_size]]
        self._history, self._node, self._blank, self._label = history[kept], node[kept], blank[kept], label[kept]

    def finalize(self) -> list[Hypothesis]:
        decoder, total = self._decoder, np.logaddexp(self._blank, self._label)
        complete = self._node < NUM_CLASSES
        if not np.any(complete & (self._history > 0)):
            complete[:] = True
        masses = zip(self._history[complete].tolist(), total[complete].tolist(), strict=True)
        return hypotheses_of(self._histories, masses, decoder.options, decoder.delayed)


def _expand(
    rows: np.ndarray, start: np.ndarray, values: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The values of compressed rows: for each, the position in `rows` that it comes from, and the value."""
    count = lengths[rows]
    position = np.repeat(np.arange(len(rows)), count)
    offset = np.arange(len(position)) - np.repeat(np.cumsum(count) - count, count)
    return position, values[start[rows][position] + offset]
