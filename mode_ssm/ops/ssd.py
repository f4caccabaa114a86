"""The Mamba-2 scan (state-space duality): a linear recurrence with one decay per head.

Per head, with state `S (P, N)`:  `S[t] = exp(dt[t] A) S[t-1] + dt[t] x[t] B[t]^T`,  `y[t] = S[t] C[t] + D x[t]`.
Shapes: B batch, T padded length, H heads, P head width, N state width. All heads share `B` and `C` (one group).
"""

from typing import Any

import torch
from torch import Tensor

from mode_ssm.ops import backends
from mode_ssm.ops.lengths import reverse_within_lengths
from mode_ssm.ops.shapes import check_lengths, check_shapes
from mode_ssm.ops.torch_path.ssd import ssd_torch


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    reverse: bool = False,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan whole sequences (Dao and Gu 2024) on the backend that `backends` chose. Differentiable once.

    Args:
        x: `(B, T, H, P)`; padding may hold any finite value in every input.
        dt: `(B, T, H)` positive step sizes (softplus already applied).
        A: `(H,)` negative.
        B: `(B, T, N)` input projections.
        C: `(B, T, N)` output projections.
        D: `(H,)` skip weights, or None.
        lengths: `(B,)` integer valid frames of each row; None means T for all.
        reverse: scan each row from its last valid frame to its first; the initial state comes before the last frame.
        initial_state: `(B, H, P, N)`; None means zeros.

    Returns:
        `y (B, T, H, P)` in the dtype of `x`, zero in padding, and the state behind the last frame scanned
        `(B, H, P, N)`. Computed, and the state returned, in float32 at least, under autocast too.

    Raises:
        ValueError: shapes that do not fit together, or lengths beyond T.
    """
    batch, time, heads, width = x.shape
    states = B.shape[-1]
    check_shapes(
        "ssd",
        dt=(dt, (batch, time, heads)),
        A=(A, (heads,)),
        B=(B, (batch, time, states)),
        C=(C, (batch, time, states)),
        D=(D, (heads,)),
        lengths=(lengths, (batch,)),
        initial_state=(initial_state, (batch, heads, width, states)),
    )
    backend = backends.choose("ssd", x.device.type, x.dtype)
    if backend == "torch":
        return ssd_torch(x, dt, A, B, C, D, lengths, reverse, initial_state)
    timed = torch.float32 if backend in backends.FULL_PRECISION else x.dtype
    x_, dt_, B_, C_ = x.to(timed), dt.float(), B.to(timed), C.to(timed)
    A_ = A.float()
    D_ = None if D is None else D.float()
    initial = None if initial_state is None else initial_state.float()
    tensors = (x_, dt_, A_, B_, C_, D_, initial)
    keep = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    y, final_state, _ = _forward(x_, dt_, A_, B_, C_, D_, lengths, initial, reverse, keep, backend)
    return y.to(x.dtype), final_state


@torch.library.custom_op("mode_ssm::ssd", mutates_args=())
def _forward(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """`y`, the final state, and what the backend keeps for the backward pass (empty unless `keep`)."""
    check_lengths("ssd", lengths, x.shape[1])
    with torch.autocast(x.device.type, enabled=False):  # which reaches into an op's body
        return backends.kernel("ssd", backend).forward(  # type: ignore[no-any-return]
            x, dt, A, B, C, D, lengths, initial_state, reverse, keep
        )


@_forward.register_fake
def _(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    kept = backends.kernel("ssd", backend).starts_shape(x, A, B) if keep else (0,)
    return x.new_empty(x.shape), A.new_empty(_state_shape(x, B)), A.new_empty(kept)


@torch.library.custom_op("mode_ssm::ssd_backward", mutates_args=())
def _backward(
    grad_y: Tensor,
    grad_final: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    lengths: Tensor | None,
    kept: Tensor,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D (empty where D is None) and the initial state."""
    with torch.autocast(x.device.type, enabled=False):
        return backends.kernel("ssd", backend).backward(  # type: ignore[no-any-return]
            grad_y, grad_final, x, dt, A, B, C, D, lengths, kept, reverse
        )


