"""Activations with parameters of their own."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ParametricSine(nn.Module):
    """y = A exp(-d |z|) sin(f z), with amplitude A, decay d and frequency f of every feature positive by softplus.

    It starts at A = 1, f = 1 and d = 0.1: near z at the origin, and still alive several units away from it.
    """

    def __init__(
        self, num_features: int, *, amplitude: float = 1.0, frequency: float = 1.0, decay: float = 0.1
    ) -> None:
        super().__init__()
        self.amplitude_raw = nn.Parameter(torch.full((num_features,), inverse_softplus(amplitude)))
        self.frequency_raw = nn.Parameter(torch.full((num_features,), inverse_softplus(frequency)))
        self.decay_raw = nn.Parameter(torch.full((num_features,), inverse_softplus(decay)))

    def forward(self, z: Tensor) -> Tensor:
        """z (..., num_features) -> the same shape."""
        amplitude, frequency = F.softplus(self.amplitude_raw), F.softplus(self.frequency_raw)
        decay = F.softplus(self.decay_raw)
        return amplitude * torch.exp(-decay * z.abs()) * torch.sin(frequency * z)


def inverse_softplus(value: float) -> float:
    """x with log(1 + exp(x)) = value, for a value above 0."""
    return value + math.log(-math.expm1(-value))
