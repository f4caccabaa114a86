"""The gates in plain torch: what runs where no kernel does, and in float64.

Element-wise throughout, so that autocast has nothing to change. Shapes: any leading dimensions, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class SiLUGate:
    """Implements the contract of `mode_ssm.ops.gated_norm.silu_gate` for any device, float32 and float64."""

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return F.silu(z).mul_(x).contiguous()

    def backward(self, grad_y: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return F.silu(z).mul_(grad_y).contiguous(), torch.ops.aten.silu_backward(grad_y * x, z).contiguous()


class GatedRMSNorm:
    """Implements the contract of `mode_ssm.ops.gated_norm.gated_rms_norm` for any device, float32 and float64."""

    def forward(self, x: Tensor, z: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        gated = F.silu(z).mul_(x).contiguous()
        rstd = torch.rsqrt(gated.square().mean(-1) + eps)
        return gated.mul_(rstd[..., None]).mul_(weight), rstd

    def backward(
        self, grad_y: Tensor, x: Tensor, z: Tensor, weight: Tensor, rstd: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        silu = F.silu(z)
        normed = x * silu * rstd[..., None]
        dweight = (grad_y * normed).reshape(-1, len(weight)).sum(0)
        dnormed = grad_y * weight
        dgated = (dnormed - normed * (dnormed * normed).mean(-1, keepdim=True)) * rstd[..., None]
        dz = torch.ops.aten.silu_backward(dgated * x, z)
        return (dgated * silu).contiguous(), dz.contiguous(), dweight
