"""The depthwise causal convolution in Triton: tiles of frames and channels, the inputs read once for each tap.

Inputs are counted in reading order and from the state on: input `v` is the state's for v < W - 1, and then the frame
read at `v - (W - 1)`. Output `s` reads inputs `s` to `s + W - 1`; the final state is inputs `length` and what follows.
Shapes: B batch, T padded length, D channels, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from mode_ssm.ops.gpu.elementwise import frame_at, sigmoid
from mode_ssm.ops.gpu.launch import blank, device_of, packed, readable
from mode_ssm.ops.gpu.registers import appended


@dataclass(frozen=True)
class Tiling:
    """How the work is cut. The backward pass holds `3 W` tiles in registers."""

    frames: int = 32
    backward_frames: int = 16
    channels: int = 64
    warps: int = 4


@triton.jit
def _input(x_ptr, initial_ptr, v, d, x_t, length, channels, W: tl.constexpr, REVERSE: tl.constexpr):
    """Inputs `v (F, 1)` of channels `d (1, D)`, 0 where there is none."""
    step = v - (W - 1)
    there = (step >= 0) & (step < length) & (d < channels)
    x = tl.load(x_ptr + frame_at(step, length, REVERSE) * x_t + d, mask=there, other=0.0).to(tl.float32)
    if W > 1 and initial_ptr is not None:
        before = (v >= 0) & (step < 0) & (d < channels)
        x += tl.load(initial_ptr + d * (W - 1) + v, mask=before, other=0.0)
    return x


@triton.jit
def _forward_kernel(
    x_ptr, weight_ptr, bias_ptr, lengths_ptr, initial_ptr, y_ptr, final_ptr, x_b, x_t, time, channels,
    W: tl.constexpr, F: tl.constexpr, D: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    d = tl.program_id(2) * D + tl.arange(0, D)[None]
    step = tl.program_id(1) * F + tl.arange(0, F)[:, None]
    inside = d < channels
    length = time if lengths_ptr is None else tl.load(lengths_ptr + b).to(tl.int32)
    x_row = x_ptr + b * x_b
    initial_row = None if initial_ptr is None else initial_ptr + b * channels * (W - 1)

    y = tl.zeros((F, D), tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + d, mask=inside, other=0.0)
    for k in tl.static_range(W):
        x = _input(x_row, initial_row, step + k, d, x_t, length, channels, W, REVERSE)
        y += tl.load(weight_ptr + d * W + k, mask=inside, other=0.0) * x
    if SILU:
        y *= sigmoid(y)
    to = y_ptr + (b * time + frame_at(step, length, REVERSE)) * channels + d
    tl.store(to, y.to(y_ptr.dtype.element_ty), mask=inside & (step < length))
    if tl.program_id(1) == 0:
        for k in tl.static_range(W - 1):
            v = length + k + tl.zeros((1, 1), tl.int32)
            last = _input(x_row, initial_row, v, d, x_t, length, channels, W, REVERSE)
            tl.store(final_ptr + (b * channels + d) * (W - 1) + k, last, mask=inside)


@triton.jit
def _backward_kernel(
    grad_ptr, grad_final_ptr, x_ptr, weight_ptr, bias_ptr, lengths_ptr, initial_ptr,
    dx_ptr, dinitial_ptr, dweight_ptr, dbias_ptr, grad_b, grad_t, x_b, x_t, time, channels,
    W: tl.constexpr, F: tl.constexpr, D: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    d = tl.program_id(2) * D + tl.arange(0, D)[None]
    v = tl.program_id(1) * F + tl.arange(0, F)[:, None]
    inside = d < channels
    length = time if lengths_ptr is None else tl.load(lengths_ptr + b).to(tl.int32)
    x_row = x_ptr + b * x_b
    grad_row = grad_ptr + b * grad_b
    initial_row = None if initial_ptr is None else initial_ptr + b * channels * (W - 1)

    inputs = ()  # v - (W - 1) .. v + W - 1: all that the outputs which read `v` read
    for k in tl.static_range(2 * W - 1):
        x = _input(x_row, initial_row, v + k - (W - 1), d, x_t, length, channels, W, REVERSE)
        inputs = appended(inputs, x)
    total = tl.zeros((F, D), tl.float32)
    slab = (b * tl.num_programs(1) + tl.program_id(1)) * channels + d
    for k in tl.static_range(W):
        step = v - k  # the output that reads `v` with tap k
        there = (step >= 0) & (step < length) & inside
        grad = tl.load(grad_row + frame_at(step, length, REVERSE) * grad_t + d, mask=there, other=0.0).to(tl.float32)
        if SILU:
            y = tl.zeros((F, D), tl.float32)
            if bias_ptr is not None:
                y += tl.load(bias_ptr + d, mask=inside, other=0.0)
            for j in tl.static_range(W):
                y += tl.load(weight_ptr + d * W + j, mask=inside, other=0.0) * inputs[W - 1 + j - k]
            gate = sigmoid(y)
            grad *= gate * (1.0 + y * (1.0 - gate))
        total += tl.load(weight_ptr + d * W + k, mask=inside, other=0.0) * grad
        if k == 0:
            for j in tl.static_range(W):
                of_tap = tl.sum(grad * inputs[W - 1 + j], 0)[None]
                tl.store(dweight_ptr + slab * W + j, of_tap, mask=inside)
            if bias_ptr is not None:
                tl.store(dbias_ptr + slab, tl.sum(grad, 0)[None], mask=inside)
    if W > 1 and grad_final_ptr is not None:
        kept = (v >= length) & (v < length + W - 1) & inside
        total += tl.load(grad_final_ptr + (b * channels + d) * (W - 1) + v - length, mask=kept, other=0.0)
    step = v - (W - 1)
    to = dx_ptr + (b * time + frame_at(step, length, REVERSE)) * channels + d
    tl.store(to, total.to(dx_ptr.dtype.element_ty), mask=(step >= 0) & (step < length) & inside)
    if W > 1:
        tl.store(dinitial_ptr + (b * channels + d) * (W - 1) + v, total, mask=(step < 0) & inside)


class CausalConv:
    """Implements the kernel's contract of `mode_ssm.ops.causal_conv` on a GPU for float32, bf16 and fp16."""

    def __init__(self, tiling: Tiling | None = None) -> None:
        self.tiling = tiling or Tiling()

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lengths: Tensor | None,
        initial_state: Tensor | None,
        silu: bool,
        reverse: bool,
    ) -> tuple[Tensor, Tensor]:
        batch, time, channels = x.shape
        width = weight.shape[1]
        x = readable(x)
        y = blank(x, (batch, time, channels), lengths)
        final = weight.new_empty(batch, channels, width - 1)
        weight_, bias_, lengths_, initial = (packed(each) for each in (weight, bias, lengths, initial_state))
        frames = self.tiling.frames
        grid = (batch, triton.cdiv(time, frames), triton.cdiv(channels, self.tiling.channels))
        with device_of(x):
            _forward_kernel[grid](
                x, weight_, bias_, lengths_, initial, y, final, *x.stride()[:2], time, channels,
                W=width, F=frames, D=self.tiling.channels, SILU=silu, REVERSE=reverse, num_warps=self.tiling.warps,
            )  # fmt: skip
        return y, final

    def backward(
        self,
        grad_y: Tensor,
        grad_final: Tensor | None,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lengths: Tensor | None,
        initial_state: Tensor | None,
        silu: bool,
        reverse: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch, time, channels = x.shape
        width = weight.shape[1]
        grad, x_ = readable(grad_y), readable(x)
        weight_, bias_, lengths_, initial = (packed(each) for each in (weight, bias, lengths, initial_state))
        frames = self.tiling.backward_frames
        blocks = triton.cdiv(time + width - 1, frames)
        dx = blank(x, (batch, time, channels), lengths)
        dinitial = weight.new_empty(batch, channels, width - 1)
        dweight = weight.new_empty(batch * blocks, channels, width)
        dbias = weight.new_empty((batch * blocks, channels) if bias is not None else (0, 0))
        with device_of(x):
            _backward_kernel[(batch, blocks, triton.cdiv(channels, self.tiling.channels))](
                grad, packed(grad_final), x_, weight_, bias_, lengths_, initial, dx, dinitial, dweight, dbias,
                *grad.stride()[:2], *x_.stride()[:2], time, channels,
                W=width, F=frames, D=self.tiling.channels, SILU=silu, REVERSE=reverse, num_warps=self.tiling.warps,
            )  # fmt: skip
        return dx, dweight.sum(0), dbias.sum(0), dinitial
