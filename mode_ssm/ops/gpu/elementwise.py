"""Functions of single numbers that the Triton kernels share, written for float32 accuracy over the whole range."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def decayed(state, x):
    """`2^x * state` for x <= 0, to about 1e-7 of the result, and of what is lost where x is small.

    Formed as one number, a decay of 1 - 1e-6 would have lost two digits of the 1e-6, and a recurrence multiplies that
    by its memory: so a decay above a half is 1 + (2^x - 1). One below is 2^x, which -1 + 2^x would round to 0.
    """
    x = tl.maximum(x, -126.0)
    shifted = x + 12582912.0  # 1.5 * 2^23: the nearest integer stands in the low bits
    f = x - (shifted - 12582912.0)
    q = f * 1.539646980e-4 + 1.338664803e-3  # minimax of (2^f - 1) / f on [-1/2, 1/2], 1.3e-8
    q = q * f + 9.618252139e-3
    q = q * f + 5.550369906e-2
    q = q * f + 2.402264981e-1
    q = q * f + 6.931471806e-1
    power = ((shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000).to(tl.float32, bitcast=True)
    whole = tl.where(x > -1.0, 1.0, 0.0)
    return (power * (q * f) + (power - whole)) * state + whole * state


@triton.jit
def softplus(x):
    """`log(1 + exp(x))`, to full relative precision where it is tiny too."""
    w = tl.exp(-tl.abs(x))
    s = w / (2.0 + w)  # log(1 + w) = 2 atanh(s), s <= 1/3
    z = s * s
    p = z * 1.401222963e-1 + 1.399957049e-1
    p = p * z + 2.001084953e-1
    p = p * z + 3.333320657e-1
    return tl.maximum(x, 0.0) + 2.0 * s * (1.0 + z * p)


@triton.jit
def sigmoid(x):
    """`1 / (1 + exp(-x))`, without an overflow on either side."""
    w = tl.exp(-tl.abs(x))
    return tl.where(x < 0.0, w, 1.0) / (1.0 + w)


@triton.jit
def frame_at(step, length, REVERSE: tl.constexpr):
    """The frame that a scan reads at `step`; behind the last step the last frame, so that it lies in the tensor."""
    inside = tl.minimum(step, length - 1)
    return length - 1 - inside if REVERSE else inside
