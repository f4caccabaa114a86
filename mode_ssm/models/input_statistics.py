"""Mean and spread of the training features, which a model carries, normalises by, and adapts towards.

Shapes: C features, S sessions.
"""

import torch
from torch import Tensor, nn

SMALLEST_STD = 1e-6  # below it a feature counts as one that never varies


class InputStatistics(nn.Module):
    """`feature_mean` and `feature_std` (C,) are those of the training split, `session_mean` and `session_std` (S, C)
    those of each training session, which adaptation aims at. They change nothing until `set_statistics`."""

    feature_mean: Tensor
    feature_std: Tensor
    session_mean: Tensor
    session_std: Tensor

    def __init__(self, feature_dim: int, num_sessions: int) -> None:
        super().__init__()
        self.register_buffer("feature_mean", torch.zeros(feature_dim))
        self.register_buffer("feature_std", torch.ones(feature_dim))
        self.register_buffer("session_mean", torch.zeros(num_sessions, feature_dim))
        self.register_buffer("session_std", torch.ones(num_sessions, feature_dim))

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, std: Tensor, session_mean: Tensor, session_std: Tensor) -> None:
        """Statistics (C,) of the training split and (S, C) of its sessions; features that never vary stay unscaled."""
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(torch.where(std > SMALLEST_STD, std, torch.ones_like(std)))
        self.session_mean.copy_(session_mean)
        self.session_std.copy_(torch.where(session_std > SMALLEST_STD, session_std, torch.ones_like(session_std)))

    def normalise(self, features: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return (features - self.feature_mean) / self.feature_std
