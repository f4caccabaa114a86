"""The Mamba-2 scan (state-space duality): a linear recurrence with one decay per head, as matrix products over chunks.

Per head, with state `S (P, N)`:  `S[t] = exp(dt[t] A) S[t-1] + dt[t] x[t] B[t]^T`,  `y[t] = S[t] C[t] + D x[t]`.
Shapes: B batch, T padded length, H heads, P head width, N state width, Q frames a chunk, K chunks. All heads share
`B` and `C` (one group).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mode_ssm.ops.lengths import length_mask


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    initial_state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Scan whole sequences (Dao and Gu 2024, section 6, the block decomposition).

    Within a chunk the recurrence is a masked attention-like product; between chunks only the state is carried.

    Args:
        x: `(B, T, H, P)`; padding may hold any finite value in every input.
        dt: `(B, T, H)` positive step sizes (softplus already applied).
        A: `(H,)` negative.
        B: `(B, T, N)` input projections.
        C: `(B, T, N)` output projections.
        D: `(H,)` skip weights, or None.
        lengths: `(B,)` integer valid frames of each row; None means T for all.
        initial_state: `(B, H, P, N)`; None means zeros.
        chunk_size: most frames in a chunk. Any value gives the same result to rounding.

    Returns:
        `y (B, T, H, P)` in the dtype of `x`, zero in padding, and the state at each row's length `(B, H, P, N)`.
        Computed, and the state returned, in float32 at least, under autocast too.
    """
    batch, time, heads, width = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        x_, dt_, A_, B_, C_ = (tensor.to(dtype) for tensor in (x, dt, A, B, C))
        mask = None if lengths is None else length_mask(lengths, time)
        if mask is not None:
            dt_ = dt_.masked_fill(~mask[:, :, None], 0.0)  # decay 1, input 0: the state stands still
        chunks = max(1, math.ceil(time / chunk_size))
        frames = math.ceil(time / chunks)  # equal chunks waste less than full ones and a remainder
        pad = chunks * frames - time

        def chunked(tensor: Tensor) -> Tensor:  # (B, T, H, ...) -> (B, H, K, Q, ...)
            padded = F.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, pad)) if pad else tensor
            return padded.unflatten(1, (chunks, frames)).movedim(3, 1)

        inputs = chunked(x_ * dt_[..., None])  # (B, H, K, Q, P)
        B_, C_ = chunked(B_[:, :, None]), chunked(C_[:, :, None])  # (B, 1, K, Q, N)
        # The decay from j to i is a difference of cumulative sums; in float64 a large step elsewhere in the chunk does
        # not swallow the small ones.
        total = chunked(dt_ * A_).double().cumsum(-1)  # (B, H, K, Q)
        between = (total[..., :, None] - total[..., None, :]).to(dtype)  # (B, H, K, Q, Q)
        future = torch.ones(frames, frames, dtype=torch.bool, device=x.device).triu(1)
        mixing = between.masked_fill(future, -math.inf).exp() * (C_ @ B_.mT)
        y = mixing @ inputs  # (B, H, K, Q, P)

        to_end = (total[..., -1:] - total).to(dtype).exp()  # (B, H, K, Q)
        added = (inputs * to_end[..., None]).mT @ B_  # (B, H, K, P, N)
        from_start = total.to(dtype).exp()  # (B, H, K, Q)
        state = x_.new_zeros(batch, heads, width, B_.shape[-1]) if initial_state is None else initial_state.to(dtype)
        entering = []
        for k in range(chunks):
            entering.append(state)
            state = state * from_start[:, :, k, -1, None, None] + added[:, :, k]
        if chunks > 1 or initial_state is not None:
            y = y + (C_ @ torch.stack(entering, 2).mT) * from_start[..., None]

        y = y.movedim(1, 3).flatten(1, 2)[:, :time]  # (B, T, H, P)
        if D is not None:
            y = y + x_ * D.to(dtype)[:, None]
        if mask is not None:
            y = y.masked_fill(~mask[:, :, None, None], 0.0)
    return y.to(x.dtype), state


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
    with torch.autocast(x.device.type, enabled=False):
        x_, dt_, A_, B_, C_ = (tensor.to(state.dtype) for tensor in (x, dt, A, B, C))
        update = (dt_[..., None] * x_)[..., None] * B_[:, None, None, :]
        state = torch.exp(dt_ * A_)[..., None, None] * state + update
        y = (state * C_[:, None, None, :]).sum(-1)
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
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`ssd` frame by frame: the recurrence as it is written in the paper. Slow; for tests."""
    batch, time, heads, width = x.shape
    valid = torch.full((batch,), time, device=x.device) if lengths is None else lengths
    state = x.new_zeros(batch, heads, width, B.shape[-1]) if initial_state is None else initial_state
    outputs = []
    for t in range(time):
        y, moved = ssd_step(state, x[:, t], dt[:, t], A, B[:, t], C[:, t], D)
        inside = t < valid
        state = torch.where(inside[:, None, None, None], moved, state)
        outputs.append(torch.where(inside[:, None, None], y, 0.0))
    return torch.stack(outputs, 1), state
