"""The Mamba-1 scan in Triton, the kernels: states stay in registers for the whole length of a row.

A program runs a block of channels of one row. Its tile of states is `(DP, DR, N)`: the compiler deals the last
dimension out as 4 neighbours to a thread, the first over the other lanes and the warps, and keeps the middle one in
registers. A thread so owns DR channels that are neighbours in memory, and sums over channels and over states take as
few exchanges between lanes as they can. Frames come in groups of Q, unrolled, which are read and written as one tile.
Shapes: B batch, T padded length, D channels, N state width, K chunks of GROUPS groups.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mode_ssm.ops.gpu.elementwise import decayed, frame_at, sigmoid, softplus
from mode_ssm.ops.gpu.registers import appended, prepended, stacked

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _decayed(state, exponent, PRECISE: tl.constexpr):
    """`2^exponent * state`. PRECISE for float32 inputs: the others do not hold what it saves."""
    if PRECISE:
        return decayed(state, exponent)
    else:
        return tl.exp2(exponent) * state


@triton.jit
def softplus_kernel(dt_ptr, steps_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    dt = tl.load(dt_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    tl.store(steps_ptr + at, softplus(dt), mask=at < count)


@triton.jit
def _moved(
    h, a, u_row, dt_row, B_row, step, length, d, n, u_t, dt_t, B_t, REVERSE: tl.constexpr, PRECISE: tl.constexpr
):
    """The states behind the frame read at `step`. Behind the last one the step is 0 and the state stands still."""
    t = frame_at(step, length, REVERSE)
    u = tl.load(u_row + t * u_t + d).to(tl.float32)
    # A whole block for a mask, because Triton 3.9's interpreter takes no single number.
    delta = tl.load(dt_row + t * dt_t + d, mask=0 * d + step < length, other=0.0).to(tl.float32)
    B = tl.load(B_row + t * B_t + n)
    return _decayed(h, delta[:, :, None] * a, PRECISE) + (delta * u)[:, :, None] * B[None, None]


@triton.jit
def forward_kernel(
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
    block = d0 + tl.arange(0, DP * DR)
    length = time if lengths_ptr is None else tl.load(lengths_ptr + b).to(tl.int32)
    u_row, dt_row, B_row, C_row = u_ptr + b * u_b, dt_ptr + b * dt_b, B_ptr + b * B_b, C_ptr + b * C_b

    a = tl.load(A_ptr + at_state)
    h = tl.zeros((DP, DR, N), tl.float32) if initial_ptr is None else tl.load(initial_ptr + b * channels * N + at_state)
    for group in range(0, tl.cdiv(length, Q)):
        if KEEP and group % GROUPS == 0:
            tl.store(starts_ptr + (b * chunks + group // GROUPS) * channels * N + at_state, h)
        outputs = ()
        for i in tl.static_range(Q):
            step = group * Q + i
            h = _moved(h, a, u_row, dt_row, B_row, step, length, d, n, u_t, dt_t, B_t, REVERSE, PRECISE)
            C = tl.load(C_row + frame_at(step, length, REVERSE) * C_t + n)
            outputs = appended(outputs, tl.sum(h * C[None, None], 2))
        y = stacked(outputs, Q).reshape(DP * DR, Q)
        steps = group * Q + tl.arange(0, Q)
        t = frame_at(steps, length, REVERSE)[None]
        if D_ptr is not None:
            u = tl.load(u_row + t * u_t + block[:, None]).to(tl.float32)
            y += tl.load(D_ptr + block)[:, None] * u
        to = y_ptr + (b * time + t) * channels + block[:, None]
        tl.store(to, y.to(y_ptr.dtype.element_ty), mask=(steps < length)[None])
    tl.store(final_ptr + b * channels * N + at_state, h)


@triton.jit
def backward_kernel(
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
    block = d0 + tl.arange(0, DP * DR)
    length = time if lengths_ptr is None else tl.load(lengths_ptr + b).to(tl.int32)
    u_row, dt_row, grad_row = u_ptr + b * u_b, dt_ptr + b * dt_b, grad_ptr + b * grad_b
    B_row, C_row = B_ptr + b * B_b, C_ptr + b * C_b
    slab = (tl.program_id(1).to(tl.int64) * tl.num_programs(0) + b) * time * N

    a = tl.load(A_ptr + at_state)
    if grad_final_ptr is None:
        g = tl.zeros((DP, DR, N), tl.float32)  # d loss / d state, behind the frame and then before it
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
            h = _moved(h, a, u_row, dt_row, B_row, step, length, d, n, u_t, dt_t, B_t, REVERSE, PRECISE)

        steps = group * Q + tl.arange(0, Q)
        inside = (steps < length)[None]
        ts = frame_at(steps, length, REVERSE)[None]
        before = ()
        sums = ()
        for i in tl.static_range(Q):
            step = group * Q + i
            before = appended(before, h)
            h = _moved(h, a, u_row, dt_row, B_row, step, length, d, n, u_t, dt_t, B_t, REVERSE, PRECISE)
            dy = tl.load(grad_row + frame_at(step, length, REVERSE) * grad_t + d).to(tl.float32)
            # Over a thread's channels and over lanes; over the warps, who wait for each other there, once a group.
            part = tl.sum(h * dy[:, :, None], 1).reshape(WARPS, DP // WARPS, N)
            sums = appended(sums, tl.sum(part, 1))
        dC = tl.sum(stacked(sums, Q).reshape(WARPS, N, Q), 0)
        tl.store(dC_ptr + slab + ts * N + n[:, None], dC, mask=inside)

        sums = ()
        of_input = ()
        of_exponent = ()
        for i in tl.static_range(Q):
            step = group * Q + Q - 1 - i
            t = frame_at(step, length, REVERSE)
            u = tl.load(u_row + t * u_t + d).to(tl.float32)
            delta = tl.load(dt_row + t * dt_t + d, mask=0 * d + step < length, other=0.0).to(tl.float32)
            dy = tl.load(grad_row + t * grad_t + d).to(tl.float32)
            B = tl.load(B_row + t * B_t + n)
            C = tl.load(C_row + t * C_t + n, mask=0 * n + step < length, other=0.0)
            g += dy[:, :, None] * C[None, None]
            part = tl.sum(g * (delta * u)[:, :, None], 1).reshape(WARPS, DP // WARPS, N)
            sums = prepended(tl.sum(part, 1), sums)
            of_input = prepended(tl.sum(g * B[None, None], 2), of_input)
            g = _decayed(g, delta[:, :, None] * a, PRECISE)
            of_decay = g * before[Q - 1 - i]  # d loss / d (dt A)
            of_exponent = prepended(tl.sum(of_decay * a, 2), of_exponent)
            dA += of_decay * delta[:, :, None]
        dB = tl.sum(stacked(sums, Q).reshape(WARPS, N, Q), 0)
        tl.store(dB_ptr + slab + ts * N + n[:, None], dB, mask=inside)

        dinput = stacked(of_input, Q).reshape(DP * DR, Q)
        ddelta = stacked(of_exponent, Q).reshape(DP * DR, Q) * LN2
        u_ = tl.load(u_row + ts * u_t + block[:, None], mask=inside, other=0.0).to(tl.float32)
        delta_ = tl.load(dt_row + ts * dt_t + block[:, None], mask=inside, other=0.0).to(tl.float32)
        ddelta += dinput * u_
        if raw_ptr is not None:
            raw_row = raw_ptr + b * raw_b
            raw = tl.load(raw_row + ts * raw_t + block[:, None], mask=inside, other=0.0).to(tl.float32)
            ddelta *= sigmoid(raw)
        du = dinput * delta_
        if D_ptr is not None:
            dy_ = tl.load(grad_row + ts * grad_t + block[:, None], mask=inside, other=0.0).to(tl.float32)
            du += tl.load(D_ptr + block)[:, None] * dy_
            dD += tl.sum(u_ * dy_, 1)
        to = (b * time + ts) * channels + block[:, None]
        tl.store(du_ptr + to, du.to(du_ptr.dtype.element_ty), mask=inside)
        tl.store(ddt_ptr + to, ddelta.to(ddt_ptr.dtype.element_ty), mask=inside)
    tl.store(dA_ptr + b * channels * N + at_state, dA)
    tl.store(dinitial_ptr + b * channels * N + at_state, g)
    if D_ptr is not None:
        tl.store(dD_ptr + b * channels + block, dD)
