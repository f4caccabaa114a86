"""From recorded features to encoder frames: normalisation, session adapter, channel gates, Conv1D stem.

Shapes: B trials, T bins, C features, S sessions, P projected features, D d_model, T' = ceil(T / stride) frames.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mode_ssm.config import ModelConfig, SessionAdapter
from mode_ssm.models.input_statistics import InputStatistics
from mode_ssm.ops.lengths import length_mask, strided_lengths


class SessionTable(nn.Module):
    """Parameters of every session, (S, *shape), as differences from what all sessions share (zero at the start), so
    that weight decay pulls a session towards the others.

    Session -1, one the model never saw, gets the mean of all. In training a trial is treated so with probability
    `dropout`, which keeps that mean usable.
    """

    def __init__(self, num_sessions: int, shapes: dict[str, tuple[int, ...]], dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.tables = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(num_sessions, *shape)) for name, shape in shapes.items()}
        )

    def forward(self, session_ids: Tensor) -> dict[str, Tensor]:
        """session_ids (B,) -> {name: (B, *shape)}."""
        if self.training and self.dropout > 0:
            dropped = torch.rand(session_ids.shape, device=session_ids.device) < self.dropout
            session_ids = session_ids.masked_fill(dropped, -1)
        unseen = bool((session_ids < 0).any())
        rows = {}
        for name, table in self.tables.items():
            extended = torch.cat([table, table.mean(0, keepdim=True)]) if unseen else table
            # Not indexing: its gradient is added up by atomic operations on several threads, in any order.
            rows[name] = extended.index_select(0, session_ids % len(extended))
        return rows


@dataclass(frozen=True, slots=True)
class StemState:
    """What the stem carries from frame to frame: `session`, what adapts these trials, {name: (B, *shape)}, constant;
    `bins` (B, kernel_size - stride, P), the adapted bins that the next frame sees again."""

    session: dict[str, Tensor]
    bins: Tensor


class Preprocessor(InputStatistics):
    """Features (B, T, C) -> frames (B, T', D).

    Session adapter (Willett et al. 2023 call it a day-specific input layer): a gain and an offset for each feature, a
    full matrix, or a projection of its own. Frame i sees bins up to (i + 1) * stride - 1 and `kernel_size` bins in all.

    Bins that are zero in every feature hold no signal: time masks, or bins that were lost on the way. With `mask_token`
    a learned bin (P,) stands for them in front of the convolution (Feghhi et al. 2025 learn theirs too).
    """

    def __init__(self, config: ModelConfig, feature_dim: int, num_sessions: int) -> None:
        super().__init__(feature_dim, num_sessions)
        stem, self.adapter = config.stem, config.session_adapter
        self.stride, self.left_padding = stem.stride, stem.kernel_size - stem.stride
        if self.left_padding < 0:
            raise ValueError(f"model.stem.kernel_size={stem.kernel_size} must be at least stride={stem.stride}")
        if self.adapter is SessionAdapter.projection and stem.projection is None:
            raise ValueError("model.session_adapter=projection needs model.stem.projection=<width>")
        shapes: dict[SessionAdapter, dict[str, tuple[int, ...]]] = {
            SessionAdapter.diagonal: {"weight": (feature_dim,), "offset": (feature_dim,)},
            SessionAdapter.affine: {"weight": (feature_dim, feature_dim), "offset": (feature_dim,)},
            SessionAdapter.projection: {
                "weight": (feature_dim, stem.projection or 0),
                "offset": (stem.projection or 0,),
            },
        }
        self.sessions = (
            SessionTable(num_sessions, shapes[self.adapter], config.session_dropout) if self.adapter in shapes else None
        )
        self.channel_gate = nn.Parameter(torch.zeros(feature_dim)) if stem.channel_gates else None
        self.input_dropout = nn.Dropout(stem.input_dropout)
        self.projection = nn.Linear(feature_dim, stem.projection) if stem.projection is not None else None
        self.conv = nn.Conv1d(stem.projection or feature_dim, config.d_model, stem.kernel_size, stem.stride)
        self.norm = nn.LayerNorm(config.d_model)
        self.mask_token = nn.Parameter(torch.zeros(self.conv.in_channels)) if stem.mask_token else None

    def forward(self, features: Tensor, lengths: Tensor, session_ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self._adapt(features, self._session_maps(session_ids))
        x = x * length_mask(lengths, x.shape[1]).unsqueeze(-1)
        frame_lengths = strided_lengths(lengths, self.stride)
        missing = (self.stride - x.shape[1] % self.stride) % self.stride
        x = F.pad(x.transpose(1, 2), (self.left_padding, missing))
        x = self.norm(F.gelu(self.conv(x)).transpose(1, 2))
        return x * length_mask(frame_lengths, x.shape[1]).unsqueeze(-1), frame_lengths

    def initial_state(self, session_ids: Tensor) -> StemState:
        """session_ids (B,), -1 for unseen."""
        weight = self.conv.weight
        return StemState(
            self._session_maps(session_ids), weight.new_zeros(len(session_ids), self.left_padding, weight.shape[1])
        )

    def step(self, bins: Tensor, state: StemState) -> tuple[Tensor, StemState]:
        """bins (B, stride, C), fewer in the last frame of a trial -> (frame (B, D), new state)."""
        adapted = F.pad(self._adapt(bins, state.session), (0, 0, 0, self.stride - bins.shape[1]))
        window = torch.cat([state.bins, adapted], 1)  # (B, kernel_size, P)
        # One window makes one frame: a matrix-vector product, which Conv1d is slow at.
        x = F.linear(window.transpose(1, 2).flatten(1), self.conv.weight.flatten(1), self.conv.bias)
        return self.norm(F.gelu(x)), StemState(state.session, window[:, self.stride :])

    def _session_maps(self, session_ids: Tensor) -> dict[str, Tensor]:
        """What `_adapt` applies to trials of these sessions, {name: (B, *shape)}."""
        rows = self.sessions(session_ids) if self.sessions is not None else {}
        if self.adapter is SessionAdapter.projection and self.projection is not None:
            shared = {"weight": self.projection.weight.t(), "offset": self.projection.bias}
            rows = {name: shared[name] + row for name, row in rows.items()}
        return rows

    def _adapt(self, features: Tensor, session: dict[str, Tensor]) -> Tensor:
        """(B, T, C) -> (B, T, P): everything in front of the convolution, bin by bin."""
        x = self.normalise(features)
        if self.adapter is SessionAdapter.diagonal:
            x = x * (1 + session["weight"].unsqueeze(1)) + session["offset"].unsqueeze(1)
        elif self.adapter is SessionAdapter.affine:
            x = x + torch.baddbmm(session["offset"].unsqueeze(1), x, session["weight"])
        if self.channel_gate is not None:
            x = x * (2 * torch.sigmoid(self.channel_gate))
        x = self.input_dropout(x)
        if self.adapter is SessionAdapter.projection:
            x = torch.baddbmm(session["offset"].unsqueeze(1), x, session["weight"])
        elif self.projection is not None:
            x = self.projection(x)
        if self.mask_token is not None:
            x = torch.where(features.any(-1, keepdim=True), x, self.mask_token.to(x.dtype))
        return x
