"""Shapes of an op's arguments, checked before a kernel reads memory by them, and padded to what it reads at a time."""

import torch.nn.functional as F
from torch import Tensor


def check_shapes(op: str, **wanted: tuple[Tensor | None, tuple[int, ...]]) -> None:
    """Raise `ValueError` for the first argument whose shape is not the one beside it; None fits any."""
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{op}: {name} must be {shape}, not {tuple(tensor.shape)}")


def check_lengths(op: str, lengths: Tensor | None, time: int) -> None:
    """Raise `ValueError` for a length outside of 0 .. `time`; on a GPU, which would have to be waited for, nothing."""
    if lengths is not None and lengths.is_cpu and bool(((lengths < 0) | (lengths > time)).any()):
        raise ValueError(f"{op}: lengths must lie in 0..{time}, not {lengths.tolist()}")


def pad_last(tensor: Tensor, multiple: int) -> Tensor:
    """Zeros behind the last dimension up to a multiple; the tensor itself where it is one already."""
    missing = -tensor.shape[-1] % multiple
    return F.pad(tensor, (0, missing)) if missing else tensor
