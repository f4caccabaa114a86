"""Depthwise causal convolution with a state, the short convolution in front of a Mamba scan.

`y[t] = bias + sum_k weight[:, k] * x[t - (W - 1) + k]`, where inputs before the first frame come from the state.
Shapes: B batch, T padded length, D channels, W width. The state `(B, D, W - 1)` holds the last inputs, oldest first.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mode_ssm.ops import backends
from mode_ssm.ops.lengths import reverse_within_lengths
from mode_ssm.ops.shapes import check_lengths, check_shapes


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    silu: bool = False,
    lengths: Tensor | None = None,
    reverse: bool = False,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve whole sequences (Gu and Dao 2023, section 3.4; any width >= 1) on the backend that `backends` chose.

    Nothing but the inputs is kept for the backward pass. Differentiable once.

    Args:
        x: `(B, T, D)`; padding may hold any finite value. A view with a contiguous last dimension is read in place.
        weight: `(D, W)`, oldest tap first.
        bias: `(D,)` or None.
        silu: return `silu(y)` instead.
        lengths: `(B,)` integer valid frames of each row; None means T for all.
        reverse: read each row from its last valid frame to its first; the initial state comes before the last frame.
        initial_state: `(B, D, W - 1)` inputs before the first frame read, oldest first; None means zeros.

    Returns:
        `y (B, T, D)` in the dtype of `x`, zero in padding, and the final state `(B, D, W - 1)`: the last W - 1 inputs
        read, in reading order, in the dtype of `x`. Computed in float32 at least, under autocast too.

    Raises:
        ValueError: shapes that do not fit together, or lengths beyond T.
    """
    _check_shapes(x, weight, bias, lengths, initial_state)
    backend = backends.choose("causal_conv", x.device.type, x.dtype)
    wide = torch.promote_types(x.dtype, torch.float32)
    x_ = x.to(wide) if backend in backends.FULL_PRECISION else x
    weight_, bias_, initial = (None if each is None else each.to(wide) for each in (weight, bias, initial_state))
    assert weight_ is not None
    y, final_state = _forward(x_, weight_, bias_, lengths, initial, silu, reverse, backend)
    return y.to(x.dtype), final_state.to(x.dtype)


def _check_shapes(
    x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None, initial_state: Tensor | None
) -> None:
    if x.dim() != 3:
        raise ValueError(f"causal_conv: x must be (batch, time, channels), not {tuple(x.shape)}")
    batch, _, channels = x.shape
    if weight.dim() != 2 or weight.shape[0] != channels or weight.shape[1] < 1:
        raise ValueError(f"causal_conv: weight must be ({channels}, width >= 1), not {tuple(weight.shape)}")
    check_shapes(
        "causal_conv",
        bias=(bias, (channels,)),
        lengths=(lengths, (batch,)),
        initial_state=(initial_state, (batch, channels, weight.shape[1] - 1)),
    )


@torch.library.custom_op("mode_ssm::causal_conv", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    initial_state: Tensor | None,
    silu: bool,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    check_lengths("causal_conv", lengths, x.shape[1])
    return backends.kernel("causal_conv", backend).forward(x, weight, bias, lengths, initial_state, silu, reverse)


@_forward.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    initial_state: Tensor | None,
    silu: bool,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(x.shape[0], x.shape[2], weight.shape[1] - 1)


@torch.library.custom_op("mode_ssm::causal_conv_backward", mutates_args=())
def _backward(
    grad_y: Tensor,
    grad_final: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    initial_state: Tensor | None,
    silu: bool,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias (empty where it is None) and the initial state."""
    kernel = backends.kernel("causal_conv", backend)
    return kernel.backward(grad_y, grad_final, x, weight, bias, lengths, initial_state, silu, reverse)


@_backward.register_fake
def _(
    grad_y: Tensor,
    grad_final: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    initial_state: Tensor | None,
    silu: bool,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, _, channels = x.shape
    dbias = weight.new_empty(channels if bias is not None else 0)
    dinitial = weight.new_empty(batch, channels, weight.shape[1] - 1)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dbias, dinitial


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5])
    ctx.settings = inputs[5:]


def _differentiate(ctx: Any, grad_y: Tensor | None, grad_final: Tensor | None) -> tuple:
    x, weight, bias, lengths, initial_state = ctx.saved_tensors
    if grad_y is None:
        grad_y = x.new_zeros(x.shape)
    dx, dweight, dbias, dinitial = _backward(grad_y, grad_final, x, weight, bias, lengths, initial_state, *ctx.settings)
    given = (dbias if bias is not None else None, None, dinitial if initial_state is not None else None)
    return dx, dweight, *given, None, None, None


_forward.register_autograd(_differentiate, setup_context=_setup_context)


def causal_conv_step(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None = None, *, silu: bool = False
) -> tuple[Tensor, Tensor]:
    """One frame of `causal_conv`.

    Args:
        x: `(B, D)`.
        state: `(B, D, W - 1)`, the inputs before this frame.
        weight: `(D, W)`.
        bias: `(D,)` or None.
        silu: return `silu(y)` instead.

    Returns:
        `y (B, D)` and the next state `(B, D, W - 1)`.
    """
    window = torch.cat([state, x[:, :, None].to(state.dtype)], dim=2)  # (B, D, W)
    y = (window * weight).sum(-1)
    y = y if bias is None else y + bias
    return (F.silu(y) if silu else y).to(x.dtype), window[:, :, 1:]


def causal_conv_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    silu: bool = False,
    lengths: Tensor | None = None,
    reverse: bool = False,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`causal_conv` as a loop over rows, frames and taps. Slow; for tests."""
    batch, time, channels = x.shape
    width = weight.shape[1]
    lengths = torch.full((batch,), time, device=x.device) if lengths is None else lengths
    valid = lengths.tolist()
    if reverse:
        x = reverse_within_lengths(x, lengths)
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
            frames.append(total * torch.sigmoid(total) if silu else total)
        outputs.append(torch.stack(frames))
        states.append(torch.stack(history[len(history) - (width - 1) :], -1) if width > 1 else x.new_zeros(channels, 0))
    y = torch.stack(outputs)
    return (reverse_within_lengths(y, lengths) if reverse else y), torch.stack(states)
