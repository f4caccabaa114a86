"""Words from CTC log-probabilities: a prefix beam search over the lexicon tree with a word language model.

A hypothesis carries the exact probability of all frame labellings that end there, those that end in a blank apart from
those that end in a label (Hannun et al. 2014, "First-pass large vocabulary continuous speech recognition using
bi-directional recurrent DNNs"). The search itself is compiled (`beam_kernel`); it finds what the few lines of
`ctc_beam_reference` find.

Shapes: T frames, V classes.
"""

import math
from typing import Any

import numpy as np

from mode_ssm.decode.beam_kernel import advance
from mode_ssm.decode.delayed_fusion import DelayedFusion
from mode_ssm.decode.hypothesis import SearchOptions
from mode_ssm.decode.word_search import SearchState, WordDecoder
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.scorer import Scorer
from mode_ssm.vocab import BLANK, NUM_CLASSES


class CtcWordDecoder(WordDecoder):
    """Takes natural-log class probabilities (T, V). Raises `ValueError` where they are NaN or plus infinity."""

    def __init__(
        self, lexicon: Lexicon, scorer: Scorer, *, delayed: DelayedFusion | None = None, **options: Any
    ) -> None:
        """As for `WordDecoder`; `options` are those of `SearchOptions`, which raises `ValueError` out of range."""
        super().__init__(lexicon, scorer, SearchOptions(**options), delayed)

    def _checked(self, inputs: np.ndarray, num_axes: tuple[int, ...]) -> np.ndarray:
        """(T, V) float64, the blank's penalty taken off."""
        if inputs.ndim not in num_axes or inputs.shape[-1] != NUM_CLASSES:
            raise ValueError(f"log_probs must be (frames, {NUM_CLASSES}), not {inputs.shape}")
        frames = np.array(inputs, np.float64, order="C", ndmin=2)
        if not np.all(frames < math.inf):
            frame = int(np.argmin((frames < math.inf).all(axis=1)))
            raise ValueError(f"log_probs hold NaN or plus infinity at frame {frame} of {len(frames)}")
        frames[:, BLANK] -= self.options.blank_penalty
        return frames

    def _advance(self, state: SearchState, frames: np.ndarray) -> tuple[int, int]:
        return advance(frames, self._graph.tree, self._graph.lm, state.search, self._settings)
