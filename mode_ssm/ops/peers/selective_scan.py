"""The Mamba-1 scan of mamba-ssm's CUDA extension: its layouts, and lengths and direction, which it lacks.

Shapes: B batch, T padded length, D channels, N state width.
"""

from __future__ import annotations

from torch import Tensor

from mode_ssm.ops.peers.order import in_frames, inside, turned
from mode_ssm.ops.peers.packages import load

CHUNK_FRAMES = 2048  # of the extension, which keeps two numbers a state and chunk
NO_STEP = -1e4  # softplus of it is 0


class SelectiveScan:
    """`selective_scan_cuda`, for the contract of `mode_ssm.ops.selective_scan`.

    It takes no initial state and passes on no gradient of the final one.
    """

    def __init__(self) -> None:
        self._extension = load("selective_scan")

    def starts_shape(self, u: Tensor, A: Tensor) -> tuple[int, ...]:
        """What the extension keeps `(B, D, K, 2 N)`."""
        chunks = (u.shape[1] + CHUNK_FRAMES - 1) // CHUNK_FRAMES
        return (u.shape[0], u.shape[2], chunks, 2 * A.shape[1])

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
        if initial_state is not None:
            raise ValueError("mamba-ssm's selective_scan takes no initial state; choose another backend for it")
        inputs = self._inputs(u, dt, A, B, C, D, lengths, softplus, reverse)
        out, states, *_ = self._extension.fwd(*inputs, None, None, softplus)
        y = in_frames(out.mT, lengths, reverse)
        return y, states[:, :, -1, 1::2].clone(), states if keep else states.new_empty(0)

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
        if grad_final is not None and bool(grad_final.any()):
            raise ValueError("mamba-ssm's selective_scan has no gradient of the final state; choose another backend")
        inputs = self._inputs(u, dt, A, B, C, D, lengths, softplus, reverse)
        dout = turned(inside(grad_y.to(u.dtype), lengths), lengths, reverse).mT.contiguous()
        du, ddt, dA, dB, dC, dD, *_ = self._extension.bwd(
            *inputs, None, None, dout, starts.contiguous(), None, None, softplus, False
        )
        timed = [in_frames(grad.mT, lengths, reverse) for grad in (du, ddt, dB[:, 0], dC[:, 0])]
        skip = dD if D is not None else dA.new_empty(0)
        return (*timed[:2], dA, *timed[2:], skip, A.new_zeros(u.shape[0], *A.shape))

    def _inputs(
        self,
        u: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        lengths: Tensor | None,
        softplus: bool,
        reverse: bool,
    ) -> tuple[Tensor | None, ...]:
        """u and dt `(B, D, T)`, A, B and C `(B, 1, N, T)`, D."""
        dt = inside(dt, lengths, NO_STEP if softplus else 0.0)  # the state stands still in padding
        u_, dt_, B_, C_ = (turned(tensor, lengths, reverse).mT.contiguous() for tensor in (u, dt, B, C))
        return u_, dt_, A.contiguous(), B_[:, None], C_[:, None], None if D is None else D.contiguous()
