"""causal-conv1d: its layouts, and lengths, direction and states.

Shapes: B batch, T padded length, D channels, W taps.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mode_ssm.ops.peers.order import in_frames, inside, turned
from mode_ssm.ops.peers.packages import load

WIDTHS = (2, 3, 4)


class CausalConv:
    """`causal_conv1d`, for the contract of `mode_ssm.ops.causal_conv`.

    The states are cut out and put in front here: the extension does so for some layouts only.
    """

    def __init__(self) -> None:
        self._forward, self._backward = _conv_functions()

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
        inputs = self._inputs(x, lengths, initial_state, reverse)
        past = inputs.shape[1] - x.shape[1]
        out = self._forward(_channels_first(inputs), *_weights(weight, bias), None, None, None, silu)
        frames, there = _last_inputs(x, weight, lengths, past)
        final = inputs.gather(1, frames).masked_fill(~there, 0.0).mT.to(weight.dtype).contiguous()
        return in_frames(out.mT[:, past:], lengths, reverse), final

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
    ) -> tuple[Tensor, ...]:
        inputs = self._inputs(x, lengths, initial_state, reverse)
        past = inputs.shape[1] - x.shape[1]
        dout = F.pad(turned(inside(grad_y.to(x.dtype), lengths), lengths, reverse), (0, 0, past, 0))
        taps, offset = _weights(weight, bias)
        dinputs, dweight, dbias, _ = self._backward(
            _channels_first(inputs), taps, offset, _channels_first(dout), None, None, None, None, False, silu
        )
        dinputs = dinputs.mT.contiguous()
        if grad_final is not None:
            frames, there = _last_inputs(x, weight, lengths, past)
            dinputs.scatter_add_(1, frames, grad_final.mT.masked_fill(~there, 0.0).to(x.dtype))
        dinitial = weight.new_zeros(len(x), x.shape[2], weight.shape[1] - 1)
        if past:
            dinitial.copy_(dinputs[:, :past].mT)
        skip = dbias if dbias is not None else dweight.new_empty(0)
        return in_frames(dinputs[:, past:], lengths, reverse), dweight, skip, dinitial

    def _inputs(self, x: Tensor, lengths: Tensor | None, initial_state: Tensor | None, reverse: bool) -> Tensor:
        """Inputs in the order of the convolution, behind the initial state where there is one `(B, [W - 1 +] T, D)`."""
        inputs = turned(x, lengths, reverse)
        return inputs if initial_state is None else torch.cat([initial_state.to(x.dtype).mT, inputs], 1)


def _conv_functions() -> tuple[Callable[..., Any], Callable[..., Any]]:
    extension = load("causal_conv")
    try:
        functions = import_module("causal_conv1d.cpp_functions")
    except ModuleNotFoundError:  # before 1.5.1, whose functions took over the extension's arguments
        return extension.causal_conv1d_fwd, extension.causal_conv1d_bwd
    return functions.causal_conv1d_fwd_function, functions.causal_conv1d_bwd_function


def _weights(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if weight.shape[1] not in WIDTHS:
        raise ValueError(
            f"causal-conv1d has kernels for widths 2, 3 and 4, not {weight.shape[1]}; choose another backend"
        )
    return weight.contiguous(), None if bias is None else bias.to(weight.dtype).contiguous()


def _channels_first(x: Tensor) -> Tensor:
    """`(B, T, D)` as `(B, D, T)`: a view where the extension takes one, which is 8 channels at a time."""
    if x.shape[2] % 8:
        return x.mT.clone(memory_format=torch.contiguous_format)
    fits = x.stride(2) == 1 and x.stride(0) % 8 == 0 and x.stride(1) % 8 == 0
    return (x if fits else x.contiguous()).mT


def _last_inputs(x: Tensor, weight: Tensor, lengths: Tensor | None, past: int) -> tuple[Tensor, Tensor]:
    """Where each row's last W - 1 inputs stand behind `past` earlier ones, and which exist: `(B, W - 1, D)` each."""
    taps = weight.shape[1] - 1
    ends = torch.full((len(x),), x.shape[1], device=x.device) if lengths is None else lengths
    frames = past + ends[:, None] - taps + torch.arange(taps, device=x.device)
    frames = frames[:, :, None].expand(-1, -1, x.shape[2])
    return frames.clamp(min=0), frames >= 0
