"""From recorded features to encoder frames: normalisation, session adapter, channel gates, Conv1D stem.

Shapes: B trials, T bins, C features, S sessions, D d_model, T' = ceil(T / stride) frames.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mode_ssm.config import ModelConfig, SessionAdapter
from mode_ssm.ops.lengths import length_mask, strided_lengths


class SessionTransform(nn.Module):
    """A linear map of the features for each session (Willett et al. 2023, "day-specific input layers").

    Stored as the difference from the identity, so that weight decay pulls a session towards no transform.
    Session -1, one the model never saw, gets the mean of all sessions. In training a trial is treated so with
    probability `dropout`, which keeps that mean usable.
    """

    def __init__(self, kind: SessionAdapter, num_sessions: int, feature_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.kind, self.dropout = kind, dropout
        matrix = (feature_dim,) if kind is SessionAdapter.affine else ()
        self.weight_delta = nn.Parameter(torch.zeros(num_sessions, feature_dim, *matrix))
        self.offset = nn.Parameter(torch.zeros(num_sessions, feature_dim))

    def forward(self, x: Tensor, session_ids: Tensor) -> Tensor:
        """x (B, T, C), session_ids (B,) -> (B, T, C)."""
        if self.training and self.dropout > 0:
            dropped = torch.rand(session_ids.shape, device=session_ids.device) < self.dropout
            session_ids = session_ids.masked_fill(dropped, -1)
        weight = self._rows(self.weight_delta, session_ids)
        offset = self._rows(self.offset, session_ids).unsqueeze(1)
        change = torch.bmm(x, weight) if self.kind is SessionAdapter.affine else x * weight.unsqueeze(1)
        return x + change + offset

    @staticmethod
    def _rows(table: Tensor, session_ids: Tensor) -> Tensor:
        if bool((session_ids < 0).any()):
            table = torch.cat([table, table.mean(0, keepdim=True)])  # row -1
            session_ids = session_ids % len(table)
        return table[session_ids]


class Preprocessor(nn.Module):
    """Features (B, T, C) -> frames (B, T', D).

    Frame i sees bins up to (i + 1) * stride - 1 and `kernel_size` bins in all, so the stem looks ahead by at most
    stride - 1 bins from its first bin. `feature_mean` and `feature_std` (C,) are those of the training split,
    `session_mean` and `session_std` (S, C) those of each training session, which adaptation aims at.
    """

    feature_mean: Tensor
    feature_std: Tensor
    session_mean: Tensor
    session_std: Tensor

    def __init__(self, config: ModelConfig, feature_dim: int, num_sessions: int) -> None:
        super().__init__()
        stem = config.stem
        self.stride, self.left_padding = stem.stride, stem.kernel_size - stem.stride
        if self.left_padding < 0:
            raise ValueError(f"model.stem.kernel_size={stem.kernel_size} must be at least stride={stem.stride}")
        self.register_buffer("feature_mean", torch.zeros(feature_dim))
        self.register_buffer("feature_std", torch.ones(feature_dim))
        self.register_buffer("session_mean", torch.zeros(num_sessions, feature_dim))
        self.register_buffer("session_std", torch.ones(num_sessions, feature_dim))
        self.session_transform = (
            None
            if config.session_adapter is SessionAdapter.none
            else SessionTransform(config.session_adapter, num_sessions, feature_dim, config.session_dropout)
        )
        self.channel_gate = nn.Parameter(torch.zeros(feature_dim)) if stem.channel_gates else None
        self.input_dropout = nn.Dropout(stem.input_dropout)
        self.conv = nn.Conv1d(feature_dim, config.d_model, stem.kernel_size, stem.stride)
        self.norm = nn.LayerNorm(config.d_model)

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, std: Tensor, session_mean: Tensor, session_std: Tensor) -> None:
        """Statistics (C,) of the training split and (S, C) of its sessions; features that never vary stay unscaled."""
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))
        self.session_mean.copy_(session_mean)
        self.session_std.copy_(torch.where(session_std > 1e-6, session_std, torch.ones_like(session_std)))

    def forward(self, features: Tensor, lengths: Tensor, session_ids: Tensor) -> tuple[Tensor, Tensor]:
        x = (features - self.feature_mean) / self.feature_std
        if self.session_transform is not None:
            x = self.session_transform(x, session_ids)
        if self.channel_gate is not None:
            x = x * (2 * torch.sigmoid(self.channel_gate))
        x = self.input_dropout(x)
        x = x * length_mask(lengths, x.shape[1]).unsqueeze(-1)
        frame_lengths = strided_lengths(lengths, self.stride)
        missing = -x.shape[1] % self.stride
        x = F.pad(x.transpose(1, 2), (self.left_padding, missing))
        x = self.norm(F.gelu(self.conv(x)).transpose(1, 2))
        return x * length_mask(frame_lengths, x.shape[1]).unsqueeze(-1), frame_lengths
