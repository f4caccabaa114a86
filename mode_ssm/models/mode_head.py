"""p(z | X): the speaking mode as a latent variable, and what it does to the encoder's output.

The benchmark withholds how a sentence was attempted (silently or aloud), so z has no labels. It is shaped by the
transcription losses through the conditioning below and by the two regularisers of the objective: constant within a
block while the blocks of a session differ, and sharp for a trial. Comparing blocks within their session keeps z from
naming the session, the easiest cluster to find.

Shapes: B trials, T frames, D d_model, K modes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mode_ssm.config import ModeConfig
from mode_ssm.ops.lengths import length_mask

MIN_VARIANCE = 1e-5  # keeps the gradient of the pooled spread finite


@dataclass(frozen=True, slots=True)
class ModeOutput:
    """conditioned (B, T, D), zero beyond lengths; log_probs (B, K), log p(z | X) given the whole trial."""

    conditioned: Tensor
    log_probs: Tensor


@dataclass(frozen=True, slots=True)
class ModeState:
    """What the causal mode head carries: sums (B, 3 D) over the frames so far, and their number, a scalar."""

    sums: Tensor
    count: Tensor


class ModeHead(nn.Module):
    """Pools mean and spread of the stem's frames and the mean of the encoder's, classifies, and modulates the
    encoder's output by a gain and an offset per mode (FiLM, Perez et al. 2018), weighted by p(z | X).

    A causal model pools over the frames so far, frame by frame; others pool over the trial. What is pooled is
    detached: the classifier reads the representation and does not bend it towards easy clusters.
    """

    block_posterior: Tensor

    def __init__(self, d_model: int, config: ModeConfig, causal: bool, num_blocks: int) -> None:
        super().__init__()
        self.causal = causal
        self.classifier = nn.Sequential(
            nn.LayerNorm(3 * d_model),
            nn.Linear(3 * d_model, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.n_modes),
        )
        self.gain = nn.Parameter(0.01 * torch.randn(config.n_modes, d_model))
        self.offset = nn.Parameter(0.01 * torch.randn(config.n_modes, d_model))
        # Running estimates of p(z | block) of the training blocks, which the regularisers compare with.
        self.register_buffer("block_posterior", torch.full((num_blocks, config.n_modes), 1 / config.n_modes))

    def forward(self, stem: Tensor, encoded: Tensor, lengths: Tensor) -> ModeOutput:
        mask = length_mask(lengths, stem.shape[1]).unsqueeze(-1)
        sums = self._pooled(stem, encoded) * mask
        if self.causal:
            counts = torch.arange(1, stem.shape[1] + 1, device=stem.device).view(1, -1, 1)
            frame_logits = self._logits(sums.cumsum(1) / counts)  # (B, T, K)
            logits = frame_logits[torch.arange(len(lengths), device=lengths.device), lengths - 1]
            frame_probs = frame_logits.softmax(-1)
        else:
            logits = self._logits(sums.sum(1) / lengths.unsqueeze(-1))
            frame_probs = logits.softmax(-1).unsqueeze(1)
        return ModeOutput(self._condition(encoded, frame_probs) * mask, F.log_softmax(logits, -1))

    def initial_state(self, batch_size: int) -> ModeState:
        return ModeState(self.gain.new_zeros(batch_size, 3 * self.gain.shape[1]), self.gain.new_zeros(()))

    def step(self, stem: Tensor, encoded: Tensor, state: ModeState) -> tuple[Tensor, ModeState]:
        """One frame of a causal model: stem (B, D), encoded (B, D) -> (conditioned (B, D), new state)."""
        state = ModeState(state.sums + self._pooled(stem, encoded), state.count + 1)
        probs = self._logits(state.sums / state.count).softmax(-1)
        return self._condition(encoded, probs), state

    @staticmethod
    def _pooled(stem: Tensor, encoded: Tensor) -> Tensor:
        return torch.cat([stem, stem.square(), encoded], -1).detach()

    def _condition(self, encoded: Tensor, probs: Tensor) -> Tensor:
        return encoded * (1 + probs @ self.gain) + probs @ self.offset

    def _logits(self, pooled: Tensor) -> Tensor:
        mean, square, encoded = pooled.chunk(3, -1)
        spread = (square - mean.square()).clamp(min=MIN_VARIANCE).sqrt()
        return self.classifier(torch.cat([mean, spread, encoded], -1))

    @torch.no_grad()
    def observe(self, log_probs: Tensor, block_rows: Tensor, rate: float = 0.3) -> None:
        """Move the running estimates towards a training batch: log_probs (B, K), block_rows (B,)."""
        probs = log_probs.exp().to(self.block_posterior.dtype)
        for row in block_rows.unique():
            mean = probs[block_rows == row].mean(0)
            self.block_posterior[row] = torch.lerp(self.block_posterior[row], mean, rate)
