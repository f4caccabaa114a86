"""What the compiled transducer search carries beside the arrays of `beam_arrays`.

Shapes: V classes, J d_joint, C contexts of the predictor, N states of a beam.
"""

from typing import NamedTuple

import numpy as np

from mode_ssm.decode.joiner_tables import JoinerTables
from mode_ssm.vocab import BLANK, NUM_CLASSES, SIL

_LARGEST = 170.0  # exp(2 x) of it, squared, is still a float64


class JoinerArrays(NamedTuple):
    """`JoinerTables` as the kernel reads them. The tanh of a sum comes from a product of exponentials, of which those
    of the predictor are computed once: tanh(x + y) = 1 - 2 / (1 + exp(2 x) exp(2 y)).
    """

    predictor: np.ndarray  # (C, J) exp(2 x)
    weight: np.ndarray  # (J, V)
    bias: np.ndarray  # (V,)
    offset: np.ndarray  # (C, V) added to log-probabilities: internal language model, blank penalty, silence score

    @classmethod
    def build(
        cls, tables: JoinerTables, *, ilm_scale: float, blank_penalty: float, silence_score: float
    ) -> "JoinerArrays":
        offset = -ilm_scale * tables.internal_lm() if ilm_scale else np.zeros((len(tables.predictor), NUM_CLASSES))
        offset[:, BLANK] -= blank_penalty
        offset[:, SIL] += silence_score
        return cls(exponentials(tables.predictor), tables.weight.T, tables.bias, offset).read_only()

    def read_only(self) -> "JoinerArrays":
        """The same arrays, seen as the one kind that the search is compiled for; unpickled ones have lost it."""
        views = [np.ascontiguousarray(array, np.float64).view() for array in self]
        for view in views:
            view.flags.writeable = False
        return JoinerArrays(*views)


class ScoreArrays(NamedTuple):
    """Scores of the labels at one frame, by context; computed for the contexts that occur."""

    label: np.ndarray  # (C, V) log-probability and offset
    loudest: np.ndarray  # (C,) largest of them but the blank's
    stamp: np.ndarray  # (C,) frame that a row is of, from 1 on
    hidden: np.ndarray  # (J,) scratch


# A state of the search: word history, tree node, context. node: 0 at all word boundaries, since the context knows the
# last label. word: -1, or the word that has just ended and extends `history`. mass: log-probability of the alignments
# that end here; loudest: its largest part, which the frames come from. bonus: what history and look-ahead add to the
# score. lm_log_prob, lm_state: after `word`. Frames: of the word begun, the last whole word, the one before it.
STATE = np.dtype(
    [
        *((name, np.int32) for name in ("history", "word", "node", "context", "lm_state")),
        *((name, np.int32) for name in ("begin", "last_begin", "last_end", "parent_begin", "parent_end")),
        *((name, np.float64) for name in ("mass", "loudest", "bonus", "lm_log_prob")),
    ],
    align=True,
)

# A word that may end: its entry in the tree, the emitting state that it comes from, context and mass after it.
ENDING = np.dtype(
    [*((name, np.int32) for name in ("entry", "source", "context")), ("mass", np.float64)],
    align=True,
)


class StateArrays(NamedTuple):
    """N states, their scores, and a hash table of their places."""

    state: np.ndarray  # (N,) STATE
    score: np.ndarray  # (N,)
    table: np.ndarray
    stamp: np.ndarray


class TransducerArrays(NamedTuple):
    """emitting: states that are about to emit; longer: after one more label; finished: after the frame's blank."""

    context: np.ndarray  # of the hypotheses
    scores: ScoreArrays
    emitting: StateArrays
    longer: StateArrays
    finished: StateArrays
    endings: np.ndarray  # (N,) ENDING
    stamps: np.ndarray  # (1,) the last one used in hash tables


_FIRST_SIZE = 4096


def exponentials(values: np.ndarray) -> np.ndarray:
    """exp(2 x) in float64, of whose products none is infinite or lost."""
    return np.asarray(np.exp(2 * np.clip(values.astype(np.float64), -_LARGEST, _LARGEST)))


def new_transducer(tables: JoinerTables, hypotheses: int) -> TransducerArrays:
    """The arrays of a search before its first frame, with room for `hypotheses`."""
    contexts = len(tables.predictor)
    emitting, longer, finished = (_states(_FIRST_SIZE) for _ in range(3))
    return TransducerArrays(
        context=np.zeros(hypotheses, np.int32),
        scores=ScoreArrays(
            label=np.zeros((contexts, NUM_CLASSES)),
            loudest=np.zeros(contexts),
            stamp=np.zeros(contexts, np.int64),
            hidden=np.zeros(tables.d_joint),
        ),
        emitting=emitting,
        longer=longer,
        finished=finished,
        endings=np.zeros(_FIRST_SIZE, ENDING),
        stamps=np.zeros(1, np.int64),
    )


def with_hypotheses(arrays: TransducerArrays, hypotheses: int) -> TransducerArrays:
    context = np.zeros(hypotheses, np.int32)
    context[: len(arrays.context)] = arrays.context
    return arrays._replace(context=context)


def with_states(arrays: TransducerArrays, needed: int) -> TransducerArrays:
    """Room for `needed` states; those of the frame that was begun are lost."""
    size = max(needed, 2 * len(arrays.longer.state))
    emitting, longer, finished = (_states(size) for _ in range(3))
    return arrays._replace(emitting=emitting, longer=longer, finished=finished, endings=np.zeros(size, ENDING))


def _states(size: int) -> StateArrays:
    slots = 1 << size.bit_length() + 1
    return StateArrays(np.zeros(size, STATE), np.zeros(size), np.zeros(slots, np.int32), np.zeros(slots, np.int64))
