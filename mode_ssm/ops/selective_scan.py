"""The Mamba-1 selective scan: a linear recurrence with its own decay for every channel and state.

Per channel, with state `h (N,)`:  `h[t] = exp(dt[t] A) h[t-1] + dt[t] u[t] B[t]`,  `y[t] = C[t] . h[t] + D u[t]`.
Shapes: B batch, T padded length, D channels, N state width, Q frames a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mode_ssm.ops.lengths import length_mask

CHUNK_FRAMES = 16  # near sqrt(T) for T of 50 to 500, which keeps saved plus recomputed states lowest


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan whole sequences (Gu and Dao 2023, section 3.3 and algorithm 2).

    Only the states at chunk starts are kept for the backward pass; the others are computed again there. Every factor
    is the exponential of a single step, so the result holds for any step size. Differentiable once.

    Args:
        u: `(B, T, D)`; padding may hold any finite value in every input.
        dt: `(B, T, D)` positive step sizes (softplus already applied).
        A: `(D, N)` negative.
        B: `(B, T, N)` input projections.
        C: `(B, T, N)` output projections.
        D: `(D,)` skip weights, or None.
        lengths: `(B,)` integer valid frames of each row; None means T for all.
        initial_state: `(B, D, N)`; None means zeros.

    Returns:
        `y (B, T, D)` in the dtype of `u`, zero in padding, and the state at each row's length `(B, D, N)`.
        Computed, and the state returned, in float32 at least, under autocast too.
    """
    batch, time, channels = u.shape
    dtype = torch.promote_types(u.dtype, torch.float32)
    with torch.autocast(u.device.type, enabled=False):
        u_, dt_, A_, B_, C_ = (tensor.to(dtype) for tensor in (u, dt, A, B, C))
        state = u_.new_zeros(batch, channels, A.shape[1]) if initial_state is None else initial_state.to(dtype)
        mask = None if lengths is None else length_mask(lengths, time)[:, :, None]
        if mask is not None:
            dt_ = dt_.masked_fill(~mask, 0.0)  # decay 1, input 0: the state stands still
        y, final_state = _SelectiveScan.apply(u_, dt_, A_, B_, C_, state)  # type: ignore[no-untyped-call]
        if D is not None:
            y = y + u_ * D.to(dtype)
        if mask is not None:
            y = y.masked_fill(~mask, 0.0)
    return y.to(u.dtype), final_state


