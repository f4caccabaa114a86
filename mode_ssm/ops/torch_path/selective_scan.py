"""The Mamba-1 scan in plain torch: what runs where no kernel does, and in float64.

Works time first and with channels innermost, `(Q, B, N, D)`: a frame is one block, and broadcasts over N run along
whole rows. The buffers of that shape serve every chunk: to allocate them anew costs more than to fill them.
Shapes: B batch, T padded length, D channels, N state width, K chunks of Q frames.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mode_ssm.ops.lengths import length_mask, reverse_within_lengths

CHUNK_FRAMES = 16  # near sqrt(T) for T of 50 to 500, which keeps saved plus recomputed states lowest


class SelectiveScan:
    """Implements the kernel's contract of `mode_ssm.ops.selective_scan` for any device, float32 and float64."""

    def starts_shape(self, u: Tensor, A: Tensor) -> tuple[int, ...]:
        """States at chunk starts `(K, B, N, D)`."""
        return ((u.shape[1] + CHUNK_FRAMES - 1) // CHUNK_FRAMES, u.shape[0], A.shape[1], A.shape[0])

    def forward(
        self,
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        u_, dt_, B_, C_ = _in_scan_order((u, dt, B, C), lengths, reverse)
        steps = _steps(dt_, lengths, softplus)
        inputs, A_, time = u_ * steps, A.mT.contiguous(), len(u_)
        y = torch.empty_like(inputs)
        state = inputs.new_zeros(u.shape[0], *A.mT.shape) if initial_state is None else initial_state.mT.contiguous()
        starts = state.new_empty(self.starts_shape(u, A) if keep else (0,))
        buffers = inputs.new_empty(3, min(CHUNK_FRAMES, time), *state.shape)
        for number, begin in enumerate(range(0, time, CHUNK_FRAMES)):
            chunk = slice(begin, begin + CHUNK_FRAMES)
            if keep:
                starts[number] = state
            decays, near_one, states = buffers[:, : time - begin]
            _fill_chunk(decays, near_one, states, state, inputs[chunk], steps[chunk], A_, B_[chunk])
            y[chunk] = (C_[chunk, :, None] @ states)[:, :, 0]
            state = states[-1].clone()
        if D is not None:
            y += u_ * D
        return _from_scan_order(y, lengths, reverse), state.mT.contiguous(), starts

    def backward(
        self,
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
    ) -> tuple[Tensor, ...]:
        u_, dt_, B_, C_, grad = _in_scan_order((u, dt, B, C, grad_y), lengths, reverse)
        if lengths is not None:
            grad = grad * length_mask(lengths, len(grad)).mT[..., None]
        steps = _steps(dt_, lengths, softplus)
        inputs, A_, time = u_ * steps, A.mT.contiguous(), len(u_)
        grad_inputs, grad_dt = torch.empty_like(inputs), torch.empty_like(inputs)
        grad_A, grad_B, grad_C = torch.zeros_like(A_), torch.empty_like(B_), torch.empty_like(C_)
        carried = torch.zeros_like(starts[0]) if grad_final is None else grad_final.mT  # of the state leaving the chunk
        buffers = inputs.new_empty(4, min(CHUNK_FRAMES, time), *starts.shape[1:])
        for begin, start in reversed(list(zip(range(0, time, CHUNK_FRAMES), starts, strict=True))):
            chunk = slice(begin, begin + CHUNK_FRAMES)
            decays, near_one, states, grads = buffers[:, : time - begin]
            _fill_chunk(decays, near_one, states, start, inputs[chunk], steps[chunk], A_, B_[chunk])
            grad_C[chunk] = (states @ grad[chunk, :, :, None])[..., 0]

            torch.mul(C_[chunk, ..., None], grad[chunk, :, None], out=grads)  # becomes d loss / d h[t]
            grads[-1] += carried
            for t in range(len(grads) - 1, 0, -1):
                grads[t - 1].addcmul_(near_one[t], grads[t]).addcmul_(decays[t], grads[t])
            carried = torch.addcmul(near_one[0] * grads[0], decays[0], grads[0])
            grad_inputs[chunk] = (B_[chunk, :, None] @ grads)[:, :, 0]
            grad_B[chunk] = (grads @ inputs[chunk, :, :, None])[..., 0]

            near_one += decays
            grads *= near_one
            grads[0] *= start
            grads[1:] *= states[:-1]  # now d loss / d (dt A)
            grad_dt[chunk] = torch.mul(grads, A_, out=decays).sum(2)
            grad_A += grads.mul_(steps[chunk, :, None]).sum((0, 1))
        grad_dt += grad_inputs * u_
        if softplus:
            grad_dt *= torch.sigmoid(dt_)
        grad_u = grad_inputs * steps
        grad_D = grad.new_empty(0)
        if D is not None:
            grad_u += D * grad
            grad_D = (grad * u_).sum((0, 1))
        timed = [_from_scan_order(tensor, lengths, reverse) for tensor in (grad_u, grad_dt, grad_B, grad_C)]
        return (*timed[:2], grad_A.mT.contiguous(), *timed[2:], grad_D, carried.mT.contiguous())


def _in_scan_order(tensors: tuple[Tensor, ...], lengths: Tensor | None, reverse: bool) -> list[Tensor]:
    """`(B, T, ...)` to contiguous `(T, B, ...)`, turned round within each length where the scan runs backwards."""
    return [_turned(tensor, lengths, reverse).transpose(0, 1).contiguous() for tensor in tensors]


def _from_scan_order(tensor: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
    """The inverse of `_in_scan_order`, zero in padding."""
    turned = _turned(tensor.transpose(0, 1), lengths, reverse)
    if lengths is not None:
        turned = turned.masked_fill(~length_mask(lengths, turned.shape[1])[..., None], 0.0)
    return turned.contiguous()


def _turned(tensor: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
    if not reverse:
        return tensor
    return tensor.flip(1) if lengths is None else reverse_within_lengths(tensor, lengths)


def _steps(dt: Tensor, lengths: Tensor | None, softplus: bool) -> Tensor:
    """Step sizes `(T, B, D)`; 0 in padding, where the decay is then 1, the input 0, and the state stands still."""
    steps = F.softplus(dt) if softplus else dt
    return steps if lengths is None else steps.masked_fill(~length_mask(lengths, len(dt)).mT[..., None], 0.0)


def _fill_chunk(
    decays: Tensor, near_one: Tensor, states: Tensor, state: Tensor, inputs: Tensor, dt: Tensor, A: Tensor, B: Tensor
) -> None:
    """Write decays and states `(Q, B, N, D)` of a chunk that starts from `state (B, N, D)`.

    A decay is `decays + near_one`, which is 1 where the decay exceeds a half, else 0: `1 - 1e-6` in one number would
    have lost two digits of the 1e-6, and the recurrence multiplies that loss by its memory.
    Other shapes: `inputs` and `dt` `(Q, B, D)`, `A (N, D)`, `B (Q, B, N)`.
    """
    torch.mul(dt[:, :, None], A, out=decays)
    torch.gt(decays, -math.log(2), out=near_one)
    torch.where(near_one.bool(), decays.expm1(), decays.exp(), out=decays)
    torch.mul(B[..., None], inputs[:, :, None], out=states)
    for decay, one, after in zip(decays.unbind(), near_one.unbind(), states.unbind(), strict=True):
        state = after.addcmul_(one, state).addcmul_(decay, state)
