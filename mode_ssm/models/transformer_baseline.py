"""The time-masked causal Transformer (Feghhi et al. 2025, "Time-masked transformers with lightweight test-time
adaptation for neural speech decoding").

Shapes: B trials, T bins, C features, N bins of a patch, P = N * C, T' = ceil(T / N) frames, D d_model, H heads,
M time masks, V classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mode_ssm.config import ModelConfig, TransformerConfig
from mode_ssm.models.baseline_input import SessionLayers, bin_patches
from mode_ssm.models.phoneme_model import PhonemeModel, PhonemeOutput
from mode_ssm.models.rnnt_ctc_heads import CTCHead
from mode_ssm.ops.lengths import strided_lengths


def draw_time_masks(lengths: Tensor, num_frames: int, count: int, max_fraction: float) -> Tensor:
    """(B, num_frames), true in `count` stretches of each trial, of 0..floor(max_fraction * length) frames each.

    lengths (B,) in frames. Drawn from torch's generator, so that a resumed run draws the same.
    """
    longest = (max_fraction * lengths).long().unsqueeze(-1)
    draws = torch.rand(2, len(lengths), count, device=lengths.device)
    widths = (draws[0] * (longest + 1)).long()  # (B, M)
    starts = (draws[1] * (lengths.unsqueeze(-1) - widths + 1)).long()
    frames = torch.arange(num_frames, device=lengths.device)
    inside = (frames >= starts.unsqueeze(-1)) & (frames < (starts + widths).unsqueeze(-1))  # (B, M, T')
    return inside.any(1)


def causal_bias(by_distance: Tensor, length: int) -> Tensor:
    """What is added to attention logits, (length, length): `by_distance[i - j]` for key j of query i, the last entry
    for all longer distances, and minus infinity for later keys."""
    distances = len(by_distance)
    reaching = torch.cat([by_distance[:length], by_distance[-1:].expand(max(0, length - distances))])
    # Row i is a window on one line of values. Not indexing by i - j: its gradient is added up in any order on a GPU.
    line = torch.cat([reaching.flip(0), by_distance.new_full((length - 1,), -torch.inf)])
    return line.unfold(0, length, 1).flip(0)


class TransformerPreprocessor(SessionLayers):
    """Features (B, T, C) -> embedded patches (B, T', D), which do not overlap.

    In training, stretches of each trial are replaced by one learned patch (`mask_token`).
    """

    def __init__(self, config: TransformerConfig, feature_dim: int, num_sessions: int) -> None:
        super().__init__(feature_dim, num_sessions, config.session_layers)
        self.patch_size = config.patch_size
        self.time_masks, self.max_fraction = config.time_masks, config.time_mask_max_fraction
        width = config.patch_size * feature_dim
        self.mask_token = nn.Parameter(torch.randn(width)) if config.time_masks else None
        self.embedding = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, config.d_model), nn.LayerNorm(config.d_model)
        )
        self.dropout = nn.Dropout(config.input_dropout)

    def forward(self, features: Tensor, lengths: Tensor, session_ids: Tensor) -> Tensor:
        x = self.adapt(features, lengths, session_ids)
        x = F.pad(x, (0, 0, 0, -x.shape[1] % self.patch_size))
        patches = bin_patches(x, self.patch_size, self.patch_size)
        if self.training and self.mask_token is not None:
            frame_lengths = strided_lengths(lengths, self.patch_size)
            masked = draw_time_masks(frame_lengths, patches.shape[1], self.time_masks, self.max_fraction)
            patches = torch.where(masked.unsqueeze(-1), self.mask_token, patches)
        return self.dropout(self.embedding(patches))


class CausalAttention(nn.Module):
    """Pre-norm self-attention to earlier frames; one learned bias a distance, shared by the heads (after Raffel et
    al. 2020, T5)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.n_heads * config.head_dim
        self.n_heads, self.dropout = config.n_heads, config.dropout
        self.norm = nn.LayerNorm(config.d_model)
        self.qkv = nn.Linear(config.d_model, 3 * width, bias=False)
        self.distance_bias = nn.Parameter(torch.randn(config.max_distance))
        self.out = nn.Linear(width, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T', D) -> (B, T', D)."""
        parts = self.qkv(self.norm(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in parts)  # (B, H, T', D / H)
        bias = causal_bias(self.distance_bias, x.shape[1]).to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """x + dropout(attention(x)), then the same with the MLP."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden = config.mlp_ratio * config.d_model
        self.attention = CausalAttention(config)
        self.mlp = nn.Sequential(
            nn.LayerNorm(config.d_model),
            nn.Linear(config.d_model, hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(hidden, config.d_model),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(x))
        return x + self.dropout(self.mlp(x))


class TransformerEncoder(nn.Module):
    """(B, T', D) -> (B, T', D). Frames beyond a trial's length come after it, so no frame inside sees them."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class TransformerBaseline(PhonemeModel):
    """Features (B, T, C) -> phoneme logits (B, T', V). Frame i sees bins up to (i + 1) * patch_size - 1."""

    preprocessor: TransformerPreprocessor
    causal = True

    def __init__(self, config: ModelConfig, feature_dim: int, num_sessions: int) -> None:
        super().__init__()
        self.config, self.frame_stride = config, config.transformer.patch_size
        self.preprocessor = TransformerPreprocessor(config.transformer, feature_dim, num_sessions)
        self.encoder = TransformerEncoder(config.transformer)
        self.ctc_head = CTCHead(config.transformer.d_model)

    @staticmethod
    def frame_lengths(config: ModelConfig, bin_lengths: Tensor) -> Tensor:
        return strided_lengths(bin_lengths, config.transformer.patch_size)

    def forward(self, features: Tensor, feature_lengths: Tensor, session_ids: Tensor) -> PhonemeOutput:
        embedded = self.preprocessor(features, feature_lengths, session_ids)
        logits = self.ctc_head(self.encoder(embedded))
        return PhonemeOutput(phoneme_logits=logits, lengths=self.frame_lengths(self.config, feature_lengths))

    def adapted_layers(self) -> Sequence[nn.Module]:
        return [self.preprocessor.embedding]
