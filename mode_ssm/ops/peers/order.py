"""Between the order of a batch's frames and the order in which a scan reads them.

Shapes: B batch, T padded length.
"""

from __future__ import annotations

from torch import Tensor

from mode_ssm.ops.lengths import length_mask, reverse_within_lengths


def turned(tensor: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
    if not reverse:
        return tensor
    return tensor.flip(1) if lengths is None else reverse_within_lengths(tensor, lengths)


def inside(tensor: Tensor, lengths: Tensor | None, outside: float = 0.0) -> Tensor:
    """`(B, T, ...)` with `outside` in padding."""
    if lengths is None:
        return tensor
    mask = length_mask(lengths, tensor.shape[1]).view(*tensor.shape[:2], *[1] * (tensor.dim() - 2))
    return tensor.masked_fill(~mask, outside)


def in_frames(tensor: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
    """Back from scan order, zero in padding; contiguous, as the op's fake kernel promises."""
    return inside(turned(tensor, lengths, reverse), lengths).contiguous()
