"""The compiled Mamba-1 scan: tensors to pointers, padding to whole vectors, and back.

Shapes: B batch, T padded length, D channels, N state width, K chunks; `Np` and `Dp` are N and D padded.
"""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from mode_ssm.ops.cpu.library import Library
from mode_ssm.ops.cpu.marshal import Rows, arguments, lengths_or_full, padded, readable, splits_for
from mode_ssm.ops.shapes import pad_last

CHUNK_FRAMES = 32  # two buffers of CHUNK_FRAMES * BLOCK vectors, and two sums, fit into a first-level cache
BLOCK = 4  # states that the kernel holds in registers at a time


class _Arguments(ctypes.Structure):
    _fields_ = [
        *((name, Rows) for name in ("u", "dt", "B", "C", "y", "du", "ddt", "dB", "dC", "dy")),
        *((name, ctypes.c_void_p) for name in ("A", "D", "initial", "final", "dinitial", "dfinal", "starts")),
        *((name, ctypes.c_void_p) for name in ("dA", "dD", "lengths")),
        *((name, ctypes.c_int64) for name in ("batch", "time", "width", "channels", "states")),
        *((name, ctypes.c_int64) for name in ("chunk", "splits", "slab")),
        *((name, ctypes.c_int32) for name in ("softplus", "reverse", "threads")),
    ]


class SelectiveScan:
    """Implements `ScanKernel` for float32 on the CPU."""

    def __init__(self, library: Library) -> None:
        self.lanes = library.lanes
        self._forward = library.function("selective_scan_forward")
        self._backward = library.function("selective_scan_backward")

    def starts_shape(self, u: Tensor, A: Tensor) -> tuple[int, ...]:
        """States at chunk starts `(B, K, Np, Dp)`."""
        chunks = (u.shape[1] + CHUNK_FRAMES - 1) // CHUNK_FRAMES
        return (u.shape[0], chunks, padded(A.shape[1], BLOCK), padded(A.shape[0], self.lanes))

    def forward(
        self,
        u: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        lengths: Tensor | None,
        initial_state: Tensor | None,
        softplus: bool,
        reverse: bool,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, time, width = u.shape
        inputs = self._inputs(u, dt, A, B, C, D)
        _, _, states, channels = self.starts_shape(u, A)
        y = u.new_empty(batch, time, width, dtype=torch.float32)
        final = y.new_empty(batch, states, channels)
        starts = y.new_empty(self.starts_shape(u, A) if keep else (0,))
        initial = None if initial_state is None else self._states(initial_state)
        valid = lengths_or_full(lengths, batch, time)
        call = arguments(
            _Arguments,
            **inputs,
            **self._sizes(u, A, softplus, reverse),
            y=y,
            final=final,
            initial=initial,
            starts=starts if keep else None,
            lengths=valid,
        )
        self._forward(ctypes.byref(call))
        return y, final[:, : A.shape[1], :width].mT.contiguous(), starts

    def backward(
        self,
        grad_y: Tensor,
        grad_final: Tensor | None,
        u: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        lengths: Tensor | None,
        starts: Tensor,
        softplus: bool,
        reverse: bool,
    ) -> tuple[Tensor, ...]:
        batch, time, width = u.shape
        inputs = self._inputs(u, dt, A, B, C, D)
        _, _, states, channels = self.starts_shape(u, A)
        splits = splits_for(batch, channels // self.lanes)
        grad_y = readable(grad_y)
        dfinal = grad_y.new_zeros(batch, states, channels) if grad_final is None else self._states(grad_final)
        du, ddt = grad_y.new_empty(u.shape), grad_y.new_empty(u.shape)
        dB, dC = grad_y.new_empty(2, splits, batch, time, states)
        dA, dinitial = grad_y.new_empty(2, batch, states, channels)
        dD = grad_y.new_empty(batch, channels)
        valid = lengths_or_full(lengths, batch, time)
        call = arguments(
            _Arguments,
            **inputs,
            **self._sizes(u, A, softplus, reverse),
            dy=grad_y,
            dfinal=dfinal,
            starts=starts,
            lengths=valid,
            du=du,
            ddt=ddt,
            dB=dB[0],
            dC=dC[0],
            dA=dA,
            dD=dD,
            dinitial=dinitial,
            splits=splits,
            slab=dB.stride(0),
        )
        self._backward(ctypes.byref(call))
        N = A.shape[1]
        return (
            du,
            ddt,
            dA.sum(0)[:N, :width].mT.contiguous(),
            dB.sum(0)[..., :N].contiguous(),
            dC.sum(0)[..., :N].contiguous(),
            dD.sum(0)[:width].clone() if D is not None else dD.new_empty(0),
            dinitial[:, :N, :width].mT.contiguous(),
        )

    def _inputs(
        self, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None
    ) -> dict[str, Tensor | None]:
        return {
            "u": readable(u),
            "dt": readable(dt),
            "A": self._states((A * math.log2(math.e))[None])[0],
            "B": pad_last(readable(B), BLOCK),
            "C": pad_last(readable(C), BLOCK),
            "D": None if D is None else pad_last(D.float().contiguous(), self.lanes),
        }

    def _states(self, tensor: Tensor) -> Tensor:
        """`(B, D, N)` to the kernel's `(B, Np, Dp)`."""
        return pad_last(pad_last(tensor.float(), BLOCK).mT, self.lanes).contiguous()

    def _sizes(self, u: Tensor, A: Tensor, softplus: bool, reverse: bool) -> dict[str, int]:
        batch, time, width = u.shape
        _, _, states, channels = self.starts_shape(u, A)
        return {
            "batch": batch,
            "time": time,
            "width": width,
            "channels": channels,
            "states": states,
            "chunk": CHUNK_FRAMES,
            "softplus": softplus,
            "reverse": reverse,
        }
