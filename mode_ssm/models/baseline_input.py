"""What both baselines do to features first: normalisation, a map of each session's own, patches of bins.

Shapes: B trials, T bins, C features, S sessions, N bins of a patch, T' patches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mode_ssm.models.input_statistics import InputStatistics
from mode_ssm.models.preprocessor import SessionTable
from mode_ssm.ops.lengths import length_mask


class SessionLayers(InputStatistics):
    """softsign(x W_s + b_s) of session s, W_s the identity at the start (Card et al. 2024); unseen sessions get the
    mean of all. Without `session_layers` only normalisation is left.

    W_s is kept as its difference from the identity and does not decay, as in the official training.
    """

    def __init__(self, feature_dim: int, num_sessions: int, session_layers: bool) -> None:
        super().__init__(feature_dim, num_sessions)
        shapes = {"weight": (feature_dim, feature_dim), "offset": (feature_dim,)}
        self.sessions = SessionTable(num_sessions, shapes, dropout=0.0) if session_layers else None
        if self.sessions is not None:
            for table in self.sessions.parameters():
                table.no_weight_decay = True  # type: ignore[attr-defined]

    def adapt(self, features: Tensor, lengths: Tensor, session_ids: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C), zero beyond `lengths`."""
        x = self.normalise(features)
        if self.sessions is not None:
            session = self.sessions(session_ids)
            x = F.softsign(x + torch.baddbmm(session["offset"].unsqueeze(1), x, session["weight"]))
        return x * length_mask(lengths, x.shape[1]).unsqueeze(-1)


def bin_patches(x: Tensor, size: int, stride: int) -> Tensor:
    """(B, T, C) -> (B, T', N * C): whole windows of `size` bins every `stride` bins, flattened bin by bin."""
    return x.unfold(1, size, stride).transpose(2, 3).flatten(2)
