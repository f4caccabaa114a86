"""Depthwise causal convolution with a state, the short convolution in front of a Mamba scan.

`y[t] = bias + sum_k weight[:, k] * x[t - (W - 1) + k]`, where inputs before the first frame come from the state.
Shapes: B batch, T padded length, D channels, W width. The state `(B, D, W - 1)` holds the last inputs, oldest first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mode_ssm.ops.lengths import length_mask


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve whole sequences (Gu and Dao 2023, section 3.4; any width >= 1).

    Args:
        x: `(B, T, D)`; padding may hold any finite value.
        weight: `(D, W)`, oldest tap first.
        bias: `(D,)` or None.
        lengths: `(B,)` integer valid frames of each row; None means T for all.
        initial_state: `(B, D, W - 1)` inputs before the first frame; None means zeros.

    Returns:
        `y (B, T, D)` in the dtype of `x`, zero in padding, and the final state `(B, D, W - 1)`: the last W - 1 inputs
        at each row's length, in the dtype of `x`. Computed in float32 at least, under autocast too.
    """
    time, taps = x.shape[1], weight.shape[1] - 1
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        past = x.new_zeros(x.shape[0], x.shape[2], taps) if initial_state is None else initial_state.to(x.dtype)
        inputs = torch.cat([past, x.transpose(1, 2)], dim=2)  # (B, D, W - 1 + T)
        y = F.conv1d(
            inputs.to(dtype), weight.to(dtype)[:, None], None if bias is None else bias.to(dtype), groups=x.shape[2]
        ).transpose(1, 2)
        if lengths is None:
            return y.to(x.dtype), inputs[:, :, time:]
        y = y.masked_fill(~length_mask(lengths, time)[:, :, None], 0.0)
        last = lengths[:, None] + torch.arange(taps, device=x.device)  # (B, W - 1)
        final_state = inputs.gather(2, last[:, None].expand(-1, x.shape[2], -1))
    return y.to(x.dtype), final_state


def causal_conv_step(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One frame of `causal_conv`.

    Args:
        x: `(B, D)`.
        state: `(B, D, W - 1)`, the inputs before this frame.
        weight: `(D, W)`.
        bias: `(D,)` or None.

    Returns:
        `y (B, D)` and the next state `(B, D, W - 1)`.
    """
    window = torch.cat([state, x[:, :, None].to(state.dtype)], dim=2)  # (B, D, W)
    y = (window * weight).sum(-1)
    return (y if bias is None else y + bias).to(x.dtype), window[:, :, 1:]


def causal_conv_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`causal_conv` as a loop over rows, frames and taps. Slow; for tests."""
    batch, time, channels = x.shape
    width = weight.shape[1]
    valid = [time] * batch if lengths is None else lengths.tolist()
    outputs, states = [], []
    for row in range(batch):
        history = [x.new_zeros(channels) for _ in range(width - 1)]
        if initial_state is not None:
            history = list(initial_state[row].unbind(-1))
        frames = []
        for t in range(time):
            if t >= valid[row]:
                frames.append(x.new_zeros(channels))
                continue
            history.append(x[row, t])
            total = x.new_zeros(channels) if bias is None else bias
            for k in range(width):
                total = total + weight[:, k] * history[len(history) - width + k]
            frames.append(total)
        outputs.append(torch.stack(frames))
        states.append(torch.stack(history[len(history) - (width - 1) :], -1) if width > 1 else x.new_zeros(channels, 0))
    return torch.stack(outputs), torch.stack(states)
