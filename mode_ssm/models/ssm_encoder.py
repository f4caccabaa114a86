"""The encoder: pre-norm residual blocks of Mamba mixers, in one direction or both.

Shapes: B trials, T frames, D d_model.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mode_ssm.config import EncoderConfig
from mode_ssm.models.mamba import MIXERS, MixerState
from mode_ssm.ops.lengths import length_mask


class DropPath(nn.Module):
    """Leave a trial's residual branch out with probability `p`; scale the others (Huang et al. 2016)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= self.p
        return x * keep / (1 - self.p)


class MambaBlock(nn.Module):
    """x + drop_path(dropout(mixer(norm(x)))). Bidirectional: a second mixer reads each trial backwards within its
    length and the two outputs are added."""

    def __init__(self, d_model: int, config: EncoderConfig, drop_path: float) -> None:
        super().__init__()
        mixer = MIXERS[config.mixer]
        self.norm = nn.LayerNorm(d_model)
        self.mixer = mixer(d_model, config)
        self.backward_mixer = mixer(d_model, config) if config.bidirectional else None
        self.dropout = nn.Dropout(config.dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        normed = self.norm(x)
        mixed = self.mixer(normed, lengths)
        if self.backward_mixer is not None:
            mixed = mixed + self.backward_mixer(normed, lengths, reverse=True)
        return x + self.drop_path(self.dropout(mixed))

    def step(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        mixed, state = self.mixer.step(self.norm(x), state)
        return x + mixed, state


class SSMEncoder(nn.Module):
    """(x (B, T, D), lengths (B,)) -> (y (B, T, D), lengths); y is zero beyond each length.

    `causal` says whether a frame's output depends on earlier frames only; `step` exists for causal encoders.
    """

    frame_stride = 1

    def __init__(self, d_model: int, config: EncoderConfig) -> None:
        super().__init__()
        depths = max(config.n_layers - 1, 1)
        self.blocks = nn.ModuleList(
            MambaBlock(d_model, config, config.drop_path * i / depths) for i in range(config.n_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.causal = not config.bidirectional
        self.gradient_checkpointing = config.gradient_checkpointing

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, lengths, use_reentrant=False)
            else:
                x = block(x, lengths)
        return self.norm(x) * length_mask(lengths, x.shape[1]).unsqueeze(-1), lengths

    def initial_state(self, batch_size: int) -> list[MixerState]:
        return [block.mixer.initial_state(batch_size) for block in self.stepping_blocks()]

    def step(self, x: Tensor, states: list[MixerState]) -> tuple[Tensor, list[MixerState]]:
        """One frame x (B, D) -> (y (B, D), new states). Raises `ValueError` for a bidirectional encoder."""
        new_states = []
        for block, state in zip(self.stepping_blocks(), states, strict=True):
            x, state = block.step(x, state)
            new_states.append(state)
        return self.norm(x), new_states

    def stepping_blocks(self) -> list[MambaBlock]:
        if not self.causal:
            raise ValueError("model.encoder.bidirectional=true reads the future: step needs bidirectional=false")
        return [block for block in self.blocks if isinstance(block, MambaBlock)]
