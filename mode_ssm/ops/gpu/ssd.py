"""The Mamba-2 scan in Triton: matrix products over chunks, the state in registers for the whole length of a row.

A program runs a block of one head's width through one row, chunk after chunk, so nothing but the entering states goes
through memory between the steps of the block decomposition. Products of inputs that were computed on the way are in
bf16 for bf16 inputs, in tf32 for fp16 (its digits, without its overflows) and in float32 for float32.
Shapes: B batch, T padded length, H heads, P head width, N state width, K chunks of Q frames, R blocks of P.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mode_ssm.ops.gpu.elementwise import frame_at
from mode_ssm.ops.gpu.launch import blank, device_of, packed, power_of_two, readable, summed_slabs

MAX_REGISTERS = 255  # of a thread; told so, because ptxas 12.8 retreats to 32 where it cannot do without spilling


@dataclass(frozen=True)
class Tiling:
    """How the work is cut."""

    frames: int = 64  # Q
    width: int = 64  # of a head in one program, at most
    forward_warps: int = 4
    backward_warps: int = 4
    stages: int = 2  # of the loads ahead of the products

    @classmethod
    def of(cls, dtype: torch.dtype, states: int) -> Tiling:
        """Smaller tiles for float32, whose products run from registers, and for what shared memory would not hold."""
        if dtype == torch.float32 or states > 128:
            return cls(frames=32, width=32, forward_warps=8, backward_warps=8, stages=1)
        return cls(backward_warps=4 if dtype == torch.bfloat16 and states <= 64 else 8)


@triton.jit
def _decays(steps, a, Q: tl.constexpr):
    """Of a chunk: between frames `(Q, Q)`, from before its start to each frame, from each frame to its end, in all.

    Exponents are differences of cumulative sums, in which a large step would swallow small ones: so the sums are in
    float64, and go on as the sum of two float32, whose differences are exact to the last bit.
    """
    total = tl.cumsum(steps.to(tl.float64) * a.to(tl.float64), 0)  # (Q,)
    high = total.to(tl.float32)
    low = (total - high.to(tl.float64)).to(tl.float32)
    exponent = (high[:, None] - high[None]) + (low[:, None] - low[None])
    i = tl.arange(0, Q)
    between = tl.where(i[:, None] >= i[None], tl.exp(tl.minimum(exponent, 0.0)), 0.0)
    last = tl.sum(tl.where(i == Q - 1, total, 0.0), 0)
    return between, tl.exp(high), tl.exp((last - total).to(tl.float32)), tl.exp(last.to(tl.float32))


@triton.jit
def _forward_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, lengths_ptr, initial_ptr, y_ptr, final_ptr, kept_ptr,
    x_b, x_t, x_h, dt_b, dt_t, B_b, B_t, C_b, C_t, time, heads, width, states, blocks, chunks,
    Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    REVERSE: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) // blocks
    p = tl.program_id(1) % blocks * P + tl.arange(0, P)
    n = tl.arange(0, N)
    q = tl.arange(0, Q)
    length = time if lengths_ptr is None else tl.load(lengths_ptr + b).to(tl.int32)
    a = tl.load(A_ptr + head)
    at_state = (head * width + p[:, None]) * states + n[None]
    inside_state = (p[:, None] < width) & (n[None] < states)
    size = heads * width * states

    if initial_ptr is None:
        state = tl.zeros((P, N), tl.float32)
    else:
        state = tl.load(initial_ptr + b * size + at_state, mask=inside_state, other=0.0)
    for k in range(0, tl.cdiv(length, Q)):
        if KEEP:
            tl.store(kept_ptr + (b * chunks + k) * size + at_state, state, mask=inside_state)
        t = frame_at(k * Q + q, length, REVERSE)
        inside = k * Q + q < length
        inside_x = inside[:, None] & (p[None] < width)
        inside_n = inside[:, None] & (n[None] < states)
        # A step of 0 lets the state stand still.
        steps = tl.load(dt_ptr + b * dt_b + t * dt_t + head, mask=inside, other=0.0)
        x = tl.load(x_ptr + b * x_b + t[:, None] * x_t + head * x_h + p[None], mask=inside_x, other=0.0)
        B = tl.load(B_ptr + b * B_b + t[:, None] * B_t + n[None], mask=inside_n, other=0.0)
        C = tl.load(C_ptr + b * C_b + t[:, None] * C_t + n[None], mask=inside_n, other=0.0)
        between, from_start, to_end, across = _decays(steps, a, Q)

        mixing = tl.dot(C, tl.trans(B), input_precision=PRECISION) * between * steps[None]
        y = tl.dot(mixing.to(OPERAND), x.to(OPERAND), input_precision=PRECISION)
        recalled = tl.dot(C.to(OPERAND), tl.trans(state).to(OPERAND), input_precision=PRECISION)
        y += recalled * from_start[:, None]
        if D_ptr is not None:
            y += tl.load(D_ptr + head) * x.to(tl.float32)
        to = ((b * time + t[:, None]) * heads + head) * width + p[None]
        tl.store(y_ptr + to, y.to(y_ptr.dtype.element_ty), mask=inside_x)

        added = x.to(tl.float32) * (steps * to_end)[:, None]
        state = state * across
        state += tl.dot(tl.trans(added).to(OPERAND), B.to(OPERAND), input_precision=PRECISION)
    tl.store(final_ptr + b * size + at_state, state, mask=inside_state)


@triton.jit
def _backward_kernel(
    grad_ptr, grad_final_ptr, x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, lengths_ptr, kept_ptr,
    dx_ptr, ddt_ptr, dA_ptr, dB_ptr, dC_ptr, dD_ptr, dinitial_ptr,
    grad_b, grad_t, grad_h, x_b, x_t, x_h, dt_b, dt_t, B_b, B_t, C_b, C_t,
    time, heads, width, states, blocks, chunks,
    Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    batch = tl.num_programs(0)
    head = tl.program_id(1) // blocks
    block = tl.program_id(1) % blocks
    p = block * P + tl.arange(0, P)
    n = tl.arange(0, N)
    q = tl.arange(0, Q)
    length = time if lengths_ptr is None else tl.load(lengths_ptr + b).to(tl.int32)
    a = tl.load(A_ptr + head)
    at_state = (head * width + p[:, None]) * states + n[None]
    inside_state = (p[:, None] < width) & (n[None] < states)
    size = heads * width * states
    slab = (tl.program_id(1).to(tl.int64) * batch + b) * time * states
    upto = (q[:, None] <= q[None]).to(tl.float32)  # (Q, Q): the sum over the frames from each one on

    if grad_final_ptr is None:
        dstate = tl.zeros((P, N), tl.float32)  # of the state behind the chunk, and then of the one before it
    else:
        dstate = tl.load(grad_final_ptr + b * size + at_state, mask=inside_state, other=0.0)
    dA = tl.zeros((Q,), tl.float32)
    dD = tl.zeros((Q,), tl.float32)
    skip = 0.0 if D_ptr is None else tl.load(D_ptr + head)
    count = tl.cdiv(length, Q)
    for back in range(0, count):
        k = count - 1 - back
        t = frame_at(k * Q + q, length, REVERSE)
        inside = k * Q + q < length
        inside_x = inside[:, None] & (p[None] < width)
        inside_n = inside[:, None] & (n[None] < states)
        steps = tl.load(dt_ptr + b * dt_b + t * dt_t + head, mask=inside, other=0.0)
        x = tl.load(x_ptr + b * x_b + t[:, None] * x_t + head * x_h + p[None], mask=inside_x, other=0.0)
        dy = tl.load(grad_ptr + b * grad_b + t[:, None] * grad_t + head * grad_h + p[None], mask=inside_x, other=0.0)
        B = tl.load(B_ptr + b * B_b + t[:, None] * B_t + n[None], mask=inside_n, other=0.0)
        C = tl.load(C_ptr + b * C_b + t[:, None] * C_t + n[None], mask=inside_n, other=0.0)
        start = tl.load(kept_ptr + (b * chunks + k) * size + at_state, mask=inside_state, other=0.0)
        between, from_start, to_end, across = _decays(steps, a, Q)
        added = steps * to_end

        scores = tl.dot(C, tl.trans(B), input_precision=PRECISION) * between
        dmixing = tl.dot(dy, tl.trans(x), input_precision=PRECISION)
        mixing = (scores * steps[None]).to(OPERAND)
        dx = tl.dot(tl.trans(mixing), dy.to(OPERAND), input_precision=PRECISION)
        dx += tl.dot(B.to(OPERAND), tl.trans(dstate).to(OPERAND), input_precision=PRECISION) * added[:, None]
        dx += dy.to(tl.float32) * skip
        to = ((b * time + t[:, None]) * heads + head) * width + p[None]
        tl.store(dx_ptr + to, dx.to(dx_ptr.dtype.element_ty), mask=inside_x)
        dD += tl.sum(x.to(tl.float32) * dy.to(tl.float32), 1)

        dscores = (dmixing * between * steps[None]).to(OPERAND)
        dB = tl.dot(x.to(OPERAND), dstate.to(OPERAND), input_precision=PRECISION)
        left = tl.sum(B.to(tl.float32) * dB, 1) * to_end  # d loss / d step, through the state behind the chunk
        dB = dB * added[:, None]
        dB += tl.dot(tl.trans(dscores), C.to(OPERAND), input_precision=PRECISION)
        tl.store(dB_ptr + slab + t[:, None] * states + n[None], dB, mask=inside_n)
        dC = tl.dot(dy.to(OPERAND), start.to(OPERAND), input_precision=PRECISION) * from_start[:, None]
        entered = tl.sum(C.to(tl.float32) * dC, 1)  # d loss / d exponent, through the state before the chunk
        dC += tl.dot(dscores, B.to(OPERAND), input_precision=PRECISION)
        tl.store(dC_ptr + slab + t[:, None] * states + n[None], dC, mask=inside_n)

        # A frame's exponent lies between every frame before it and every one from it on. Summed over these pairs,
        # and not as what cumulative sums leave when most of it cancels.
        pairs = dmixing * scores
        direct = tl.sum(pairs, 0) + left
        after = tl.dot(upto, pairs * steps[None], input_precision=PRECISION)
        crossing = tl.where(q[:, None] > q[None], after + (left * steps)[None], entered[None])
        dexponent = tl.sum(crossing, 1)
        dexponent += across * tl.sum(start * dstate)
        to = ((block * batch + b) * time + t) * heads + head
        tl.store(ddt_ptr + to, direct + a * dexponent, mask=inside)
        dA += steps * dexponent

        seen = dy.to(tl.float32) * from_start[:, None]
        dstate = dstate * across
        dstate += tl.dot(tl.trans(seen).to(OPERAND), C.to(OPERAND), input_precision=PRECISION)
    tl.store(dinitial_ptr + b * size + at_state, dstate, mask=inside_state)
    partial = (b * blocks + block) * heads + head
    tl.store(dA_ptr + partial, tl.sum(dA, 0))
    tl.store(dD_ptr + partial, tl.sum(dD, 0))


class SSD:
    """Implements the kernel's contract of `mode_ssm.ops.ssd` on a GPU for float32, bf16 and fp16."""

    def __init__(self, tiling: Tiling | None = None) -> None:
        self._tiling = tiling

    def starts_shape(self, x: Tensor, A: Tensor, B: Tensor) -> tuple[int, ...]:
        """States that enter the chunks `(B, K, H, P, N)`."""
        return (x.shape[0], triton.cdiv(x.shape[1], self._tiles(x, B).frames), *x.shape[2:], B.shape[2])

    def forward(
        self,
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, time, heads, width = x.shape
        x, dt, B, C = (readable(tensor) for tensor in (x, dt.float(), B, C))
        y = blank(x, (batch, time, heads, width), lengths)
        final = A.new_empty(batch, heads, width, B.shape[2])
        kept = A.new_empty(self.starts_shape(x, A, B) if keep else (0,))
        initial = None if initial_state is None else initial_state.float().contiguous()
        with device_of(x):
            _forward_kernel[self._grid(x, B)](
                x, dt, packed(A), B, C, packed(D), packed(lengths), initial, y, final, kept,
                *x.stride()[:3], *dt.stride()[:2], *B.stride()[:2], *C.stride()[:2], *self._sizes(x, B),
                **self._constants(x, B), REVERSE=reverse, KEEP=keep, num_warps=self._tiles(x, B).forward_warps,
            )  # fmt: skip
        return y, final, kept

    def backward(
        self,
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
    ) -> tuple[Tensor, ...]:
        batch, time, heads, width = x.shape
        states = B.shape[2]
        blocks = self._grid(x, B)[1] // heads
        grad, x_, dt_, B_, C_ = (readable(tensor) for tensor in (grad_y.to(x.dtype), x, dt.float(), B, C))
        final = None if grad_final is None else grad_final.float().contiguous()
        dx = blank(x, (batch, time, heads, width), lengths)
        ddt = blank(A, (blocks, batch, time, heads), lengths)
        dB, dC = A.new_empty(2, heads * blocks, batch, time, states)
        dA, dD = A.new_empty(2, batch * blocks, heads)
        dinitial = A.new_empty(batch, heads, width, states)
        with device_of(x):
            _backward_kernel[self._grid(x, B)](
                grad, final, x_, dt_, packed(A), B_, C_, packed(D), packed(lengths), kept,
                dx, ddt, dA, dB, dC, dD, dinitial,
                *grad.stride()[:3], *x_.stride()[:3], *dt_.stride()[:2], *B_.stride()[:2], *C_.stride()[:2],
                *self._sizes(x, B),
                **self._constants(x, B), REVERSE=reverse, num_warps=self._tiles(x, B).backward_warps,
            )  # fmt: skip
        return (
            dx,
            ddt.sum(0).to(dt.dtype),
            dA.sum(0),
            summed_slabs(dB, lengths, states, B.dtype),
            summed_slabs(dC, lengths, states, C.dtype),
            dD.sum(0) if D is not None else dD.new_empty(0),
            dinitial,
        )

    def _tiles(self, x: Tensor, B: Tensor) -> Tiling:
        return self._tiling or Tiling.of(x.dtype, B.shape[2])

    def _block(self, x: Tensor, B: Tensor) -> int:
        return min(self._tiles(x, B).width, power_of_two(x.shape[3], least=16))

    def _grid(self, x: Tensor, B: Tensor) -> tuple[int, int]:
        return x.shape[0], x.shape[2] * triton.cdiv(x.shape[3], self._block(x, B))

    def _sizes(self, x: Tensor, B: Tensor) -> tuple[int, ...]:
        """Time, heads, width, states, blocks, chunks."""
        _, time, heads, width = x.shape
        blocks, chunks = triton.cdiv(width, self._block(x, B)), triton.cdiv(time, self._tiles(x, B).frames)
        return time, heads, width, B.shape[2], blocks, chunks

    def _constants(self, x: Tensor, B: Tensor) -> dict[str, object]:
        tiling = self._tiles(x, B)
        return {
            "Q": tiling.frames,
            "P": self._block(x, B),
            "N": power_of_two(B.shape[2], least=16),
            "OPERAND": tl.bfloat16 if x.dtype == torch.bfloat16 else tl.float32,
            "PRECISION": "ieee" if x.dtype == torch.float32 else "tf32",
            "num_stages": tiling.stages,
            "maxnreg": MAX_REGISTERS,
        }
