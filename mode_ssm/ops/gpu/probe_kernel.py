"""A kernel that needs what all of them need (a loop of unknown length, masks, a sum) and has a known answer."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _sum_kernel(x_ptr, total_ptr, count, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float32)
    for block in range(0, tl.cdiv(count, BLOCK)):
        at = block * BLOCK + tl.arange(0, BLOCK)
        total += tl.load(x_ptr + at, mask=at < count, other=0.0)
    tl.store(total_ptr, tl.sum(total, 0))


def sum_to(count: int, device: str) -> float:
    """`1 + 2 + ... + count`, counted by a kernel."""
    x = torch.arange(1, count + 1, dtype=torch.float32, device=device)
    total = torch.zeros(1, device=device)
    _sum_kernel[(1,)](x, total, count, BLOCK=16)
    return float(total.item())