@_backward.register_fake
def _(
    grad_y: Tensor,
    grad_final: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    lengths: Tensor | None,
    kept: Tensor,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    skip = A.new_empty(A.shape if D is not None else (0,))
    like = [tensor.new_empty(tensor.shape) for tensor in (x, dt, A, B, C)]
    return like[0], like[1], like[2], like[3], like[4], skip, A.new_empty(_state_shape(x, B))


def _state_shape(x: Tensor, B: Tensor) -> tuple[int, ...]:
    return (x.shape[0], x.shape[2], x.shape[3], B.shape[2])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, dt, A, B, C, D, lengths, initial_state, reverse, _, backend = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, dt, A, B, C, D, lengths, output[2])
    ctx.settings = (reverse, backend)
    ctx.has_initial = initial_state is not None


def _differentiate(ctx: Any, grad_y: Tensor | None, grad_final: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    x, dt, A, B, C, D, lengths, kept = ctx.saved_tensors
    if grad_y is None:
        grad_y = x.new_zeros(x.shape)
    grads = _backward(grad_y, grad_final, x, dt, A, B, C, D, lengths, kept, *ctx.settings)
    skip = grads[5] if D is not None else None
    initial = grads[6] if ctx.has_initial else None
    return (*grads[:5], skip, None, initial, None, None, None)


_forward.register_autograd(_differentiate, setup_context=_setup_context)


def ssd_step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One frame of `ssd`.

    Args:
        state: `(B, H, P, N)`, float32 or float64.
        x: `(B, H, P)`.
        dt: `(B, H)` positive.
        A: `(H,)` negative.
        B: `(B, N)`.
        C: `(B, N)`.
        D: `(H,)` or None.

    Returns:
        `y (B, H, P)` in the dtype of `x` and the next state `(B, H, P, N)` in the dtype of `state`.
    """
    if (fused := backends.step("ssd", state)) is not None:
        y, state = fused(state, x, dt, A, B, C, D, width=x.shape[-1])
        return y.to(x.dtype), state
    with torch.autocast(x.device.type, enabled=False):
        x_, dt_, A_, B_, C_ = (tensor.to(state.dtype) for tensor in (x, dt, A, B, C))
        # state + (decay - 1) state: 1 - 1e-6 in one number would have lost two digits of the 1e-6.
        kept = torch.addcmul(state, torch.expm1(dt_ * A_)[..., None, None], state)
        state = torch.addcmul(kept, (dt_[..., None] * x_)[..., None], B_[:, None, None, :])
        y = (state.flatten(1, 2) @ C_[..., None]).view_as(x_)
        if D is not None:
            y = y + x_ * D.to(state.dtype)[:, None]
    return y.to(x.dtype), state


def ssd_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    reverse: bool = False,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`ssd` frame by frame: the recurrence as it is written in the paper. Slow; for tests."""
    batch, time, heads, width = x.shape
    valid = torch.full((batch,), time, device=x.device) if lengths is None else lengths
    if reverse:
        x, dt, B, C = (reverse_within_lengths(tensor, valid) for tensor in (x, dt, B, C))
    state = x.new_zeros(batch, heads, width, B.shape[-1]) if initial_state is None else initial_state
    outputs = []
    for t in range(time):
        decay = torch.exp(dt[:, t] * A)[..., None, None]
        moved = decay * state + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, None, None]
        frame = (moved * C[:, t, None, None]).sum(-1)
        if D is not None:
            frame = frame + D[:, None] * x[:, t]
        inside = t < valid
        state = torch.where(inside[:, None, None, None], moved, state)
        outputs.append(torch.where(inside[:, None, None], frame, 0.0))
    y = torch.stack(outputs, 1)
    return (reverse_within_lengths(y, valid) if reverse else y), state
