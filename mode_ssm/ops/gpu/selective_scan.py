"""The Mamba-1 scan in Triton: states stay in registers for the whole length of a row.

A program runs a block of channels of one row. Its tile of states is `(DP, DR, N)`: the compiler deals the last dimension
out as 4 neighbours to a thread, the first over the other lanes and the warps, and keeps the middle one in registers.
A thread so owns DR channels that are neighbours in memory, and sums over channels and over states take as few exchanges
between lanes as they can. Frames come in groups of Q, unrolled, so that what leaves a group leaves it as one tile.
Shapes: B batch, T padded length, D channels, N state width, K chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mode_ssm.ops.gpu.elementwise import exp2m1, frame_at, sigmoid, softplus
from mode_ssm.ops.gpu.launch import blank, device_of, pad_last, power_of_two, readable, summed_slabs

WARP = 32
NEIGHBOURS = 4  # states of one thread: a 16-byte access of float32
LOG2E = 1.4426950408889634
LN2 = tl.constexpr(0.6931471805599453)


@dataclass(frozen=True)
class Tiling:
    """How the work is cut. The registers of the backward pass grow with `channels * frames`."""

    warps: int = 4
    channels: int = 4  # of one thread, DR
    frames: int = 8  # Q: unrolled, and the states before each of them held in registers by the backward pass
    groups: int = 2  # in a chunk, at whose start the state is saved; the backward pass repeats those before its own

    @classmethod
    def of_width(cls, width: int) -> Tiling:
        """For `width` states: the compiler has every thread read what it needs of a frame, without an exchange through
        shared memory and a barrier, only as long as that is less than one number a thread."""
        return cls(warps=min(8, max(4, width // 16)), channels=min(4, width // 8))

    def positions(self, width: int) -> int:
        """DP: blocks of neighbouring channels side by side, over the lanes that N leaves free and over the warps."""
        return self.warps * (WARP // min(WARP, max(1, width // NEIGHBOURS)))


@triton.jit
def _appended(parts, part):
    return parts + (part,)  # noqa: RUF005 - Triton has no starred expressions


@triton.jit
def _prepended(part, parts):
    return (part,) + parts  # noqa: RUF005


@triton.jit
def _stacked(p, Q: tl.constexpr):
    """Q tensors as one with a new last dimension, without moving anything between threads."""
    tl.static_assert(Q == 2 or Q == 4 or Q == 8, "a group has 2, 4 or 8 frames")
    if Q == 2:
        stack = tl.join(p[0], p[1])
    elif Q == 4:
        stack = tl.join(tl.join(p[0], p[2]), tl.join(p[1], p[3]))
    else:
        even = tl.join(tl.join(p[0], p[4]), tl.join(p[2], p[6]))
        odd = tl.join(tl.join(p[1], p[5]), tl.join(p[3], p[7]))
        stack = tl.join(even, odd)
    return stack


@triton.jit
def _decayed(state, exponent, PRECISE: tl.constexpr):
    """`2^exponent * state`. PRECISE for float32 inputs: see `exp2m1`; the others do not hold what it saves."""
    if PRECISE:
        return exp2m1(exponent) * state + state
    else:
        return tl.exp2(exponent) * state


@triton.jit
def _softplus_kernel(dt_ptr, steps_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    dt = tl.load(dt_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    tl.store(steps_ptr + at, softplus(dt), mask=at < count)


@triton.jit
def _forward_kernel(
    u_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, lengths_ptr, initial_ptr, y_ptr, final_ptr, starts_ptr,
    u_b, u_t, dt_b, dt_t, B_b, B_t, C_b, C_t, time, channels, chunks,
    N: tl.constexpr, DP: tl.constexpr, DR: tl.constexpr, Q: tl.constexpr, GROUPS: tl.constexpr,
    REVERSE: tl.constexpr, PRECISE: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    d0 = tl.program_id(1) * (DP * DR)
    d = d0 + tl.arange(0, DP)[:, None] * DR + tl.arange(0, DR)[None]  # (DP, DR)
    n = tl.arange(0, N)
    at_state = d[:, :, None] * N + n[None, None]
    q = tl.arange(0, Q)
    block = d0 + tl.arange(0, DP * DR)
    length = time if lengths_ptr is None else tl.load(lengths_ptr + b).to(tl.int32)

    a = tl.load(A_ptr + at_state)
    if initial_ptr is None:
        h = tl.zeros((DP, DR, N), tl.float32)
    else:
        h = tl.load(initial_ptr + b * channels * N + at_state)
    for group in range(0, tl.cdiv(length, Q)):
        if KEEP and group % GROUPS == 0:
            tl.store(starts_ptr + (b * chunks + group // GROUPS) * channels * N + at_state, h)
        outputs = ()
        for i in tl.static_range(Q):
            step = group * Q + i
            t = frame_at(step, length, REVERSE)
            u = tl.load(u_ptr + b * u_b + t * u_t + d).to(tl.float32)
            # A step of 0 lets the state stand still.
            delta = tl.load(dt_ptr + b * dt_b + t * dt_t + d, mask=step < length, other=0.0).to(tl.float32)
            B_t_ = tl.load(B_ptr + b * B_b + t * B_t + n)
            C_t_ = tl.load(C_ptr + b * C_b + t * C_t + n)
            h = _decayed(h, delta[:, :, None] * a, PRECISE) + (delta * u)[:, :, None] * B_t_[None, None]
            outputs = _appended(outputs, tl.sum(h * C_t_[None, None], 2))
        y = _stacked(outputs, Q).reshape(DP * DR, Q)
        steps = group * Q + q
        ts = frame_at(steps, length, REVERSE)
        if D_ptr is not None:
            u_block = tl.load(u_ptr + b * u_b + ts[None] * u_t + block[:, None]).to(tl.float32)
            y += tl.load(D_ptr + block)[:, None] * u_block
        to = y_ptr + (b * time + ts[None]) * channels + block[:, None]
        tl.store(to, y.to(y_ptr.dtype.element_ty), mask=(steps < length)[None])
    tl.store(final_ptr + b * channels * N + at_state, h)


@triton.jit
def _backward_kernel(
    grad_ptr, grad_final_ptr, u_ptr, dt_ptr, raw_ptr, A_ptr, B_ptr, C_ptr, D_ptr, lengths_ptr, starts_ptr,
    du_ptr, ddt_ptr, dA_ptr, dB_ptr, dC_ptr, dD_ptr, dinitial_ptr,
    grad_b, grad_t, u_b, u_t, dt_b, dt_t, raw_b, raw_t, B_b, B_t, C_b, C_t, time, channels, chunks,
    N: tl.constexpr, DP: tl.constexpr, DR: tl.constexpr, WARPS: tl.constexpr, Q: tl.constexpr, GROUPS: tl.constexpr,
    REVERSE: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    d0 = tl.program_id(1) * (DP * DR)
    d = d0 + tl.arange(0, DP)[:, None] * DR + tl.arange(0, DR)[None]  # (DP, DR)
    n = tl.arange(0, N)
    at_state = d[:, :, None] * N + n[None, None]
    q = tl.arange(0, Q)
    block = d0 + tl.arange(0, DP * DR)
    length = time if lengths_ptr is None else tl.load(lengths_ptr + b).to(tl.int32)
    slab = (tl.program_id(1).to(tl.int64) * tl.num_programs(0) + b) * time * N

    a = tl.load(A_ptr + at_state)
    if grad_final_ptr is None:
        g = tl.zeros((DP, DR, N), tl.float32)  # d loss / d state, after the frame and then before it
    else:
        g = tl.load(grad_final_ptr + b * channels * N + at_state)
    dA = tl.zeros((DP, DR, N), tl.float32)
    dD = tl.zeros((DP * DR,), tl.float32)
    groups = tl.cdiv(length, Q)
    for back in range(0, groups):
        group = groups - 1 - back
        chunk = group // GROUPS
        h = tl.load(starts_ptr + (b * chunks + chunk) * channels * N + at_state)
        for step in range(chunk * GROUPS * Q, group * Q):
            t = frame_at(step, length, REVERSE)
            u = tl.load(u_ptr + b * u_b + t * u_t + d).to(tl.float32)
            delta = tl.load(dt_ptr + b * dt_b + t * dt_t + d).to(tl.float32)
            B_t_ = tl.load(B_ptr + b * B_b + t * B_t + n)
            h = _decayed(h, delta[:, :, None] * a, PRECISE) + (delta * u)[:, :, None] * B_t_[None, None]

        before = ()
        sums = ()
        for i in tl.static_range(Q):
            step = group * Q + i
            t = frame_at(step, length, REVERSE)
            u = tl.load(u_ptr + b * u_b + t * u_t + d).to(tl.float32)
            delta = tl.load(dt_ptr + b * dt_b + t * dt_t + d, mask=step < length, other=0.0).to(tl.float32)
            dy = tl.load(grad_ptr + b * grad_b + t * grad_t + d).to(tl.float32)
            B_t_ = tl.load(B_ptr + b * B_b + t * B_t + n)
            before = _appended(before, h)
            h = _decayed(h, delta[:, :, None] * a, PRECISE) + (delta * u)[:, :, None] * B_t_[None, None]
            # Over a thread's channels and the lanes; over the warps, who must wait for each other, once a group.
            part = tl.sum(h * dy[:, :, None], 1).reshape(WARPS, DP // WARPS, N)
            sums = _appended(sums, tl.sum(part, 1))
        steps = group * Q + q
        ts = frame_at(steps, length, REVERSE)
        inside = (steps < length)[None]
        dC = tl.sum(_stacked(sums, Q).reshape(WARPS, N, Q), 0)
        tl.store(dC_ptr + slab + ts[None] * N + n[:, None], dC, mask=inside)

        sums = ()
        of_input = ()
        of_exponent = ()
        for i in tl.static_range(Q):
            step = group * Q + Q - 1 - i
            t = frame_at(step, length, REVERSE)
            u = tl.load(u_ptr + b * u_b + t * u_t + d).to(tl.float32)
            delta = tl.load(dt_ptr + b * dt_b + t * dt_t + d, mask=step < length, other=0.0).to(tl.float32)
            dy = tl.load(grad_ptr + b * grad_b + t * grad_t + d).to(tl.float32)
            B_t_ = tl.load(B_ptr + b * B_b + t * B_t + n)
            C_t_ = tl.load(C_ptr + b * C_b + t * C_t + n, mask=step < length, other=0.0)
            g += dy[:, :, None] * C_t_[None, None]
            part = tl.sum(g * (delta * u)[:, :, None], 1).reshape(WARPS, DP // WARPS, N)
            sums = _prepended(tl.sum(part, 1), sums)
            of_input = _prepended(tl.sum(g * B_t_[None, None], 2), of_input)
            g = _decayed(g, delta[:, :, None] * a, PRECISE)
            of_decay = g * before[Q - 1 - i]  # d loss / d (dt A)
            of_exponent = _prepended(tl.sum(of_decay * a, 2), of_exponent)
            dA += of_decay * delta[:, :, None]
        dB = tl.sum(_stacked(sums, Q).reshape(WARPS, N, Q), 0)
        tl.store(dB_ptr + slab + ts[None] * N + n[:, None], dB, mask=inside)

        dinput = _stacked(of_input, Q).reshape(DP * DR, Q)
        ddelta = _stacked(of_exponent, Q).reshape(DP * DR, Q) * LN2
        t_, d_ = ts[None], block[:, None]
        u_block = tl.load(u_ptr + b * u_b + t_ * u_t + d_, mask=inside, other=0.0).to(tl.float32)
        delta_block = tl.load(dt_ptr + b * dt_b + t_ * dt_t + d_, mask=inside, other=0.0).to(tl.float32)
        ddelta += dinput * u_block
        if raw_ptr is not None:
            raw = tl.load(raw_ptr + b * raw_b + t_ * raw_t + d_, mask=inside, other=0.0).to(tl.float32)
            ddelta *= sigmoid(raw)
        du = dinput * delta_block
        if D_ptr is not None:
            dy_block = tl.load(grad_ptr + b * grad_b + t_ * grad_t + d_, mask=inside, other=0.0).to(tl.float32)
            du += tl.load(D_ptr + block)[:, None] * dy_block
            dD += tl.sum(u_block * dy_block, 1)
        to = (b * time + t_) * channels + d_
        tl.store(du_ptr + to, du.to(du_ptr.dtype.element_ty), mask=inside)
        tl.store(ddt_ptr + to, ddelta.to(ddt_ptr.dtype.element_ty), mask=inside)
    tl.store(dA_ptr + b * channels * N + at_state, dA)
    tl.store(dinitial_ptr + b * channels * N + at_state, g)
    if D_ptr is not None:
        tl.store(dD_ptr + b * channels + block, dD)


class SelectiveScan:
    """Implements the kernel's contract of `mode_ssm.ops.selective_scan` on a GPU for float32, bf16 and fp16."""

    def __init__(self, tiling: Tiling | None = None) -> None:
        self._tiling = tiling

    def starts_shape(self, u: Tensor, A: Tensor) -> tuple[int, ...]:
        """States at chunk starts `(B, K, Dp, Np)`, D and N padded."""
        tiling, width, block = self._sizes(A)
        frames = tiling.frames * tiling.groups
        return (u.shape[0], triton.cdiv(u.shape[1], frames), A.shape[0] + -A.shape[0] % block, width)

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
        batch, time, channels = u.shape
        _, chunks, padded, width = self.starts_shape(u, A)
        y = blank(u, (batch, time, padded), lengths)
        final = A.new_empty(batch, padded, width)
        starts = A.new_empty(self.starts_shape(u, A) if keep else (0,))
        initial = None if initial_state is None else self._states(initial_state, A)
        with device_of(u):
            u_, dt_, A_, B_, C_, D_ = self._inputs(u, dt, A, B, C, D, softplus)
            _forward_kernel[self._grid(u, A)](
                u_, dt_, A_, B_, C_, D_, lengths, initial, y, final, starts,
                *_strides(u_, dt_, B_, C_), time, padded, chunks,
                **self._constants(A), REVERSE=reverse, PRECISE=u.dtype == torch.float32, KEEP=keep,
            )  # fmt: skip
        return y[..., :channels].contiguous(), final[:, :channels, : A.shape[1]].contiguous(), starts

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
        batch, time, channels = u.shape
        _, chunks, padded, width = self.starts_shape(u, A)
        grid = self._grid(u, A)
        du = blank(u, (batch, time, padded), lengths)
        ddt = blank(dt, (batch, time, padded), lengths)
        dB, dC = A.new_empty(2, grid[1], batch, time, width)
        dA, dinitial = A.new_empty(batch, padded, width), A.new_empty(batch, padded, width)
        dD = A.new_empty((batch, padded) if D is not None else (0, 0))
        final = None if grad_final is None else self._states(grad_final, A)
        tiling, _, block = self._sizes(A)
        with device_of(u):
            u_, dt_, A_, B_, C_, D_ = self._inputs(u, dt, A, B, C, D, softplus)
            grad = readable(pad_last(grad_y, block))
            raw = readable(pad_last(dt, block)) if softplus else None
            _backward_kernel[grid](
                grad, final, u_, dt_, raw, A_, B_, C_, D_, lengths, starts,
                du, ddt, dA, dB, dC, dD, dinitial,
                *_strides(grad, u_, dt_, dt_ if raw is None else raw, B_, C_), time, padded, chunks,
                **self._constants(A), WARPS=tiling.warps, REVERSE=reverse, PRECISE=u.dtype == torch.float32,
            )  # fmt: skip
        N = A.shape[1]
        return (
            du[..., :channels].contiguous(),
            ddt[..., :channels].contiguous(),
            dA.sum(0)[:channels, :N].contiguous(),
            summed_slabs(dB, lengths, N, B.dtype),
            summed_slabs(dC, lengths, N, C.dtype),
            dD.sum(0)[:channels],
            dinitial[:, :channels, :N].contiguous(),
        )

    def _sizes(self, A: Tensor) -> tuple[Tiling, int, int]:
        """The tiling, and the state width and the channels of a block that its tiles hold."""
        width = power_of_two(A.shape[1], least=16)
        tiling = self._tiling or Tiling.of_width(width)
        return tiling, width, tiling.positions(width) * tiling.channels

    def _grid(self, u: Tensor, A: Tensor) -> tuple[int, int]:
        return u.shape[0], triton.cdiv(A.shape[0], self._sizes(A)[2])

    def _constants(self, A: Tensor) -> dict[str, int]:
        tiling, width, _ = self._sizes(A)
        sizes = {"N": width, "DP": tiling.positions(width), "DR": tiling.channels}
        return sizes | {"Q": tiling.frames, "GROUPS": tiling.groups, "num_warps": tiling.warps}

    def _states(self, states: Tensor, A: Tensor) -> Tensor:
        """`(..., D, N)` to the kernel's padded `(..., Dp, Np)` in float32."""
        _, width, block = self._sizes(A)
        return pad_last(pad_last(states.float(), width).mT, block).mT.contiguous()

    def _inputs(
        self, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, softplus: bool
    ) -> tuple[Tensor | None, ...]:
        """Padded, the steps positive, and `A` times log2(e) because the kernels decay by powers of two.

        What is padded with zeros stays zero: channels without input, and states that neither decay nor are read.
        `B` and `C` are small and read by every block of channels: they are widened here, once.
        """
        _, width, block = self._sizes(A)
        steps = _positive(dt) if softplus else dt
        return (
            readable(pad_last(u, block)),
            readable(pad_last(steps, block)),
            self._states(A * LOG2E, A),
            readable(pad_last(B.float(), width)),
            readable(pad_last(C.float(), width)),
            None if D is None else pad_last(D.float(), block).contiguous(),
        )


def _positive(dt: Tensor) -> Tensor:
    """`softplus(dt)` in float32. Here and not in the scan, where the lanes that share a channel would repeat it."""
    dt = dt.contiguous()
    steps = torch.empty(dt.shape, dtype=torch.float32, device=dt.device)
    block = 1024
    _softplus_kernel[(triton.cdiv(dt.numel(), block),)](dt, steps, dt.numel(), BLOCK=block)
    return steps


def _strides(*tensors: Tensor | None) -> list[int]:
    """Batch and frame strides of `(B, T, width)` tensors."""
    return [stride for tensor in tensors if tensor is not None for stride in tensor.stride()[:2]]
