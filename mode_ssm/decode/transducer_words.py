"""Words from a transducer: a beam search over the lexicon tree with a word language model.

A state is a word history, a place in the tree and the predictor's context. The search is time-synchronous: at every
frame a state emits labels until it emits the blank that takes it to the next frame, and alignments that lead to the
same state are summed (Graves 2012, "Sequence transduction with recurrent neural networks"). After every label, and at
the end of the frame, the best states stay. The search itself is compiled (`transducer_kernel`); it finds what the few
lines of `transducer_words_reference` find.

Word histories, language models, n-best lists and confidences are those of the CTC search.

Shapes: T frames, J d_joint.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mode_ssm.decode.beam_arrays import ASK, DONE, GROW_CANDIDATES, GROW_HISTORIES, GROW_HYPOTHESES, NEEDED, grown
from mode_ssm.decode.ctc_beam import CtcSearchState, CtcWordDecoder, Hypothesis, SearchOptions
from mode_ssm.decode.delayed_fusion import DelayedFusion
from mode_ssm.decode.history_kernel import fill_history_table
from mode_ssm.decode.joiner_tables import JoinerTables
from mode_ssm.decode.lexicon_tree import LexiconTree
from mode_ssm.decode.transducer_arrays import (
    JoinerArrays,
    TransducerArrays,
    exponentials,
    new_transducer,
    with_hypotheses,
    with_states,
)
from mode_ssm.decode.transducer_kernel import advance_transducer
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


class TransducerSearchState(CtcSearchState):
    """The beam of one utterance or stream. Made by `TransducerWordDecoder.start`, changed by `step`."""

    def __init__(self, words: CtcSearchState, transducer: TransducerArrays) -> None:
        super().__init__(words.search, words.asked, words.late)
        self.transducer = transducer


class TransducerWordDecoder(CtcWordDecoder):
    """Beam search for word sequences. Holds no state between utterances and can be pickled."""

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
        """As for `CtcWordDecoder`; `tables` come from the network (`transducer_tables.joiner_tables`), `options` are
        those of `TransducerOptions`.
        """
        self.tables = tables
        self.words = lexicon.words
        self.tree = LexiconTree.build(lexicon)
        self._prepare(scorer, TransducerOptions(**options), delayed)

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

    def decode(self, projected: np.ndarray) -> list[Hypothesis]:
        """The best word sequences of an utterance, best first, at most `nbest` and at least one.

        projected: (T, J) encoder frames after the joiner's projection (`transducer_tables.projected`). What hypotheses
        are returned is as for `CtcWordDecoder.decode`. Raises `ValueError` for a wrong shape, NaN, or infinity.
        """
        if projected.ndim != 2:
            raise ValueError(f"projected frames must be (frames, {self.tables.d_joint}), not {projected.shape}")
        state = self.start()
        self.step(state, projected)
        return self.finalize(state)

    def start(self) -> TransducerSearchState:
        """The state before the first frame; `step` takes projected frames, (J,) or (T, J)."""
        words = super().start()
        return TransducerSearchState(words, new_transducer(self.tables, len(words.search.hypotheses.node)))

    def _checked(self, projected: np.ndarray) -> np.ndarray:
        """(T, J) float64, as the kernel takes them."""
        if projected.ndim not in (1, 2) or projected.shape[-1] != self.tables.d_joint:
            raise ValueError(f"projected frames must be (frames, {self.tables.d_joint}), not {projected.shape}")
        frames = np.atleast_2d(projected)
        finite = np.isfinite(frames).all(axis=1)
        if not finite.all():
            raise ValueError(f"projected frames hold NaN or infinity at frame {finite.argmin()} of {len(frames)}")
        return exponentials(frames)

    def _advance(self, state: CtcSearchState, frames: np.ndarray) -> None:
        assert isinstance(state, TransducerSearchState)
        consumed = 0
        while True:
            count, status = advance_transducer(
                frames[consumed:],
                self._joiner,
                self._graph.tree,
                self._graph.lm,
                state.search,
                state.transducer,
                self._settings,
                self.options.max_symbols,
            )
            consumed += count
            if status == DONE:
                return
            if status == ASK:
                assert state.asked is not None
                state.search = state.asked.ask(state.search, self.fusion, self.words)
            elif status == GROW_CANDIDATES:
                state.transducer = with_states(state.transducer, int(state.search.counters[NEEDED]))
            else:
                state.search = grown(state.search, status)
                if status == GROW_HISTORIES:
                    fill_history_table(state.search)
                elif status == GROW_HYPOTHESES:
                    state.transducer = with_hypotheses(state.transducer, len(state.search.hypotheses.node))
