"""The GRU that comes with the Brain-to-Text '25 benchmark (Card et al. 2024), parameter for parameter.

Shapes: B trials, T bins, C features, N bins of a patch, T' frames, L layers, H hidden units, V classes.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mode_ssm.config import GruConfig, ModelConfig
from mode_ssm.models.baseline_input import SessionLayers, bin_patches
from mode_ssm.models.phoneme_model import PhonemeModel, PhonemeOutput
from mode_ssm.models.rnnt_ctc_heads import CTCHead


class GRUPreprocessor(SessionLayers):
    """Features (B, T, C) -> overlapping patches (B, T', N * C); frame i sees bins i * stride to i * stride + N - 1.

    A recording shorter than a patch is padded with zeros to one.
    """

    def __init__(self, config: GruConfig, feature_dim: int, num_sessions: int) -> None:
        super().__init__(feature_dim, num_sessions, config.session_layers)
        self.patch_size, self.patch_stride = config.patch_size, config.patch_stride
        self.dropout = nn.Dropout(config.input_dropout)

    def forward(self, features: Tensor, lengths: Tensor, session_ids: Tensor) -> Tensor:
        x = self.dropout(self.adapt(features, lengths, session_ids))
        x = F.pad(x, (0, 0, 0, max(0, self.patch_size - x.shape[1])))
        return bin_patches(x, self.patch_size, self.patch_stride)


class GRUEncoder(nn.Module):
    """(B, T', N * C) -> (B, T', H). All layers start from one learned state."""

    def __init__(self, config: GruConfig, input_size: int) -> None:
        super().__init__()
        self.gru = nn.GRU(input_size, config.hidden, config.n_layers, dropout=config.dropout, batch_first=True)
        self.initial_state = nn.Parameter(torch.empty(1, 1, config.hidden))
        for name, parameter in self.gru.named_parameters():
            if name.startswith("weight_hh"):
                nn.init.orthogonal_(parameter)
            elif name.startswith("weight_ih"):
                nn.init.xavier_uniform_(parameter)
        nn.init.xavier_uniform_(self.initial_state)

    def forward(self, x: Tensor) -> Tensor:
        state = self.initial_state.expand(self.gru.num_layers, len(x), -1).contiguous()
        # cuDNN has no backward pass outside of training, which test-time adaptation asks for.
        adapting = torch.is_grad_enabled() and not self.training
        with torch.backends.cudnn.flags(enabled=False) if adapting else nullcontext():
            return self.gru(x, state)[0]


class GRUBaseline(PhonemeModel):
    """Features (B, T, C) -> phoneme logits (B, T', V); T' = floor((T - N) / stride) + 1, at least 1."""

    preprocessor: GRUPreprocessor
    causal = True

    def __init__(self, config: ModelConfig, feature_dim: int, num_sessions: int) -> None:
        super().__init__()
        self.config, self.frame_stride = config, config.gru.patch_stride
        self.preprocessor = GRUPreprocessor(config.gru, feature_dim, num_sessions)
        self.encoder = GRUEncoder(config.gru, config.gru.patch_size * feature_dim)
        self.ctc_head = CTCHead(config.gru.hidden)
        nn.init.xavier_uniform_(self.ctc_head.output.weight)

    @staticmethod
    def frame_lengths(config: ModelConfig, bin_lengths: Tensor) -> Tensor:
        gru = config.gru
        whole = torch.div(bin_lengths - gru.patch_size, gru.patch_stride, rounding_mode="floor") + 1
        return whole.clamp(min=1)

    def forward(self, features: Tensor, feature_lengths: Tensor, session_ids: Tensor) -> PhonemeOutput:
        patches = self.preprocessor(features, feature_lengths, session_ids)
        logits = self.ctc_head(self.encoder(patches))
        return PhonemeOutput(phoneme_logits=logits, lengths=self.frame_lengths(self.config, feature_lengths))

    def adapted_layers(self) -> Sequence[nn.Module]:
        return [] if self.preprocessor.sessions is None else [self.preprocessor.sessions]
