"""One frame of the compiled scans, for streams: no gradients, one thread."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from mode_ssm.ops.cpu.library import Library
from mode_ssm.ops.cpu.marshal import pointer


class _Arguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("state", "u", "dt", "A", "B", "C", "D", "y", "next")),
        *((name, ctypes.c_int64) for name in ("batch", "channels", "states", "width")),
    ]


class ScanStep:
    """`selective_scan_step` (width 1) or `ssd_step` (width P) for contiguous float32 on the CPU."""

    def __init__(self, library: Library, function: str) -> None:
        self._function = library.function(function)

    def __call__(
        self, state: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, width: int
    ) -> tuple[Tensor, Tensor]:
        """state `(B, ..., N)`, u `(B, ...)`, the others as in the op's `step`; -> y like u, the next state."""
        given = [tensor.float().contiguous() for tensor in (state, u, dt, A, B, C)]
        skip = None if D is None else D.float().contiguous()
        y, following = torch.empty_like(given[1]), torch.empty_like(given[0])
        call = _Arguments(
            *(tensor.data_ptr() for tensor in given),
            pointer(skip),
            y.data_ptr(),
            following.data_ptr(),
            len(state),
            u[0].numel(),
            state.shape[-1],
            width,
        )
        self._function(ctypes.byref(call))
        return y, following
