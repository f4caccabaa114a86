"""From the transducer head of a network to the arrays that the word search reads.

Shapes: T frames, D features of a frame, V classes, K labels of context, J d_joint.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mode_ssm.decode.joiner_tables import MAX_CONTEXT, JoinerTables
from mode_ssm.vocab import NUM_CLASSES


class Predictor(Protocol):
    """Contexts (..., K) int64, left-padded with blank -> (..., J); sees the last `context` labels only."""

    context: int
    training: bool

    def __call__(self, contexts: Tensor) -> Tensor: ...

    def train(self, mode: bool) -> object: ...


class Joiner(Protocol):
    """output(tanh(encoder_proj(frames) + predictor_out)): (..., D) and (..., J) -> logits (..., V)."""

    encoder_proj: nn.Linear
    output: nn.Linear

    def __call__(self, encoder_out: Tensor, predictor_out: Tensor) -> Tensor: ...


@torch.no_grad()
def joiner_tables(predictor: Predictor, joiner: Joiner) -> JoinerTables:
    """Raises `ValueError` for a predictor that sees more than two labels, and for heads of another kind."""
    context = getattr(predictor, "context", None)
    if context is None or not 1 <= context <= MAX_CONTEXT:
        seen = "all labels" if context is None else f"model.heads.predictor_context={context} labels"
        raise ValueError(
            f"the word search of the transducer needs a predictor that sees the last 1 to {MAX_CONTEXT} labels; "
            f"this one sees {seen}: search with CTC (decode.search=ctc)"
        )
    weight = joiner.output.weight
    numbers = torch.arange(NUM_CLASSES**context, device=weight.device)
    digits = [numbers // NUM_CLASSES**place % NUM_CLASSES for place in reversed(range(context))]
    predictor_out = _without_dropout(predictor, torch.stack(digits, dim=-1))
    tables = JoinerTables(_numpy(predictor_out), _numpy(weight), _numpy(joiner.output.bias))
    frame = torch.linspace(-1, 1, joiner.encoder_proj.in_features, device=weight.device)
    expected = _numpy(joiner(frame, predictor_out).log_softmax(-1))
    found = tables.log_probs(projected(joiner, frame), np.arange(len(predictor_out)))
    if not np.allclose(found, expected, atol=1e-3):
        raise ValueError(
            "the word search of the transducer needs a joiner of the form output(tanh(encoder_proj(frame) + predictor))"
            ": this one is another"
        )
    return tables


def _without_dropout(predictor: Predictor, contexts: Tensor) -> Tensor:
    training = predictor.training
    predictor.train(False)
    try:
        return predictor(contexts)
    finally:
        predictor.train(training)


@torch.no_grad()
def projected(joiner: Joiner, encoder_out: Tensor) -> np.ndarray:
    """encoder_out (T, D) -> what `TransducerWordDecoder` decodes, (T, J) float32."""
    return _numpy(joiner.encoder_proj(encoder_out))


def _numpy(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().float().cpu().numpy())
