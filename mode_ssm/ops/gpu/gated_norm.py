"""Mamba-2's gated RMS norm in Triton: a frame in registers, read once.

Shapes: R frames (all leading dimensions), D channels, S programs.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from mode_ssm.ops.gpu.elementwise import sigmoid
from mode_ssm.ops.gpu.launch import device_of, power_of_two, readable


@dataclass(frozen=True)
class Tiling:
    """How the work is cut."""

    rows: int = 32  # of a program in the backward pass: how many share a partial sum of the weight's gradient
    channels_of_warp: int = 256
    warps: int = 16  # at most


@triton.jit
def _forward_kernel(x_ptr, z_ptr, weight_ptr, y_ptr, rstd_ptr, x_r, z_r, channels, eps, D: tl.constexpr):
    r = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, D)
    inside = d < channels
    x = tl.load(x_ptr + r * x_r + d, mask=inside, other=0.0).to(tl.float32)
    z = tl.load(z_ptr + r * z_r + d, mask=inside, other=0.0).to(tl.float32)
    gated = x * z * sigmoid(z)
    rstd = 1.0 / tl.sqrt(tl.sum(gated * gated, 0) / channels + eps)
    weight = tl.load(weight_ptr + d, mask=inside, other=0.0)
    tl.store(y_ptr + r * channels + d, (weight * (gated * rstd)).to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(rstd_ptr + r, rstd)


@triton.jit
def _backward_kernel(
    grad_ptr, x_ptr, z_ptr, weight_ptr, rstd_ptr, dx_ptr, dz_ptr, dweight_ptr, grad_r, x_r, z_r, rows, channels,
    D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, D)
    inside = d < channels
    weight = tl.load(weight_ptr + d, mask=inside, other=0.0).to(tl.float32)
    dweight = tl.zeros((D,), tl.float32)
    first = tl.program_id(0).to(tl.int64) * ROWS
    for row in range(0, tl.minimum(ROWS, rows - first)):
        r = first + row
        x = tl.load(x_ptr + r * x_r + d, mask=inside, other=0.0).to(tl.float32)
        z = tl.load(z_ptr + r * z_r + d, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + r * grad_r + d, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + r)
        gate = sigmoid(z)
        normed = x * z * gate * rstd
        dweight += grad * normed
        dnormed = grad * weight
        dgated = rstd * (dnormed - normed * (tl.sum(dnormed * normed, 0) / channels))
        dz = dgated * x * gate * (1.0 + z * (1.0 - gate))
        tl.store(dx_ptr + r * channels + d, (dgated * z * gate).to(dx_ptr.dtype.element_ty), mask=inside)
        tl.store(dz_ptr + r * channels + d, dz.to(dz_ptr.dtype.element_ty), mask=inside)
    tl.store(dweight_ptr + first // ROWS * channels + d, dweight, mask=inside)


class GatedRMSNorm:
    """Implements the kernel's contract of `mode_ssm.ops.gated_norm` on a GPU for float32, bf16 and fp16."""

    def __init__(self, tiling: Tiling | None = None) -> None:
        self.tiling = tiling or Tiling()

    def forward(self, x: Tensor, z: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x_, z_ = self._rows(x), self._rows(z)
        rows, channels = x_.shape
        y = weight.new_empty(x.shape)
        rstd = weight.new_empty(x.shape[:-1])
        with device_of(x):
            if rows:
                _forward_kernel[(rows,)](
                    x_, z_, weight.contiguous(), y, rstd, x_.stride(0), z_.stride(0), channels, eps,
                    **self._sizes(channels),
                )  # fmt: skip
        return y, rstd

    def backward(
        self, grad_y: Tensor, x: Tensor, z: Tensor, weight: Tensor, rstd: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad, x_, z_ = self._rows(grad_y), self._rows(x), self._rows(z)
        rows, channels = x_.shape
        dx, dz = x.new_empty(x.shape), z.new_empty(z.shape)
        programs = triton.cdiv(rows, self.tiling.rows)
        dweight = weight.new_empty(programs, channels)
        with device_of(x):
            if rows:
                _backward_kernel[(programs,)](
                    grad, x_, z_, weight.contiguous(), rstd.contiguous(), dx, dz, dweight,
                    grad.stride(0), x_.stride(0), z_.stride(0), rows, channels,
                    **self._sizes(channels), ROWS=self.tiling.rows,
                )  # fmt: skip
        return dx, dz, dweight.sum(0)

    def _rows(self, tensor: Tensor) -> Tensor:
        """`(..., D)` as `(R, D)`; a view of a projection stays one."""
        return readable(tensor).reshape(-1, tensor.shape[-1])

    def _sizes(self, channels: int) -> dict[str, int]:
        block = power_of_two(channels, least=16)
        warps = max(1, min(self.tiling.warps, block // self.tiling.channels_of_warp))
        return {"D": block, "num_warps": warps}
