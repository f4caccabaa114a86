"""The compiled Mamba-2 scan: tensors to pointers, padding to whole vectors, and back.

Shapes: B batch, T padded length, H heads, P head width, N state width, K chunks; `Np` and `Dp` are N and H * P padded.
"""

from __future__ import annotations

import ctypes

from torch import Tensor

from mode_ssm.ops.cpu.library import Library
from mode_ssm.ops.cpu.marshal import Rows, arguments, lengths_or_full, padded, readable, splits_for
from mode_ssm.ops.shapes import pad_last

CHUNK_FRAMES = 32
BLOCK = 8  # states that the kernel holds in registers at a time, at most


class _Arguments(ctypes.Structure):
    _fields_ = [
        *((name, Rows) for name in ("x", "dt", "B", "C", "y", "dx", "ddt", "dB", "dC", "dy")),
        *((name, ctypes.c_void_p) for name in ("A", "D", "initial", "final", "dinitial", "dfinal", "starts")),
        *((name, ctypes.c_void_p) for name in ("dA", "dD", "lengths")),
        *((name, ctypes.c_int64) for name in ("batch", "time", "heads", "width", "channels", "states")),
        *((name, ctypes.c_int64) for name in ("chunk", "splits", "slab")),
        *((name, ctypes.c_int32) for name in ("reverse", "threads")),
    ]


class SSD:
    """Implements the kernel's contract of `mode_ssm.ops.ssd` for float32 on the CPU."""

    def __init__(self, library: Library) -> None:
        self.lanes = library.lanes
        self._forward = library.function("ssd_forward")
        self._backward = library.function("ssd_backward")

    def starts_shape(self, x: Tensor, A: Tensor, B: Tensor) -> tuple[int, ...]:
        """States at chunk starts `(B, K, Np, Dp)`."""
        batch, time, heads, width = x.shape
        chunks = (time + CHUNK_FRAMES - 1) // CHUNK_FRAMES
        return (batch, chunks, padded(B.shape[2], BLOCK), padded(heads * width, self.lanes))

    def forward(
        self,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        lengths: Tensor | None,
        initial_state: Tensor | None,
        reverse: bool,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, time, heads, width = x.shape
        inputs = self._inputs(x, dt, A, B, C, D)
        shape = self.starts_shape(x, A, B)
        y = x.new_empty(batch, time, heads, width)
        final = y.new_empty(batch, *shape[2:])
        starts = y.new_empty(shape if keep else (0,))
        initial = None if initial_state is None else self._states(initial_state)
        valid = lengths_or_full(lengths, batch, time)
        call = arguments(
            _Arguments,
            **inputs,
            **self._sizes(x, A, B, reverse),
            y=y.flatten(2),
            final=final,
            initial=initial,
            starts=starts if keep else None,
            lengths=valid,
        )
        self._forward(ctypes.byref(call))
        return y, self._from_states(final, x, B), starts

    def backward(
        self,
        grad_y: Tensor,
        grad_final: Tensor | None,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        lengths: Tensor | None,
        starts: Tensor,
        reverse: bool,
    ) -> tuple[Tensor, ...]:
        batch, time, heads, width = x.shape
        inputs = self._inputs(x, dt, A, B, C, D)
        _, _, states, channels = self.starts_shape(x, A, B)
        splits = 1 if width % self.lanes else splits_for(batch, heads)
        dy = readable(grad_y.flatten(2))
        dfinal = dy.new_zeros(batch, states, channels) if grad_final is None else self._states(grad_final)
        dx, ddt = dy.new_empty(x.shape), dy.new_zeros(dt.shape)
        dB, dC = dy.new_empty(2, splits, batch, time, states)
        dA, dD = dy.new_zeros(2, batch, heads)
        dinitial = dy.new_empty(batch, states, channels)
        valid = lengths_or_full(lengths, batch, time)
        call = arguments(
            _Arguments,
            **inputs,
            **self._sizes(x, A, B, reverse),
            dy=dy,
            dfinal=dfinal,
            starts=starts,
            lengths=valid,
            dx=dx.flatten(2),
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
        N = B.shape[2]
        grad_B, grad_C = dB.sum(0)[..., :N].contiguous(), dC.sum(0)[..., :N].contiguous()
        grad_D = dD.sum(0) if D is not None else dD.new_empty(0)
        return dx, ddt, dA.sum(0), grad_B, grad_C, grad_D, self._from_states(dinitial, x, B)

    def _inputs(
        self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None
    ) -> dict[str, Tensor | None]:
        return {
            "x": readable(x.flatten(2)),
            "dt": readable(dt),
            "A": A.contiguous(),
            "B": pad_last(readable(B), BLOCK),
            "C": pad_last(readable(C), BLOCK),
            "D": None if D is None else D.contiguous(),
        }

    def _states(self, tensor: Tensor) -> Tensor:
        """`(B, H, P, N)` to the kernel's `(B, Np, Dp)`."""
        return pad_last(pad_last(tensor.flatten(1, 2), BLOCK).mT, self.lanes).contiguous()

    def _from_states(self, states: Tensor, x: Tensor, B: Tensor) -> Tensor:
        """The inverse of `_states`."""
        heads, width = x.shape[2:]
        return states[:, : B.shape[2], : heads * width].mT.unflatten(1, (heads, width)).contiguous()

    def _sizes(self, x: Tensor, A: Tensor, B: Tensor, reverse: bool) -> dict[str, int]:
        batch, time, heads, width = x.shape
        _, _, states, channels = self.starts_shape(x, A, B)
        return {
            "batch": batch,
            "time": time,
            "heads": heads,
            "width": width,
            "channels": channels,
            "states": states,
            "chunk": CHUNK_FRAMES,
            "reverse": reverse,
        }
