"""The compiled gates: tensors to pointers and back. Shapes: any leading dimensions, D channels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from mode_ssm.ops.cpu.library import Library
from mode_ssm.ops.cpu.marshal import Rows, arguments, readable

# Sums over the frames of a task run in one accumulator; torch adds up those of the tasks. Both keep sums short.
TASK_FRAMES = 512


class _Arguments(ctypes.Structure):
    _fields_ = [
        *((name, Rows) for name in ("x", "z", "y", "dy", "dx", "dz")),
        *((name, ctypes.c_void_p) for name in ("weight", "rstd", "dweight")),
        *((name, ctypes.c_int64) for name in ("batch", "time", "channels", "tasks")),
        ("eps", ctypes.c_float),
        ("threads", ctypes.c_int32),
    ]


class SiLUGate:
    """Implements the contract of `mode_ssm.ops.gated_norm.silu_gate` for float32 on the CPU."""

    def __init__(self, library: Library) -> None:
        self._forward = library.function("silu_gate_forward")
        self._backward = library.function("silu_gate_backward")

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        y = x.new_empty(x.shape)
        _call(self._forward, {"x": x, "z": z, "y": y})
        return y

    def backward(self, grad_y: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        dx, dz = x.new_empty(x.shape), x.new_empty(x.shape)
        _call(self._backward, {"dy": grad_y, "x": x, "z": z, "dx": dx, "dz": dz})
        return dx, dz


class GatedRMSNorm:
    """Implements the contract of `mode_ssm.ops.gated_norm.gated_rms_norm` for float32 on the CPU."""

    def __init__(self, library: Library) -> None:
        self._forward = library.function("gated_rms_norm_forward")
        self._backward = library.function("gated_rms_norm_backward")

    def forward(self, x: Tensor, z: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        y, rstd = x.new_empty(x.shape), x.new_empty(x.shape[:-1])
        _call(self._forward, {"x": x, "z": z, "y": y}, weight=weight.contiguous(), rstd=rstd, eps=eps)
        return y, rstd

    def backward(
        self, grad_y: Tensor, x: Tensor, z: Tensor, weight: Tensor, rstd: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        dx, dz = x.new_empty(x.shape), x.new_empty(x.shape)
        dweight = x.new_empty(_tasks(rstd.numel()), len(weight))
        frames = {"dy": grad_y, "x": x, "z": z, "dx": dx, "dz": dz}
        _call(self._backward, frames, weight=weight.contiguous(), rstd=rstd.contiguous(), dweight=dweight)
        return dx, dz, dweight.sum(0)


def _tasks(frames: int) -> int:
    return max(1, min(frames, torch.get_num_threads()), -(-frames // TASK_FRAMES))


def _call(function: Callable[[object], None], frames: dict[str, Tensor], **others: Tensor | float) -> None:
    """`frames` share one shape; the kernel takes them as `(B, T, D)`, which views of up to three dimensions are."""
    rows = {name: _three_dimensional(readable(tensor)) for name, tensor in frames.items()}
    batch, time, channels = rows["x"].shape
    call = arguments(
        _Arguments, **rows, **others, batch=batch, time=time, channels=channels, tasks=_tasks(batch * time)
    )
    function(ctypes.byref(call))


def _three_dimensional(tensor: Tensor) -> Tensor:
    if tensor.dim() > 3:
        return tensor.flatten(0, -3)
    return tensor[(None,) * (3 - tensor.dim())]
