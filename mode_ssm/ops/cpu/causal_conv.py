"""The compiled depthwise causal convolution: tensors to pointers and back.

Shapes: B batch, T padded length, D channels, W width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from torch import Tensor

from mode_ssm.ops.cpu.library import Library
from mode_ssm.ops.cpu.marshal import Rows, arguments, lengths_or_full, padded, readable, splits_for


class _Arguments(ctypes.Structure):
    _fields_ = [
        *((name, Rows) for name in ("x", "y", "dx", "dy")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "initial", "dfinal", "final", "dinitial")),
        *((name, ctypes.c_void_p) for name in ("dweight", "dbias", "lengths")),
        *((name, ctypes.c_int64) for name in ("batch", "time", "channels", "taps", "splits")),
        *((name, ctypes.c_int32) for name in ("silu", "reverse", "threads")),
    ]


class CausalConv:
    """Implements the contract of `mode_ssm.ops.causal_conv` for float32 on the CPU."""

    def __init__(self, library: Library) -> None:
        self.lanes = library.lanes
        self._forward = library.function("causal_conv_forward")
        self._backward = library.function("causal_conv_backward")

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
        y = x.new_empty(x.shape)
        final = x.new_empty(x.shape[0], x.shape[2], weight.shape[1] - 1)
        self._call(self._forward, x, weight, bias, lengths, initial_state, silu, reverse, y=y, final=final)
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
        batch, _, channels = x.shape
        grad_y = readable(grad_y)
        dfinal = None if grad_final is None else grad_final.contiguous()
        dx = x.new_empty(x.shape)
        dweight, dbias = x.new_empty(batch, *weight.shape), x.new_empty(batch, channels)
        dinitial = x.new_empty(batch, channels, weight.shape[1] - 1)
        gradients = {"dx": dx, "dweight": dweight, "dbias": dbias, "dinitial": dinitial}
        self._call(
            self._backward,
            x,
            weight,
            bias,
            lengths,
            initial_state,
            silu,
            reverse,
            dy=grad_y,
            dfinal=dfinal,
            **gradients,
        )
        return dx, dweight.sum(0), dbias.sum(0) if bias is not None else x.new_empty(0), dinitial

    def _call(
        self,
        function: Callable[[object], None],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lengths: Tensor | None,
        initial_state: Tensor | None,
        silu: bool,
        reverse: bool,
        **others: Tensor | None,
    ) -> None:
        batch, time, channels = x.shape
        tensors = {
            "x": readable(x),
            "weight": weight.contiguous(),
            "bias": None if bias is None else bias.contiguous(),
            "initial": None if initial_state is None else initial_state.contiguous(),
            "lengths": lengths_or_full(lengths, batch, time),
        }
        call = arguments(
            _Arguments,
            **tensors,
            **others,
            batch=batch,
            time=time,
            channels=channels,
            taps=weight.shape[1],
            splits=splits_for(batch, padded(channels, self.lanes) // self.lanes),
            silu=silu,
            reverse=reverse,
        )
        function(ctypes.byref(call))
