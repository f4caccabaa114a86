"""Words from a transducer: a beam search over the lexicon tree with a word language model.

A state is a word history, a place in the tree and the predictor's context. The search is time-synchronous: at every
frame a state emits labels until it emits the blank that takes it to the next frame, and alignments that lead to the
same state are summed (Graves 2012, "Sequence transduction with recurrent neural networks"). After every label, and at
the end of the frame, the best states stay. The search itself is compiled (`transducer_kernel`); it finds what the few
lines of `transducer_words_reference` find.

Shapes: T frames, J d_joint.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mode_ssm.decode.beam_arrays import GROW_CANDIDATES, GROW_HYPOTHESES, NEEDED
from mode_ssm.decode.delayed_fusion import DelayedFusion
from mode_ssm.decode.hypothesis import SearchOptions
from mode_ssm.decode.joiner_tables import JoinerTables
from mode_ssm.decode.transducer_arrays import (
    JoinerArrays,
    TransducerArrays,
    exponentials,
    new_transducer,
    with_hypotheses,
    with_states,
)
from mode_ssm.decode.transducer_kernel import advance_transducer
from mode_ssm.decode.word_search import SearchState, WordDecoder
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.scorer import Scorer


@dataclass(frozen=True, kw_only=True, slots=True)
class TransducerOptions(SearchOptions):
    """max_symbols: labels that one frame may emit. ilm_scale: how much of the internal language model
    (`JoinerTables.internal_lm`), which has learned the words of the training set, is taken off the log-probability of
    every label; 0: none. It counts as part of the acoustic score.
    """

    max_symbols: int = 4
    ilm_scale: float = 0.0

    def __post_init__(self) -> None:
        SearchOptions.__post_init__(self)
        if self.max_symbols < 1:
            raise ValueError(f"max_symbols must be at least 1, not {self.max_symbols}")
        if not 0 <= self.ilm_scale <= 1:
            raise ValueError(f"ilm_scale must be from 0 to 1, not {self.ilm_scale}")


class TransducerSearchState(SearchState):
    """Also the predictor's contexts of the hypotheses."""

    def __init__(self, words: SearchState, transducer: TransducerArrays) -> None:
        super().__init__(words.search, words.asked, words.late)
        self.transducer = transducer


class TransducerWordDecoder(WordDecoder):
    """Takes encoder frames (T, J) after the joiner's projection (`transducer_tables.projected`). Raises `ValueError`
    where they are NaN or infinite.
    """

    options: TransducerOptions

    def __init__(
        self,
        lexicon: Lexicon,
        scorer: Scorer,
        tables: JoinerTables,
        *,
        delayed: DelayedFusion | None = None,
        **options: Any,
    ) -> None:
        """As for `WordDecoder`; `tables` come from the network (`transducer_tables.joiner_tables`), `options` are those
        of `TransducerOptions`, which raises `ValueError` out of range.
        """
        self.tables = tables
        super().__init__(lexicon, scorer, TransducerOptions(**options), delayed)

    def _prepare(self, scorer: Scorer, options: SearchOptions, delayed: DelayedFusion | None) -> None:
        super()._prepare(scorer, options, delayed)
        self._joiner = JoinerArrays.build(
            self.tables,
            ilm_scale=self.options.ilm_scale,
            blank_penalty=options.blank_penalty,
            silence_score=options.silence_score,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._joiner = self._joiner.read_only()

    def start(self) -> TransducerSearchState:
        words = super().start()
        return TransducerSearchState(words, new_transducer(self.tables, len(words.search.hypotheses.node)))

    def _checked(self, inputs: np.ndarray, num_axes: tuple[int, ...]) -> np.ndarray:
        """(T, J) float64, as the kernel takes them."""
        if inputs.ndim not in num_axes or inputs.shape[-1] != self.tables.d_joint:
            raise ValueError(f"projected frames must be (frames, {self.tables.d_joint}), not {inputs.shape}")
        frames = np.atleast_2d(inputs)
        finite = np.isfinite(frames).all(axis=1)
        if not finite.all():
            raise ValueError(f"projected frames hold NaN or infinity at frame {finite.argmin()} of {len(frames)}")
        return exponentials(frames)

    def _advance(self, state: SearchState, frames: np.ndarray) -> tuple[int, int]:
        assert isinstance(state, TransducerSearchState)
        return advance_transducer(
            frames,
            self._joiner,
            self._graph.tree,
            self._graph.lm,
            state.search,
            state.transducer,
            self._settings,
            self.options.max_symbols,
        )

    def _provide(self, state: SearchState, status: int) -> None:
        assert isinstance(state, TransducerSearchState)
        if status == GROW_CANDIDATES:
            state.transducer = with_states(state.transducer, int(state.search.counters[NEEDED]))
            return
        super()._provide(state, status)
        if status == GROW_HYPOTHESES:
            state.transducer = with_hypotheses(state.transducer, len(state.search.hypotheses.node))
