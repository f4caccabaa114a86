"""The Mamba-2 scan of mamba-ssm's Triton kernels: lengths and direction, which they lack.

Shapes: B batch, T padded length, H heads, P head width, N state width.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from mode_ssm.ops.peers.order import in_frames, inside, turned
from mode_ssm.ops.peers.packages import load

CHUNK_FRAMES = 256  # as in their Mamba2 module
EXACT_DOT = ("ieee", "tf32x3")  # values of TRITON_F32_DEFAULT


class SSD:
    """`mamba_chunk_scan_combined`, for the contract of `mode_ssm.ops.ssd`."""

    def __init__(self) -> None:
        self._triton = load("ssd")

    def starts_shape(self, x: Tensor, A: Tensor, B: Tensor) -> tuple[int, ...]:
        """The initial state `(B, H, P, N)`: the chunks' own are computed again."""
        return (x.shape[0], *x.shape[2:], B.shape[2])

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
        inputs = self._inputs(x, dt, A, B, C, lengths, reverse)
        out, _, _, _, _, final = self._triton._mamba_chunk_scan_combined_fwd(
            *inputs, CHUNK_FRAMES, D=D, initial_states=initial_state
        )
        kept = A.new_empty(0)
        if keep:
            kept = A.new_zeros(self.starts_shape(x, A, B)) if initial_state is None else initial_state.clone()
        return in_frames(out, lengths, reverse), final.float(), kept

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
        starts: Tensor,
        reverse: bool,
    ) -> tuple[Tensor, ...]:
        inputs = self._inputs(x, dt, A, B, C, lengths, reverse)
        dout = turned(inside(grad_y.to(x.dtype), lengths), lengths, reverse)
        dx, ddt, dA, dB, dC, dD, _, _, dinitial, *_ = self._triton._mamba_chunk_scan_combined_bwd(
            dout,
            *inputs,
            inputs[0],  # the output, which is read only where there is a gate
            CHUNK_FRAMES,
            D=D,
            initial_states=starts,
            dfinal_states=grad_final,
        )
        timed = [in_frames(grad, lengths, reverse) for grad in (dx, ddt, dB[:, :, 0], dC[:, :, 0])]
        skip = dD.float() if D is not None else A.new_empty(0)
        return (*timed[:2], dA, *timed[2:], skip, dinitial.float())

    def _inputs(
        self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, lengths: Tensor | None, reverse: bool
    ) -> tuple[Tensor, ...]:
        """x `(B, T, H, P)`, dt, A, B and C `(B, T, 1, N)`."""
        require_exact_products(x.dtype, x.device.type)
        timed = (x, inside(dt, lengths), B, C)
        x_, dt_, B_, C_ = (turned(tensor, lengths, reverse).contiguous() for tensor in timed)
        return x_, dt_, A, B_[:, :, None], C_[:, :, None]


def require_exact_products(dtype: torch.dtype, device: str) -> None:
    """Raise `ValueError` where their Triton kernels would multiply float32 in TF32, as Triton does unless told."""
    if device == "cuda" and dtype == torch.float32 and os.environ.get("TRITON_F32_DEFAULT") not in EXACT_DOT:
        raise ValueError(
            "mamba-ssm's ssd multiplies float32 in TF32, off by 1e-3; set TRITON_F32_DEFAULT=ieee, give it bf16, "
            "or choose another backend"
        )
