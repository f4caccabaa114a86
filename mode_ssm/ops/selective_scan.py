"""The Mamba-1 selective scan: a linear recurrence with its own decay for every channel and state.

Per channel, with state `h (N,)`:  `h[t] = exp(dt[t] A) h[t-1] + dt[t] u[t] B[t]`,  `y[t] = C[t] . h[t] + D u[t]`.
Shapes: B batch, T padded length, D channels, N state width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mode_ssm.ops import backends
from mode_ssm.ops.lengths import reverse_within_lengths
from mode_ssm.ops.shapes import check_lengths, check_shapes


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    lengths: Tensor | None = None,
    reverse: bool = False,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan whole sequences (Gu and Dao 2023, section 3.3 and algorithm 2) on the backend that `backends` chose.

    Only the states at chunk starts are kept for the backward pass; the others are computed again there. Every factor
    is the exponential of a single step, so the result holds for any step size. Differentiable once.

    Args:
        u: `(B, T, D)`; padding may hold any finite value in every input.
        dt: `(B, T, D)` positive step sizes, or any numbers with `dt_softplus`.
        A: `(D, N)` negative.
        B: `(B, T, N)` input projections.
        C: `(B, T, N)` output projections.
        D: `(D,)` skip weights, or None.
        dt_softplus: the step sizes are `softplus(dt)`; fused where the backend can.
        lengths: `(B,)` integer valid frames of each row; None means T for all.
        reverse: scan each row from its last valid frame to its first; the initial state comes before the last frame.
        initial_state: `(B, D, N)`; None means zeros.

    Returns:
        `y (B, T, D)` in the dtype of `u`, zero in padding, and the state behind the last frame scanned `(B, D, N)`.
        Computed, and the state returned, in float32 at least, under autocast too.

    Raises:
        ValueError: shapes that do not fit together, or lengths beyond T.
    """
    channels, states = A.shape
    batch, time, _ = u.shape
    check_shapes(
        "selective_scan",
        u=(u, (batch, time, channels)),
        dt=(dt, (batch, time, channels)),
        B=(B, (batch, time, states)),
        C=(C, (batch, time, states)),
        D=(D, (channels,)),
        lengths=(lengths, (batch,)),
        initial_state=(initial_state, (batch, channels, states)),
    )
    backend = backends.choose("selective_scan", u.device.type, u.dtype)
    wide = torch.promote_types(u.dtype, torch.float32)
    timed = wide if backend in backends.FULL_PRECISION else u.dtype
    u_, dt_, B_, C_ = u.to(timed), dt.to(timed), B.to(timed), C.to(timed)
    A_ = A.to(wide)
    D_ = None if D is None else D.to(wide)
    initial = None if initial_state is None else initial_state.to(wide)
    tensors = (u_, dt_, A_, B_, C_, D_, initial)
    keep = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    y, final_state, _ = _forward(u_, dt_, A_, B_, C_, D_, lengths, initial, dt_softplus, reverse, keep, backend)
    return y.to(u.dtype), final_state


