"""Lengths of padded sequences: masks, output lengths of a strided stem, reversal that leaves padding in place.

Shapes: B batch, T padded length. A row is valid on `[0, length)`; everything behind it is padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def length_mask(lengths: Tensor, max_length: int) -> Tensor:
    """True where a frame is valid.

    Args:
        lengths: `(B,)` integer, valid frames of each row.
        max_length: T, the padded length.

    Returns:
        `(B, T)` bool, on the device of `lengths`.
    """
    return torch.arange(max_length, device=lengths.device) < lengths[:, None]


def strided_lengths(lengths: Tensor, stride: int) -> Tensor:
    """`ceil(length / stride)` `(B,)`: frames of a stem that emits one at inputs 0, stride, 2 * stride, ..."""
    return torch.div(lengths + (stride - 1), stride, rounding_mode="floor")


def reverse_within_lengths(x: Tensor, lengths: Tensor) -> Tensor:
    """Reverse the valid part of every row and leave its padding where it is; applied twice it is the identity.

    A plain flip would move the padding to the front, and a recurrent layer's output would then depend on how long the
    other trials of the batch are.

    Args:
        x: `(B, T, ...)`.
        lengths: `(B,)` integer, valid frames of each row.

    Returns:
        Same shape as `x`.
    """
    batch, time = x.shape[:2]
    frame = torch.arange(time, device=x.device)
    source = torch.where(frame < lengths[:, None], lengths[:, None] - 1 - frame, frame)
    rows = torch.arange(batch, device=x.device)[:, None] * time + source
    return _Involution.apply(x, rows.flatten())  # type: ignore[no-untyped-call]


class _Involution(torch.autograd.Function):
    """Reorder the frames of `(B, T, ...)` by a permutation that is its own inverse.

    The gradient is then the same gather; autograd's own would be a scatter-add, slower and not deterministic on GPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return x.flatten(0, 1).index_select(0, rows).view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return _Involution.apply(grad, rows), None  # type: ignore[no-untyped-call]


def few_sizes(size: int) -> int:
    """`size` rounded up to a power of two, above 32 to a multiple of it.

    A CPU's math library compiles and keeps a kernel for every shape (up to a megabyte with bf16 products), so a scorer
    that runs for hours pads its batches to few sizes.
    """
    return -(-size // 32) * 32 if size > 32 else 1 << max(size - 1, 0).bit_length()
