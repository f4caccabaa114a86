"""Mamba (Gu & Dao 2023) and Mamba-2 (Dao & Gu 2024) mixers over `mode_ssm.ops`.

Names follow the papers' code. Shapes: B trials, T frames, D d_model, E = expand * D, H heads of P, N d_state, W d_conv.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mode_ssm.config import EncoderConfig, Mixer
from mode_ssm.ops.causal_conv import causal_conv, causal_conv_step
from mode_ssm.ops.gated_norm import gated_rms_norm, gated_rms_norm_step, silu_gate
from mode_ssm.ops.selective_scan import selective_scan, selective_scan_step
from mode_ssm.ops.ssd import ssd, ssd_step


@dataclass(frozen=True, slots=True)
class MixerState:
    """What a causal mixer carries from frame to frame: conv (B, channels, W - 1), ssm (B, ...), and A, which is
    constant: the exponentials in Mamba-1's would take 0.4 ms of every frame at full size."""

    conv: Tensor
    ssm: Tensor
    A: Tensor


def initial_dt_bias(size: int, config: EncoderConfig) -> Tensor:
    """Inverse softplus of log-uniform steps in [dt_min, dt_max], shifted by dt_bias_shift."""
    low, high = math.log(config.dt_min), math.log(config.dt_max)
    dt = torch.exp(torch.rand(size) * (high - low) + low).clamp(min=1e-4)
    return dt + torch.log(-torch.expm1(-dt)) + config.dt_bias_shift


class RMSNormGated(nn.Module):
    """RMSNorm(x * silu(z)) before Mamba-2's output projection; in the weights' precision under autocast too."""

    def __init__(self, size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return gated_rms_norm(x, z, self.weight, self.eps)

    def step(self, x: Tensor, z: Tensor) -> Tensor:
        return gated_rms_norm_step(x, z, self.weight, self.eps)


class Mamba(nn.Module):
    """Mamba-1: (B, T, D) -> (B, T, D), causal; anti-causal within each length with `reverse`."""

    def __init__(self, d_model: int, config: EncoderConfig) -> None:
        super().__init__()
        self.d_inner, self.d_state = config.expand * d_model, config.d_state
        self.dt_rank = math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(self.d_inner, config.d_conv).uniform_(-1, 1) / config.d_conv**0.5)
        self.conv_bias = nn.Parameter(torch.zeros(self.d_inner))
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * self.d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        with torch.no_grad():
            self.dt_proj.bias.copy_(initial_dt_bias(self.d_inner, config))
        self.A_log = nn.Parameter(torch.arange(1, self.d_state + 1).float().log().repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, x: Tensor, lengths: Tensor, reverse: bool = False) -> Tensor:
        u, z = self.in_proj(x).chunk(2, -1)
        u, _ = causal_conv(u, self.conv_weight, self.conv_bias, silu=True, lengths=lengths, reverse=reverse)
        dt, B, C = self._scan_inputs(u)
        A = -torch.exp(self.A_log)
        y, _ = selective_scan(u, dt, A, B, C, self.D, dt_softplus=True, lengths=lengths, reverse=reverse)
        return self.out_proj(silu_gate(y, z))

    def initial_state(self, batch_size: int) -> MixerState:
        like = self.conv_weight
        conv = like.new_zeros(batch_size, self.d_inner, like.shape[1] - 1)
        return MixerState(conv, like.new_zeros(batch_size, self.d_inner, self.d_state), -torch.exp(self.A_log))

    def step(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """x (B, D), one frame."""
        u, z = self.in_proj(x).chunk(2, -1)
        u, conv = causal_conv_step(u, state.conv, self.conv_weight, self.conv_bias, silu=True)
        dt, B, C = self._scan_inputs(u)
        y, ssm = selective_scan_step(state.ssm, u, F.softplus(dt), state.A, B, C, self.D)
        return self.out_proj(y * F.silu(z)), MixerState(conv, ssm, state.A)

    def _scan_inputs(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], -1)
        return self.dt_proj(dt), B, C


class Mamba2(nn.Module):
    """Mamba-2: (B, T, D) -> (B, T, D), causal, one group of B and C; anti-causal within each length with `reverse`."""

    def __init__(self, d_model: int, config: EncoderConfig) -> None:
        super().__init__()
        self.d_inner, self.d_state, self.headdim = config.expand * d_model, config.d_state, config.headdim
        if self.d_inner % self.headdim:
            raise ValueError(
                f"model.encoder.headdim={self.headdim} must divide expand * d_model = {self.d_inner} for mamba2"
            )
        self.n_heads = self.d_inner // self.headdim
        conv_channels = self.d_inner + 2 * self.d_state
        self.in_proj = nn.Linear(d_model, self.d_inner + conv_channels + self.n_heads, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(conv_channels, config.d_conv).uniform_(-1, 1) / config.d_conv**0.5)
        self.conv_bias = nn.Parameter(torch.zeros(conv_channels))
        self.dt_bias = nn.Parameter(initial_dt_bias(self.n_heads, config))
        self.A_log = nn.Parameter(torch.empty(self.n_heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.n_heads))
        self.norm = RMSNormGated(self.d_inner)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, x: Tensor, lengths: Tensor, reverse: bool = False) -> Tensor:
        z, conv_in, dt = self._split(self.in_proj(x))
        conv_out, _ = causal_conv(
            conv_in, self.conv_weight, self.conv_bias, silu=True, lengths=lengths, reverse=reverse
        )
        u, B, C = self._heads(conv_out)
        dt = F.softplus(dt + self.dt_bias)
        y, _ = ssd(u, dt, -torch.exp(self.A_log), B, C, self.D, lengths=lengths, reverse=reverse)
        return self.out_proj(self.norm(y.flatten(-2), z))

    def initial_state(self, batch_size: int) -> MixerState:
        like = self.conv_weight
        conv = like.new_zeros(batch_size, *like.shape[:1], like.shape[1] - 1)
        ssm = like.new_zeros(batch_size, self.n_heads, self.headdim, self.d_state)
        return MixerState(conv, ssm, -torch.exp(self.A_log))

    def step(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """x (B, D), one frame."""
        z, conv_in, dt = self._split(self.in_proj(x))
        conv_out, conv = causal_conv_step(conv_in, state.conv, self.conv_weight, self.conv_bias, silu=True)
        u, B, C = self._heads(conv_out)
        y, ssm = ssd_step(state.ssm, u, F.softplus(dt + self.dt_bias), state.A, B, C, self.D)
        return self.out_proj(self.norm.step(y.flatten(-2), z)), MixerState(conv, ssm, state.A)

    def _split(self, projected: Tensor) -> list[Tensor]:
        return list(projected.split([self.d_inner, self.d_inner + 2 * self.d_state, self.n_heads], -1))

    def _heads(self, conv_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u, B, C = conv_out.split([self.d_inner, self.d_state, self.d_state], -1)
        return u.unflatten(-1, (self.n_heads, self.headdim)), B, C


MIXERS: dict[Mixer, type[Mamba] | type[Mamba2]] = {Mixer.mamba: Mamba, Mixer.mamba2: Mamba2}
