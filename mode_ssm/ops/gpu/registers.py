"""Tuples of tensors in Triton: what an unrolled loop holds in registers from one turn to another."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def appended(parts, part):
    return parts + (part,)  # noqa: RUF005 - Triton has no starred expressions


@triton.jit
def prepended(part, parts):
    return (part,) + parts  # noqa: RUF005


@triton.jit
def stacked(p, Q: tl.constexpr):
    """Q tensors as one with a new last dimension, without moving anything between threads."""
    tl.static_assert(Q == 2 or Q == 4 or Q == 8, "a group has 2, 4 or 8 frames")
    if Q == 2:
        stack = tl.join(p[0], p[1])
    elif Q == 4:
        stack = tl.join(tl.join(p[0], p[2]), tl.join(p[1], p[3]))
    else:
        even = tl.join(tl.join(p[0], p[4]), tl.join(p[2], p[6]))
        odd = tl.join(tl.join(p[1], p[5]), tl.join(p[3], p[7]))
        stack = tl.join(even, odd)
    return stack
