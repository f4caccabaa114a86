"""CTC head, stateless predictor and joiner.

Shapes: B trials, T frames, U phonemes, D d_model, J d_joint, V classes, K context.
"""

import torch
from torch import Tensor, nn

from mode_ssm.config import HeadsConfig
from mode_ssm.vocab import BLANK, NUM_CLASSES


class CTCHead(nn.Module):
    """(B, T, D) -> logits (B, T, V)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.output = nn.Linear(d_model, NUM_CLASSES)

    def forward(self, encoder_out: Tensor) -> Tensor:
        return self.output(encoder_out)


class StatelessPredictor(nn.Module):
    """Sees the last K phonemes only (Ghodsi et al. 2020): contexts (..., K) -> (..., J)."""

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        self.context = config.predictor_context
        self.embedding = nn.Embedding(NUM_CLASSES, config.d_joint)
        self.dropout = nn.Dropout(config.predictor_dropout)
        self.output = nn.Linear(self.context * config.d_joint, config.d_joint)

    def forward(self, contexts: Tensor) -> Tensor:
        return self.output(self.dropout(self.embedding(contexts).flatten(-2)))

    def contexts(self, targets: Tensor) -> Tensor:
        """targets (B, U) -> (B, U + 1, K): what was emitted before each lattice row, blanks before the first."""
        padded = torch.cat([targets.new_full((len(targets), self.context), BLANK), targets], 1)
        return padded.unfold(1, self.context, 1)


class Joiner(nn.Module):
    """tanh(encoder + predictor) -> logits; the two broadcast against each other, (..., D) and (..., J) -> (..., V)."""

    def __init__(self, d_model: int, d_joint: int) -> None:
        super().__init__()
        self.encoder_proj = nn.Linear(d_model, d_joint, bias=False)
        self.output = nn.Linear(d_joint, NUM_CLASSES)

    def forward(self, encoder_out: Tensor, predictor_out: Tensor) -> Tensor:
        return self.output(torch.tanh(self.encoder_proj(encoder_out) + predictor_out))
