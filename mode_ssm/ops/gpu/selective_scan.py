"""The Mamba-1 scan in Triton: how its kernels are cut and launched.

Shapes: B batch, T padded length, D channels, N state width, K chunks; `Np` and `Dp` are N and D padded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from mode_ssm.ops.gpu.launch import blank, device_of, packed, power_of_two, readable, summed_slabs
from mode_ssm.ops.gpu.selective_scan_kernels import backward_kernel, forward_kernel, softplus_kernel
from mode_ssm.ops.shapes import pad_last

WARP = 32
NEIGHBOURS = 4  # states of one thread: a 16-byte access of float32
LOG2E = 1.4426950408889634


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
            forward_kernel[self._grid(u, A)](
                u_, dt_, A_, B_, C_, D_, packed(lengths), initial, y, final, starts,
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
            backward_kernel[grid](
                grad, final, u_, dt_, raw, A_, B_, C_, D_, packed(lengths), starts,
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
            packed(None if D is None else pad_last(D.float(), block)),
        )


def _positive(dt: Tensor) -> Tensor:
    """`softplus(dt)` in float32. Here and not in the scan, where the lanes that share a channel would repeat it."""
    dt = dt.contiguous()
    steps = torch.empty(dt.shape, dtype=torch.float32, device=dt.device)
    block = 1024
    softplus_kernel[(triton.cdiv(dt.numel(), block),)](dt, steps, dt.numel(), BLOCK=block)
    return steps


def _strides(*tensors: Tensor | None) -> list[int]:
    """Batch and frame strides of `(B, T, width)` tensors."""
    return [stride for tensor in tensors if tensor is not None for stride in tensor.stride()[:2]]
