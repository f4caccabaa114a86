"""The depthwise causal convolution in plain torch: what runs where no kernel does, and in float64.

One pass over the frames for each tap, channels innermost as they come: faster than `conv1d`, which wants them outermost
and takes two transpositions. Element-wise throughout, so that autocast has nothing to change.
Shapes: B batch, T padded length, D channels, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mode_ssm.ops.lengths import length_mask, reverse_within_lengths


class CausalConv:
    """Implements the contract of `mode_ssm.ops.causal_conv` for any device, float32 and float64."""

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
        inputs = _inputs(x, weight, lengths, initial_state, reverse)
        y = _convolved(inputs, weight, bias)
        y = F.silu(y, inplace=True) if silu else y
        final_state = inputs.gather(1, _last(inputs, weight, lengths)).mT.contiguous()
        return _turned(_valid(y, lengths), lengths, reverse), final_state

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
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        time, past = x.shape[1], weight.shape[1] - 1
        inputs = _inputs(x, weight, lengths, initial_state, reverse)
        grad = _valid(_turned(grad_y, lengths, reverse), lengths)
        if silu:
            grad = torch.ops.aten.silu_backward(grad, _convolved(inputs, weight, bias))
        grad_inputs, grad_weight = torch.zeros_like(inputs), torch.empty_like(weight)
        if grad_final is not None:
            grad_inputs.scatter_(1, _last(inputs, weight, lengths), grad_final.mT)
        product = torch.empty_like(grad)
        for k, tap in enumerate(weight.mT.contiguous()):
            grad_inputs[:, k : k + time].addcmul_(grad, tap)
            grad_weight[:, k] = torch.mul(grad, inputs[:, k : k + time], out=product).sum((0, 1))
        grad_bias = grad.sum((0, 1)) if bias is not None else grad.new_empty(0)
        dinitial = grad_inputs[:, :past].mT.clone(memory_format=torch.contiguous_format)
        return _turned(grad_inputs[:, past:], lengths, reverse).contiguous(), grad_weight, grad_bias, dinitial


def _inputs(x: Tensor, weight: Tensor, lengths: Tensor | None, initial_state: Tensor | None, reverse: bool) -> Tensor:
    """The state and then the frames in reading order `(B, W - 1 + T, D)`."""
    past = x.new_zeros(x.shape[0], *weight[:, 1:].shape) if initial_state is None else initial_state
    return torch.cat([past.mT, _turned(x, lengths, reverse)], dim=1)


def _convolved(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`(B, T, D)`."""
    taps = weight.mT.contiguous()  # whole rows, or every product would be gathered
    time = inputs.shape[1] - len(taps) + 1
    y = taps[0] * inputs[:, :time]
    for k in range(1, len(taps)):
        y.addcmul_(inputs[:, k : k + time], taps[k])
    return y if bias is None else y.add_(bias)


def _last(inputs: Tensor, weight: Tensor, lengths: Tensor | None) -> Tensor:
    """Where in the sequence the last W - 1 inputs of each row stand `(B, W - 1, D)`."""
    batch, total, channels = inputs.shape
    past = torch.arange(weight.shape[1] - 1, device=inputs.device)
    begin = total - len(past) if lengths is None else lengths[:, None]
    return (begin + past).expand(batch, -1)[..., None].expand(-1, -1, channels)


def _turned(tensor: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
    """`(B, T, D)`, turned round within each length where it is read backwards."""
    if not reverse:
        return tensor
    return tensor.flip(1) if lengths is None else reverse_within_lengths(tensor, lengths)


def _valid(tensor: Tensor, lengths: Tensor | None) -> Tensor:
    """Zero in padding, whatever stood there."""
    return tensor if lengths is None else tensor.masked_fill(~length_mask(lengths, tensor.shape[1])[..., None], 0.0)