@torch.library.custom_op("mode_ssm::selective_scan", mutates_args=())
def _forward(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """`y`, the final state, and what the backend keeps for the backward pass (empty unless `keep`)."""
    check_lengths("selective_scan", lengths, u.shape[1])
    with torch.autocast(u.device.type, enabled=False):  # which reaches into an op's body
        return backends.kernel("selective_scan", backend).forward(  # type: ignore[no-any-return]
            u, dt, A, B, C, D, lengths, initial_state, softplus, reverse, keep
        )


@_forward.register_fake
def _(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    starts = backends.kernel("selective_scan", backend).starts_shape(u, A) if keep else (0,)
    return u.new_empty(u.shape), A.new_empty(u.shape[0], *A.shape), A.new_empty(starts)


@torch.library.custom_op("mode_ssm::selective_scan_backward", mutates_args=())
def _backward(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, dt, A, B, C, D (empty where D is None) and the initial state."""
    with torch.autocast(u.device.type, enabled=False):
        return backends.kernel("selective_scan", backend).backward(  # type: ignore[no-any-return]
            grad_y, grad_final, u, dt, A, B, C, D, lengths, starts, softplus, reverse
        )


@_backward.register_fake
def _(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = [tensor.new_empty(tensor.shape) for tensor in (u, dt, A, B, C)]
    skip = A.new_empty(A.shape[:1] if D is not None else (0,))
    return (like[0], like[1], like[2], like[3], like[4], skip, A.new_empty(u.shape[0], *A.shape))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    u, dt, A, B, C, D, lengths, initial_state, softplus, reverse, _, backend = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(u, dt, A, B, C, D, lengths, output[2])
    ctx.settings = (softplus, reverse, backend)
    ctx.has_initial = initial_state is not None


def _differentiate(ctx: Any, grad_y: Tensor | None, grad_final: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    u, dt, A, B, C, D, lengths, starts = ctx.saved_tensors
    if grad_y is None:
        grad_y = u.new_zeros(u.shape)
    grads = _backward(grad_y, grad_final, u, dt, A, B, C, D, lengths, starts, *ctx.settings)
    skip = grads[5] if D is not None else None
    initial = grads[6] if ctx.has_initial else None
    return (*grads[:5], skip, None, initial, None, None, None, None)


_forward.register_autograd(_differentiate, setup_context=_setup_context)


def selective_scan_step(
    state: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One frame of `selective_scan`.

    Args:
        state: `(B, D, N)`, float32 or float64.
        u: `(B, D)`.
        dt: `(B, D)` positive.
        A: `(D, N)` negative.
        B: `(B, N)`.
        C: `(B, N)`.
        D: `(D,)` or None.

    Returns:
        `y (B, D)` in the dtype of `u` and the next state `(B, D, N)` in the dtype of `state`.
    """
    if (fused := backends.step("selective_scan", state)) is not None:
        y, state = fused(state, u, dt, A, B, C, D, width=1)
        return y.to(u.dtype), state
    with torch.autocast(u.device.type, enabled=False):
        u_, dt_, A_, B_, C_ = (tensor.to(state.dtype) for tensor in (u, dt, A, B, C))
        # state + (decay - 1) state: 1 - 1e-6 in one number would have lost two digits of the 1e-6.
        kept = torch.addcmul(state, torch.expm1(dt_[..., None] * A_), state)
        state = torch.addcmul(kept, (dt_ * u_)[..., None], B_[:, None])
        y = (state @ C_[..., None])[..., 0]
        if D is not None:
            y = y + u_ * D.to(state.dtype)
    return y.to(u.dtype), state


def selective_scan_reference(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    lengths: Tensor | None = None,
    reverse: bool = False,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`selective_scan` frame by frame: the recurrence as it is written in the paper. Slow; for tests."""
    batch, time, channels = u.shape
    valid = torch.full((batch,), time, device=u.device) if lengths is None else lengths
    if reverse:
        u, dt, B, C = (reverse_within_lengths(tensor, valid) for tensor in (u, dt, B, C))
    if dt_softplus:
        dt = F.softplus(dt)
    state = u.new_zeros(batch, channels, A.shape[1]) if initial_state is None else initial_state
    outputs = []
    for t in range(time):
        decay = torch.exp(dt[:, t, :, None] * A)
        moved = decay * state + (dt[:, t] * u[:, t])[..., None] * B[:, t, None]
        frame = (moved * C[:, t, None]).sum(-1)
        if D is not None:
            frame = frame + D * u[:, t]
        inside = t < valid
        state = torch.where(inside[:, None, None], moved, state)
        outputs.append(torch.where(inside[:, None], frame, 0.0))
    y = torch.stack(outputs, 1)
    return (reverse_within_lengths(y, valid) if reverse else y), state
