"""Predictor and joiner of a transducer as arrays, so that search needs no network.

A stateless predictor (Ghodsi et al. 2020, "RNN-transducer with stateless prediction network") sees the last K labels
only. So its output can be computed once for every context, and what is left for a frame is the joiner.

Shapes: V classes, K labels of context, J d_joint, n contexts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mode_ssm.vocab import BLANK, NUM_CLASSES

MAX_CONTEXT = 2  # 41 ** 3 contexts would be the first table that no cache holds


@dataclass(frozen=True, eq=False, slots=True)
class JoinerTables:
    """log P(label | frame, context) = log_softmax(weight @ tanh(encoder_proj(frame) + predictor[context]) + bias).

    predictor (V ** K, J), weight (V, J), bias (V,). The number of a context is that of its labels as digits to base V,
    the last one the least; before the first label stand blanks. Raises `ValueError` for arrays that do not fit.
    """

    predictor: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    def __post_init__(self) -> None:
        sizes = [NUM_CLASSES**context for context in range(1, MAX_CONTEXT + 1)]
        if self.predictor.ndim != 2 or len(self.predictor) not in sizes:
            raise ValueError(
                f"the predictor's table must have a row for each context of 1 to {MAX_CONTEXT} labels "
                f"({' or '.join(map(str, sizes))}), not {self.predictor.shape}"
            )
        if self.weight.shape != (NUM_CLASSES, self.d_joint) or self.bias.shape != (NUM_CLASSES,):
            raise ValueError(
                f"the joiner's weight and bias must be {(NUM_CLASSES, self.d_joint)} and {(NUM_CLASSES,)}, "
                f"not {self.weight.shape} and {self.bias.shape}"
            )

    @property
    def d_joint(self) -> int:
        return int(self.predictor.shape[1])

    def follow(self, context: int, label: int) -> int:
        """The number of the context after `label`."""
        return (context * NUM_CLASSES + label) % len(self.predictor)

    def number(self, labels: Sequence[int]) -> int:
        """The number of the context after `labels`."""
        context = 0  # all blanks
        for label in labels:
            context = self.follow(context, label)
        return context

    def log_probs(self, frame: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        """A projected frame (J,) and numbers of contexts (n,) -> (n, V) float64."""
        hidden = np.tanh(frame.astype(np.float64) + self.predictor[contexts])
        return _log_softmax(hidden @ self.weight.astype(np.float64).T + self.bias)

    def internal_lm(self) -> np.ndarray:
        """log P(label | context) of the predictor alone, (V ** K, V); 0 for the blank, which it does not score.

        The encoder is taken away by a projected frame of zeros, the blank by normalising over the labels (Variani et
        al. 2020, "Hybrid autoregressive transducer"; Meng et al. 2021, "Internal language model estimation").
        """
        log_probs = self.log_probs(np.zeros(self.d_joint), np.arange(len(self.predictor)))
        log_probs[:, BLANK] = -np.inf
        log_probs = _log_softmax(log_probs)
        log_probs[:, BLANK] = 0.0
        return log_probs


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    return np.asarray(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
