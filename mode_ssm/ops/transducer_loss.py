"""The RNN transducer loss: the negative log-likelihood of a label sequence, summed over all its alignments.

Shapes: B batch, T frames, U labels, V classes, `U1 = U + 1`. A node `(t, u)` of the lattice means that frame `t` is
read and `u` labels are out. A blank moves to `(t + 1, u)`, the next label to `(t, u + 1)`; an alignment starts at
`(0, 0)` and ends with the blank that leaves `(T - 1, U)`.
"""

from typing import Any

import torch
from torch import Tensor

from mode_ssm.ops import backends
from mode_ssm.ops.lengths import length_mask


def transducer_loss(
    logits: Tensor, targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor, blank: int = 0
) -> Tensor:
    """Negative log-likelihood of each row (Graves 2012, sections 2.4 and 2.5), on the backend that `backends` chose.

    The recursions run in float64 and the gradient with respect to the logits is analytic: besides the logits, a few
    numbers a node are kept for it. Differentiable once. Compiles into a larger graph without a break.

    Args:
        logits: `(B, T, U + 1, V)`, unnormalised; padding may hold any finite value and receives zero gradient.
        targets: `(B, U)` integer class ids; entries behind a row's length are ignored.
        logit_lengths: `(B,)` integer, valid frames, `1 <= length <= T`.
        target_lengths: `(B,)` integer, valid labels, `0 <= length <= U`.
        blank: class id of the blank.

    Returns:
        `(B,)` in nats, in float32 at least. A row whose every alignment has probability zero has loss `inf` and zero
        gradient.

    Raises:
        ValueError: shapes that disagree, a length out of range, or a target that is the blank or no class.
    """
    check_shapes(logits.shape, targets, logit_lengths, target_lengths, blank)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    backend = backends.choose("transducer_loss", wide.device.type, wide.dtype)
    keep = torch.is_grad_enabled() and wide.requires_grad
    loss, _ = loss_forward(wide, targets, logit_lengths, target_lengths, blank, keep, backend)
    return loss


def check_shapes(shape: torch.Size, targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor, blank: int) -> None:
    """Raises `ValueError` for what does not fit logits of that shape."""
    if len(shape) != 4:
        raise ValueError(f"logits must be (B, T, U + 1, V), got {tuple(shape)}")
    batch, _, nodes, classes = shape
    if targets.shape != (batch, nodes - 1):
        raise ValueError(f"targets must be (B, U) = {(batch, nodes - 1)} to fit the logits, got {tuple(targets.shape)}")
    if not 0 <= blank < classes:
        raise ValueError(f"blank = {blank} is no class; logits have classes 0 .. {classes - 1}")
    for name, lengths in (("logit_lengths", logit_lengths), ("target_lengths", target_lengths)):
        if lengths.shape != (batch,):
            raise ValueError(f"{name} must be (B,) = {(batch,)}, got {tuple(lengths.shape)}")


def check_values(shape: torch.Size, targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor, blank: int) -> None:
    """Raises `ValueError` for lengths out of range and targets that are the blank or no class."""
    _, time, nodes, classes = shape
    for name, lengths, low, high in (
        ("logit_lengths", logit_lengths, 1, time),
        ("target_lengths", target_lengths, 0, nodes - 1),
    ):
        if bool(((lengths < low) | (lengths > high)).any()):
            raise ValueError(f"{name} must lie in {low} .. {high}, got {lengths.tolist()}")
    unusable = (targets < 0) | (targets >= classes) | (targets == blank)
    if bool((unusable & length_mask(target_lengths, nodes - 1)).any()):
        raise ValueError(f"targets must be classes 0 .. {classes - 1} other than the blank {blank}")


@torch.library.custom_op("mode_ssm::transducer_loss", mutates_args=())
def loss_forward(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The loss, and what the backend keeps for the backward pass (empty unless `keep`)."""
    # Values are checked in here, where a compiled graph has them too: a kernel would read and write by them.
    check_values(logits.shape, targets, logit_lengths, target_lengths, blank)
    kernel = backends.kernel("transducer_loss", backend)
    return kernel.forward(logits, targets, logit_lengths, target_lengths, blank, keep)


@loss_forward.register_fake
def _(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    kept = backends.kernel("transducer_loss", backend).kept_shape(logits) if keep else (0,)
    return logits.new_empty(logits.shape[0]), logits.new_empty(kept)


@torch.library.custom_op("mode_ssm::transducer_loss_backward", mutates_args=())
def loss_backward(
    grad: Tensor,
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    kept: Tensor,
    blank: int,
    backend: str,
) -> Tensor:
    """The gradient of the logits."""
    kernel = backends.kernel("transducer_loss", backend)
    return kernel.backward(grad, logits, targets, logit_lengths, target_lengths, kept, blank)


@loss_backward.register_fake
def _(
    grad: Tensor,
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    kept: Tensor,
    blank: int,
    backend: str,
) -> Tensor:
    return logits.new_empty(logits.shape)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.set_materialize_grads(False)  # what is kept is as large as the lattice
    logits, targets, logit_lengths, target_lengths, blank, _, backend = inputs
    ctx.save_for_backward(logits, targets, logit_lengths, target_lengths, output[1])
    ctx.settings = (blank, backend)


def _differentiate(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple:
    grad_logits = None if grad is None else loss_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return (grad_logits, None, None, None, None, None, None)


loss_forward.register_autograd(_differentiate, setup_context=_setup_context)


def transducer_loss_reference(
    logits: Tensor, targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor, blank: int = 0
) -> Tensor:
    """`transducer_loss` node by node through autograd. Slow; for tests."""
    log_probs = torch.log_softmax(logits, dim=-1)
    losses = []
    for row in range(logits.shape[0]):
        time, labels = int(logit_lengths[row]), int(target_lengths[row])
        alpha: dict[tuple[int, int], Tensor] = {(0, 0): logits.new_zeros(())}
        for t in range(time):
            for u in range(labels + 1):
                arcs = []
                if t > 0:
                    arcs.append(alpha[t - 1, u] + log_probs[row, t - 1, u, blank])
                if u > 0:
                    arcs.append(alpha[t, u - 1] + log_probs[row, t, u - 1, targets[row, u - 1]])
                if arcs:
                    alpha[t, u] = torch.logsumexp(torch.stack(arcs), 0)
        losses.append(-alpha[time - 1, labels] - log_probs[row, time - 1, labels, blank])
    return torch.stack(losses)