class _SelectiveScan(torch.autograd.Function):
    """The recurrence without skip and lengths.

    Works time first and with channels innermost, `(Q, B, N, D)`: a frame is one block, and broadcasts over N run along
    whole rows. The buffers of that shape serve every chunk: to allocate them anew costs more than to fill them.
    """

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor
    ) -> tuple[Tensor, Tensor]:
        u_, dt_, B_, C_ = (tensor.transpose(0, 1).contiguous() for tensor in (u, dt, B, C))  # (T, B, D or N)
        A_, inputs, time = A.mT.contiguous(), u_ * dt_, len(u_)
        y = torch.empty_like(inputs)
        state, starts = initial_state.mT.contiguous(), []  # (B, N, D)
        decay_buffer, state_buffer = u.new_empty(2, min(CHUNK_FRAMES, time), *state.shape)
        for begin in range(0, time, CHUNK_FRAMES):
            chunk = slice(begin, begin + CHUNK_FRAMES)
            starts.append(state)
            decays, states = decay_buffer[: time - begin], state_buffer[: time - begin]
            _fill_chunk(decays, states, state, inputs[chunk], dt_[chunk], A_, B_[chunk])
            y[chunk] = (C_[chunk, :, None] @ states)[:, :, 0]
            state = states[-1].clone()
        ctx.save_for_backward(u, dt, A, B, C, *starts)
        return y.transpose(0, 1).contiguous(), state.mT.contiguous()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_final: Tensor) -> tuple[Tensor, ...]:
        u, dt, A, B, C, *starts = ctx.saved_tensors
        u_, dt_, B_, C_, grad_y = (tensor.transpose(0, 1).contiguous() for tensor in (u, dt, B, C, grad_y))
        A_, inputs, time = A.mT.contiguous(), u_ * dt_, len(u_)
        grad_inputs, grad_dt = torch.empty_like(inputs), torch.empty_like(inputs)
        grad_A, grad_B, grad_C = torch.zeros_like(A_), torch.empty_like(B_), torch.empty_like(C_)
        carried = grad_final.mT  # gradient of the state that leaves the chunk
        buffers = u.new_empty(3, min(CHUNK_FRAMES, time), *carried.shape)
        for begin, start in reversed(list(zip(range(0, time, CHUNK_FRAMES), starts, strict=True))):
            chunk = slice(begin, begin + CHUNK_FRAMES)
            decays, states, grads = buffers[:, : time - begin]
            _fill_chunk(decays, states, start, inputs[chunk], dt_[chunk], A_, B_[chunk])
            grad_C[chunk] = (states @ grad_y[chunk, :, :, None])[..., 0]

            torch.mul(C_[chunk, ..., None], grad_y[chunk, :, None], out=grads)  # becomes d loss / d h[t]
            grads[-1] += carried
            for t in range(len(grads) - 1, 0, -1):
                grads[t - 1].addcmul_(decays[t], grads[t])
            carried = decays[0] * grads[0]
            grad_inputs[chunk] = (B_[chunk, :, None] @ grads)[:, :, 0]
            grad_B[chunk] = (grads @ inputs[chunk, :, :, None])[..., 0]

            grads *= decays
            grads[0] *= start
            grads[1:] *= states[:-1]  # now d loss / d (dt A)
            grad_dt[chunk] = torch.mul(grads, A_, out=decays).sum(2)
            grad_A += grads.mul_(dt_[chunk, :, None]).sum((0, 1))
        grad_u, grad_dt = grad_inputs * dt_, grad_dt + grad_inputs * u_
        return (
            grad_u.transpose(0, 1),
            grad_dt.transpose(0, 1),
            grad_A.mT,
            grad_B.transpose(0, 1),
            grad_C.transpose(0, 1),
            carried.mT,
        )


def _fill_chunk(
    decays: Tensor, states: Tensor, state: Tensor, inputs: Tensor, dt: Tensor, A: Tensor, B: Tensor
) -> None:
    """Write decays and states `(Q, B, N, D)` of a chunk that starts from `state (B, N, D)`.

    Other shapes: `inputs` and `dt` `(Q, B, D)`, `A (N, D)`, `B (Q, B, N)`.
    """
    torch.mul(dt[:, :, None], A, out=decays).exp_()
    torch.mul(B[..., None], inputs[:, :, None], out=states)
    for decay, after in zip(decays.unbind(), states.unbind(), strict=True):
        state = after.addcmul_(decay, state)


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
    with torch.autocast(u.device.type, enabled=False):
        u_, dt_, A_, B_, C_ = (tensor.to(state.dtype) for tensor in (u, dt, A, B, C))
        state = torch.exp(dt_[..., None] * A_) * state + (dt_ * u_)[..., None] * B_[:, None]
        y = (state * C_[:, None]).sum(-1)
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
    lengths: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`selective_scan` frame by frame: the recurrence as it is written in the paper. Slow; for tests."""
    batch, time, channels = u.shape
    valid = torch.full((batch,), time, device=u.device) if lengths is None else lengths
    state = u.new_zeros(batch, channels, A.shape[1]) if initial_state is None else initial_state
    outputs = []
    for t in range(time):
        y, moved = selective_scan_step(state, u[:, t], dt[:, t], A, B[:, t], C[:, t], D)
        inside = t < valid
        state = torch.where(inside[:, None, None], moved, state)
        outputs.append(torch.where(inside[:, None], y, 0.0))
    return torch.stack(outputs, 1), state
