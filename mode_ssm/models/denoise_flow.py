"""A latent bridge from what the encoder makes of a degraded recording (x_0) to what it makes of a clean one (x_1).

Flow matching with straight paths (Lipman et al. 2023; Liu et al. 2023): x_t = (1 - t) x_0 + t x_1, the network
predicts the velocity x_1 - x_0, and inference integrates it from t = 0 to 1 in a few Euler steps.

Shapes: B trials, T frames, D d_model.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mode_ssm.config import DenoiserConfig


@dataclass(frozen=True, slots=True)
class PathSample:
    """A point on the path: x_t (B, T, D), t (B,), velocity (B, T, D)."""

    x_t: Tensor
    t: Tensor
    velocity: Tensor


def sample_path(x_0: Tensor, x_1: Tensor, t: Tensor) -> PathSample:
    """The straight path's point and velocity at t (B,)."""
    weight = t.view(-1, 1, 1)
    return PathSample((1 - weight) * x_0 + weight * x_1, t, x_1 - x_0)


class DenoiseFlow(nn.Module):
    """`forward` bridges x_0 to an estimate of x_1; `velocity` is the field it integrates.

    Frame-wise, hence causal. The output layer starts near zero: an untrained bridge changes next to nothing.
    """

    def __init__(self, d_model: int, config: DenoiserConfig) -> None:
        super().__init__()
        self.n_steps = config.n_steps
        self.norm = nn.LayerNorm(d_model)
        self.input = nn.Linear(d_model, config.hidden)
        self.time = nn.Sequential(nn.Linear(1, config.hidden), nn.SiLU(), nn.Linear(config.hidden, config.hidden))
        self.hidden = nn.Linear(config.hidden, config.hidden)
        self.output = nn.Linear(config.hidden, d_model)
        nn.init.normal_(self.output.weight, std=1e-3)
        nn.init.zeros_(self.output.bias)

    def velocity(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t (B, T, D), t (B,) -> (B, T, D)."""
        return self._velocity(x_t, self.time(t.view(-1, 1, 1)))

    def forward(self, x_0: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.integrate(x_0, self.time_embeddings())

    def time_embeddings(self) -> Tensor:
        """(n_steps, hidden): of the times at which integration evaluates the velocity, the same for all x_0."""
        steps = torch.arange(self.n_steps, device=self.input.weight.device, dtype=self.input.weight.dtype)
        return self.time(steps.unsqueeze(-1) / self.n_steps)

    def integrate(self, x_0: Tensor, time_embeddings: Tensor) -> Tensor:
        """x_0 (..., D), `time_embeddings()` -> (..., D)."""
        x = x_0
        for embedding in time_embeddings.unbind():
            x = torch.add(x, self._velocity(x, embedding), alpha=1 / self.n_steps)
        return x

    def _velocity(self, x_t: Tensor, time_embedding: Tensor) -> Tensor:
        h = F.silu(self.input(self.norm(x_t)) + time_embedding)
        return self.output(F.silu(self.hidden(h)))
