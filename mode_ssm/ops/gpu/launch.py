"""What the host side of the kernels shares: readable strides, padding, lengths, the device a kernel is launched on."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from mode_ssm.ops.lengths import length_mask


def device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's; nothing to do for the interpreter."""
    return torch.cuda.device_of(tensor)


def readable(tensor: Tensor) -> Tensor:
    """The tensor with a contiguous last dimension: the others have strides in the kernels, this one has not."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def packed(tensor: Tensor | None) -> Tensor | None:
    """Contiguous, where it is given at all: of what the kernels read without strides."""
    return None if tensor is None else tensor.contiguous()


def power_of_two(size: int, least: int) -> int:
    """The smallest power of two that holds `size`, which is what Triton's tiles must be."""
    return max(least, 1 << (size - 1).bit_length())


def blank(like: Tensor, shape: tuple[int, ...], lengths: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
    """Room for an output, zero where a kernel that stops at each row's length leaves padding behind."""
    make = torch.empty if lengths is None else torch.zeros
    return make(shape, dtype=dtype or like.dtype, device=like.device)


def summed_slabs(slabs: Tensor, lengths: Tensor | None, width: int, dtype: torch.dtype) -> Tensor:
    """Sum of the partial sums `(S, B, T, N)` of S programs, zero in padding, where nothing was written to them."""
    total = slabs.sum(0)[..., :width]
    if lengths is not None:
        total = total.masked_fill(~length_mask(lengths, slabs.shape[2])[..., None], 0.0)
    return total.to(dtype).contiguous()
