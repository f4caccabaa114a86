"""What every model of recordings has in common: from features to phoneme logits.

Shapes: B trials, T bins, C features, T' frames, V classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mode_ssm.config import ModelConfig
from mode_ssm.models.input_statistics import InputStatistics
from mode_ssm.models.rnnt_ctc_heads import CTCHead


@dataclass(frozen=True, kw_only=True, slots=True)
class PhonemeOutput:
    """phoneme_logits (B, T', V) of the CTC head; lengths (B,) in frames."""

    phoneme_logits: Tensor
    lengths: Tensor


class PhonemeModel(nn.Module):
    """Named parts in a row, `preprocessor`, `encoder` and `ctc_head` among them; loss-free.

    `MODULES` are the parts that phases train, `frame_stride` the bins from one frame to the next; `causal` says that
    no frame waits for the end of the trial.
    """

    MODULES: ClassVar[tuple[str, ...]] = ("preprocessor", "encoder", "ctc_head")
    preprocessor: InputStatistics
    ctc_head: CTCHead
    causal: bool
    frame_stride: int

    @staticmethod
    def frame_lengths(config: ModelConfig, bin_lengths: Tensor) -> Tensor:
        """Frames (...) that trials of so many bins (...) become."""
        raise TypeError("a model must define frame_lengths")

    def forward(self, features: Tensor, feature_lengths: Tensor, session_ids: Tensor) -> PhonemeOutput:
        """features (B, T, C), zero beyond feature_lengths (B,); session_ids (B,), -1 for unseen."""
        raise TypeError(f"{type(self).__name__} must define forward")

    def adapted_layers(self) -> Sequence[nn.Module]:
        """What test-time adaptation moves beside LayerNorms."""
        raise TypeError(f"{type(self).__name__} must define adapted_layers")

    @property
    def device(self) -> torch.device:
        return self.ctc_head.output.weight.device
