"""Between tensors and the C kernels' arguments: pointers, strided rows, padding to whole vectors, thread counts."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor


class Rows(ctypes.Structure):
    """`rows` of vector.h: frames of a `(B, T, width)` float32 tensor, whose last dimension is contiguous."""

    _fields_ = [("data", ctypes.c_void_p), ("batch", ctypes.c_int64), ("frame", ctypes.c_int64)]

    @classmethod
    def of(cls, tensor: Tensor | None) -> Rows:
        if tensor is None:
            return cls(None, 0, 0)
        return cls(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def readable(tensor: Tensor) -> Tensor:
    """float32 with a contiguous last dimension, so that `Rows` can describe it; a view of a projection stays a view."""
    tensor = tensor.to(torch.float32)
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def padded(size: int, multiple: int) -> int:
    return size + -size % multiple


def pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def lengths_or_full(lengths: Tensor | None, batch: int, time: int) -> Tensor:
    """`(B,)` int64, contiguous."""
    if lengths is None:
        return torch.full((batch,), time, dtype=torch.int64)
    return lengths.to(torch.int64).contiguous()


def splits_for(batch: int, parts: int) -> int:
    """Into how many parts the channels of a row are cut so that every thread of torch's has work."""
    return max(1, min(parts, -(-torch.get_num_threads() // max(batch, 1))))


def arguments(structure: type[ctypes.Structure], **values: Any) -> ctypes.Structure:
    """Fill a C struct: tensors become `Rows` or pointers as the field's type asks, numbers stay numbers.

    The caller keeps the tensors alive until the kernel has returned.
    """
    kinds = dict(structure._fields_)  # type: ignore[arg-type]
    filled = structure(threads=torch.get_num_threads())
    for name, value in values.items():
        if kinds[name] is Rows:
            value = Rows.of(value)
        elif kinds[name] is ctypes.c_void_p:
            value = pointer(value)
        setattr(filled, name, value)
    return filled
