"""The gates behind the scans: Mamba-1's `x * silu(z)`, and Mamba-2's RMS norm of it.

Shapes: any leading dimensions, D channels last.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mode_ssm.ops import backends
from mode_ssm.ops.lengths import length_mask


def gated_rms_norm(x: Tensor, z: Tensor, weight: Tensor, eps: float = 1e-5, *, lengths: Tensor | None = None) -> Tensor:
    """`weight * x silu(z) / rms(x silu(z))` (Dao and Gu 2024, section 7) on the backend that `backends` chose.

    Nothing but the inputs and a number a frame is kept for the backward pass. Differentiable once.

    Args:
        x: `(..., D)`. Views with a contiguous last dimension, here and in `z`, are read in place.
        z: `(..., D)`.
        weight: `(D,)`.
        eps: added to the mean square.
        lengths: `(B,)` integer valid frames of each row of an `x (B, T, D)`; padding may then hold any finite value,
            and becomes 0. None: all frames are valid.

    Returns:
        `(..., D)` in the dtype of `weight`. Computed in float32 at least, under autocast too.

    Raises:
        ValueError: shapes that do not fit together.
    """
    _check_same_shape("gated_rms_norm", x, z)
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"gated_rms_norm: weight must be {tuple(x.shape[-1:])}, not {tuple(weight.shape)}")
    if lengths is not None and (x.dim() != 3 or lengths.shape != x.shape[:1]):
        raise ValueError(
            f"gated_rms_norm: lengths {tuple(lengths.shape)} must be (batch,) of an x (batch, time, channels), "
            f"not of {tuple(x.shape)}"
        )
    dtype = torch.promote_types(x.dtype, z.dtype)
    backend = backends.choose("gated_rms_norm", x.device.type, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    x_, z_ = (x.to(wide), z.to(wide)) if backend in backends.FULL_PRECISION else (x, z)
    y, _ = _norm(x_, z_, weight.to(wide), eps, backend)
    if lengths is not None:
        y = y.masked_fill(~length_mask(lengths, x.shape[1])[..., None], 0.0)
    return y.to(weight.dtype)


def silu_gate(x: Tensor, z: Tensor) -> Tensor:
    """`x * silu(z)` (Gu and Dao 2023, section 3.4) on the backend that `backends` chose. Differentiable once.

    Args:
        x: `(..., D)`. Views with a contiguous last dimension, here and in `z`, are read in place.
        z: `(..., D)`.

    Returns:
        `(..., D)` in the dtype of `x`. Computed in float32 at least, under autocast too.

    Raises:
        ValueError: shapes that differ.
    """
    _check_same_shape("silu_gate", x, z)
    dtype = torch.promote_types(x.dtype, z.dtype)
    backend = backends.choose("silu_gate", x.device.type, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    x_, z_ = (x.to(wide), z.to(wide)) if backend in backends.FULL_PRECISION else (x, z)
    return _gate(x_, z_, backend).to(x.dtype)


def _check_same_shape(op: str, x: Tensor, z: Tensor) -> None:
    if x.shape != z.shape or x.dim() == 0:
        raise ValueError(f"{op}: x and z must share one shape (..., channels), not {tuple(x.shape)}, {tuple(z.shape)}")


@torch.library.custom_op("mode_ssm::gated_rms_norm", mutates_args=())
def _norm(x: Tensor, z: Tensor, weight: Tensor, eps: float, backend: str) -> tuple[Tensor, Tensor]:
    """`y` in the dtype of `weight`, and `1 / rms` of each frame."""
    return backends.kernel("gated_rms_norm", backend).forward(x, z, weight, eps)


@_norm.register_fake
def _(x: Tensor, z: Tensor, weight: Tensor, eps: float, backend: str) -> tuple[Tensor, Tensor]:
    return weight.new_empty(x.shape), weight.new_empty(x.shape[:-1])


@torch.library.custom_op("mode_ssm::gated_rms_norm_backward", mutates_args=())
def _norm_backward(
    grad_y: Tensor, x: Tensor, z: Tensor, weight: Tensor, rstd: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, z and weight."""
    return backends.kernel("gated_rms_norm", backend).backward(grad_y, x, z, weight, rstd, eps)


@_norm_backward.register_fake
def _(
    grad_y: Tensor, x: Tensor, z: Tensor, weight: Tensor, rstd: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), z.new_empty(z.shape), weight.new_empty(weight.shape)


def _setup_norm(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, z, weight, *ctx.settings = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, z, weight, output[1])


def _differentiate_norm(ctx: Any, grad_y: Tensor | None, _: Tensor | None) -> tuple:
    if grad_y is None:
        return (None,) * 5
    return (*_norm_backward(grad_y, *ctx.saved_tensors, *ctx.settings), None, None)


_norm.register_autograd(_differentiate_norm, setup_context=_setup_norm)


@torch.library.custom_op("mode_ssm::silu_gate", mutates_args=())
def _gate(x: Tensor, z: Tensor, backend: str) -> Tensor:
    return backends.kernel("silu_gate", backend).forward(x, z)


@_gate.register_fake
def _(x: Tensor, z: Tensor, backend: str) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("mode_ssm::silu_gate_backward", mutates_args=())
def _gate_backward(grad_y: Tensor, x: Tensor, z: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Gradients of x and z."""
    return backends.kernel("silu_gate", backend).backward(grad_y, x, z)


@_gate_backward.register_fake
def _(grad_y: Tensor, x: Tensor, z: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), z.new_empty(z.shape)


def _setup_gate(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, z, ctx.backend = inputs
    ctx.save_for_backward(x, z)


def _differentiate_gate(ctx: Any, grad_y: Tensor) -> tuple:
    return (*_gate_backward(grad_y, *ctx.saved_tensors, ctx.backend), None)


_gate.register_autograd(_differentiate_gate, setup_context=_setup_gate)


def gated_rms_norm_step(x: Tensor, z: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """One frame of `gated_rms_norm` in plain torch: for one row, calling a custom op would cost twice the work itself.

    Args:
        x: `(B, D)`.
        z: `(B, D)`.
        weight: `(D,)`.
        eps: added to the mean square.

    Returns:
        `(B, D)` in the dtype of `weight`.
    """
    wide = torch.promote_types(torch.promote_types(x.dtype, z.dtype), torch.float32)
    return F.rms_norm(x.to(wide) * F.silu(z.to(wide)), weight.shape, weight.to(wide), eps).to(weight.dtype)


def gated_rms_norm_reference(
    x: Tensor, z: Tensor, weight: Tensor, eps: float = 1e-5, *, lengths: Tensor | None = None
) -> Tensor:
    """`gated_rms_norm` as it is written in the paper's code. For tests."""
    gated = silu_gate_reference(x, z)
    y = weight * gated / torch.sqrt(gated.square().mean(-1, keepdim=True) + eps)
    return y if lengths is None else y * length_mask(lengths, x.shape[1])[..., None]


def silu_gate_reference(x: Tensor, z: Tensor) -> Tensor:
    """`silu_gate` as it is written in the paper. For tests."""
    return x * z / (1 + torch.exp(-z))
