"""The compiled transducer loss: tensors to pointers.

Shapes: B batch, T frames, U labels, V classes, `U1 = U + 1`.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from mode_ssm.ops.cpu.library import Library
from mode_ssm.ops.cpu.marshal import arguments


class _Arguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("logits", "targets", "frames", "labels")),
        *((name, ctypes.c_void_p) for name in ("loss", "kept", "grad", "dlogits")),
        *((name, ctypes.c_int64) for name in ("batch", "time", "nodes", "classes", "blank")),
        ("threads", ctypes.c_int32),
    ]


class TransducerLoss:
    """Implements the kernel's contract of `mode_ssm.ops.transducer_loss` for float32 on the CPU."""

    def __init__(self, library: Library) -> None:
        self._forward = library.function("transducer_loss_forward")
        self._backward = library.function("transducer_loss_backward")

    def kept_shape(self, logits: Tensor) -> tuple[int, ...]:
        """Per node the largest logit, the softmax's scale times both uses, and the uses of blank and label,
        `(4, B, T, U1)`."""
        return (4, *logits.shape[:3])

    def forward(
        self, logits: Tensor, targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor, blank: int, keep: bool
    ) -> tuple[Tensor, Tensor]:
        inputs = _inputs(logits, targets, logit_lengths, target_lengths)
        loss = logits.new_empty(logits.shape[0])
        kept = logits.new_zeros(self.kept_shape(logits) if keep else (0,))
        call = arguments(_Arguments, **inputs, **_sizes(logits, blank), loss=loss, kept=kept if keep else None)
        self._forward(ctypes.byref(call))
        return loss, kept

    def backward(
        self,
        grad: Tensor,
        logits: Tensor,
        targets: Tensor,
        logit_lengths: Tensor,
        target_lengths: Tensor,
        kept: Tensor,
        blank: int,
    ) -> Tensor:
        inputs = _inputs(logits, targets, logit_lengths, target_lengths)
        grad, kept, grad_logits = grad.contiguous(), kept.contiguous(), logits.new_empty(logits.shape)
        call = arguments(_Arguments, **inputs, **_sizes(logits, blank), grad=grad, kept=kept, dlogits=grad_logits)
        self._backward(ctypes.byref(call))
        return grad_logits


def _inputs(logits: Tensor, targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor) -> dict[str, Tensor]:
    whole = {"targets": targets, "frames": logit_lengths, "labels": target_lengths}
    return {"logits": logits.contiguous()} | {name: value.to(torch.int64).contiguous() for name, value in whole.items()}


def _sizes(logits: Tensor, blank: int) -> dict[str, int]:
    batch, time, nodes, classes = logits.shape
    return {"batch": batch, "time": time, "nodes": nodes, "classes": classes, "blank": blank}
