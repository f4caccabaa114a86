"""The Mamba-2 scan in plain torch, as matrix products over chunks: what runs where no kernel does, and in float64.

Shapes: B batch, T padded length, H heads, P head width, N state width, Q frames a chunk, K chunks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mode_ssm.ops.lengths import length_mask, reverse_within_lengths

FORGOTTEN = 1e-26  # the exponentials and products around float32's denormal numbers take 20 times longer on a CPU


def ssd_torch(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    initial_state: Tensor | None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """`mode_ssm.ops.ssd.ssd` (Dao and Gu 2024, section 6, the block decomposition), arguments and results alike.

    Within a chunk the recurrence is a masked attention-like product; between chunks only the state is carried.
    `chunk_size` counts frames, before chunks are made equal. Any value gives the same result to rounding.
    """
    batch, time, heads, width = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        if reverse:
            valid = lengths if lengths is not None else torch.full((batch,), time, device=x.device)
            x, dt, B, C = (reverse_within_lengths(tensor, valid) for tensor in (x, dt, B, C))
        x_, dt_, A_, B_, C_ = (tensor.to(dtype) for tensor in (x, dt, A, B, C))
        mask = None if lengths is None else length_mask(lengths, time)
        if mask is not None:
            dt_ = dt_.masked_fill(~mask[:, :, None], 0.0)  # decay 1, input 0: the state stands still
        chunks = max(1, (time + chunk_size // 2) // chunk_size)
        frames = (time + chunks - 1) // chunks  # equal chunks waste less than full ones and a remainder
        pad = chunks * frames - time

        def chunked(tensor: Tensor) -> Tensor:  # (B, T, ...) -> (B, K, Q, ...)
            padded = F.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, pad)) if pad else tensor
            return padded.unflatten(1, (chunks, frames))

        inputs = chunked(x_ * dt_[..., None])  # (B, K, Q, H, P)
        B_, C_ = chunked(B_), chunked(C_)  # (B, K, Q, N)
        # In float64, because a decay is a difference of these sums and a large step must not swallow small ones.
        total = chunked((dt_ * A_).double()).cumsum(2)  # (B, K, Q, H)
        from_start = _decay(total.to(dtype))
        # The last frame's is 1 whatever the steps are: left to a difference, its gradients would cancel to rounding
        # errors larger than what a strong decay leaves of the others.
        before_last = _decay((total[:, :, -1:] - total[:, :, :-1]).to(dtype))
        to_end = F.pad(before_last, (0, 0, 0, 1), value=1.0)

        decay: Tensor = _DecayBetween.apply(total.movedim(3, 2), dtype)  # type: ignore[no-untyped-call]
        mixing = decay * (C_ @ B_.mT)[:, :, None]  # (B, K, H, Q, Q)
        y = (mixing @ inputs.transpose(2, 3)).transpose(2, 3)  # (B, K, Q, H, P)

        # One product serves all heads: they share B and C.
        added = (inputs * to_end[..., None]).flatten(3).mT @ B_  # (B, K, H * P, N)
        added = added.unflatten(2, (heads, width))
        state = x_.new_zeros(batch, heads, width, B_.shape[-1]) if initial_state is None else initial_state.to(dtype)
        entering = []
        for k in range(chunks):
            entering.append(state)
            state = state * from_start[:, k, -1, :, None, None] + added[:, k]
        if chunks > 1 or initial_state is not None:
            recalled = C_ @ torch.stack(entering, 1).flatten(2, 3).mT  # (B, K, Q, H * P)
            y = y + recalled.unflatten(3, (heads, width)) * from_start[..., None]

        y = y.flatten(1, 2)[:, :time]
        if D is not None:
            y = y + x_ * D.to(dtype)[:, None]
        if mask is not None:
            y = y.masked_fill(~mask[:, :, None, None], 0.0)
        if reverse:
            y = reverse_within_lengths(y, valid)
    return y.to(x.dtype), state


def _decay(exponent: Tensor) -> Tensor:
    """`exp(exponent)`, where less than `FORGOTTEN` counts as 0."""
    return F.threshold(exponent.clamp(min=math.log(FORGOTTEN)).exp(), 1.01 * FORGOTTEN, 0.0)


class _DecayBetween(torch.autograd.Function):
    """`exp(total[i] - total[j])` for j <= i, else 0: `(..., Q)` to `(..., Q, Q)`, the largest tensor of the scan.

    Written by hand because autograd would walk that tensor six times in the backward pass, twice in float64.
    """

    @staticmethod
    def forward(ctx: Any, total: Tensor, dtype: torch.dtype) -> Tensor:
        frames = total.shape[-1]
        future = torch.ones(frames, frames, dtype=torch.bool, device=total.device).triu(1)
        exponent = (total[..., :, None] - total[..., None, :]).to(dtype).masked_fill_(future, -math.inf)
        decay = _decay(exponent)
        ctx.save_for_backward(decay)
        return decay

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (decay,) = ctx.saved_tensors
        # Every entry enters once with each sign and most cancel in the cumulative sum that follows: hence float64. The
        # diagonal, 1 whatever the steps are, would cancel to rounding errors only.
        product = (grad * decay).tril_(-1).double()
        return product.sum(-1) - product.sum(-2), None
