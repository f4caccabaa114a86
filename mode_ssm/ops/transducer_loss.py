"""The RNN transducer loss: the negative log-likelihood of a label sequence, summed over all its alignments.

Shapes: B batch, T frames, U labels, V classes, `U1 = U + 1`. A node `(t, u)` of the lattice means that frame `t` is
read and `u` labels are out. A blank moves to `(t + 1, u)`, the next label to `(t, u + 1)`; an alignment starts at
`(0, 0)` and ends with the blank that leaves `(T - 1, U)`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mode_ssm.ops.lengths import length_mask


def transducer_loss(
    logits: Tensor, targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor, blank: int = 0
) -> Tensor:
    """Negative log-likelihood of each row (Graves 2012, sections 2.4 and 2.5), in nats.

    The forward and backward recursions run over anti-diagonals of the lattice, all rows at once; the gradient with
    respect to the logits is analytic. Differentiable once.

    Args:
        logits: `(B, T, U + 1, V)`, unnormalised; padding may hold any finite value and receives zero gradient.
        targets: `(B, U)` integer class ids; entries behind a row's length are ignored.
        logit_lengths: `(B,)` integer, valid frames, `1 <= length <= T`.
        target_lengths: `(B,)` integer, valid labels, `0 <= length <= U`.
        blank: class id of the blank.

    Returns:
        `(B,)` in float32 at least. A row whose every alignment has probability zero has loss `inf` and zero gradient.

    Raises:
        ValueError: shapes that disagree, a length out of range, or a target that is the blank or no class.
    """
    _check(logits, targets, logit_lengths, target_lengths, blank)
    loss: Tensor = _TransducerLoss.apply(  # type: ignore[no-untyped-call]
        logits, targets, logit_lengths, target_lengths, blank
    )
    return loss


def _check(logits: Tensor, targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor, blank: int) -> None:
    if logits.dim() != 4:
        raise ValueError(f"logits must be (B, T, U + 1, V), got {tuple(logits.shape)}")
    batch, time, nodes, classes = logits.shape
    if targets.shape != (batch, nodes - 1):
        raise ValueError(f"targets must be (B, U) = {(batch, nodes - 1)} to fit the logits, got {tuple(targets.shape)}")
    if not 0 <= blank < classes:
        raise ValueError(f"blank = {blank} is no class; logits have classes 0 .. {classes - 1}")
    for name, lengths, low, high in (
        ("logit_lengths", logit_lengths, 1, time),
        ("target_lengths", target_lengths, 0, nodes - 1),
    ):
        if lengths.shape != (batch,):
            raise ValueError(f"{name} must be (B,) = {(batch,)}, got {tuple(lengths.shape)}")
        if bool(((lengths < low) | (lengths > high)).any()):
            raise ValueError(f"{name} must lie in {low} .. {high}, got {lengths.tolist()}")
    unusable = (targets < 0) | (targets >= classes) | (targets == blank)
    if bool((unusable & length_mask(target_lengths, nodes - 1)).any()):
        raise ValueError(f"targets must be classes 0 .. {classes - 1} other than the blank {blank}")


class _TransducerLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor, blank: int
    ) -> Tensor:
        batch, time, nodes, _ = logits.shape
        log_probs = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
        read = length_mask(logit_lengths, time)[:, :, None]
        more = length_mask(target_lengths, nodes)[:, None]  # (B, 1, U1), nodes that have a label to come
        last = torch.arange(nodes, device=logits.device) == target_lengths[:, None, None]
        index = F.pad(targets.long(), (0, 1))[:, None].masked_fill(~more, blank).expand(-1, time, -1)[..., None]

        # Every row's lattice is continued by arcs of probability 1 from its own end along its last column and then
        # along the extra row T, so that all rows end in one corner, (T, U), and need no bookkeeping of their own.
        # In float32, sums over hundreds of frames are off by 0.5 %, and gradients with them; the lattice is small.
        blanks = log_probs[..., blank].double().masked_fill(~(read & (more | last)), -math.inf)
        blanks = F.pad(blanks.masked_fill(~read & last, 0.0), (0, 0, 0, 1), value=-math.inf)  # (B, T + 1, U1)
        emits = log_probs.gather(-1, index)[..., 0].double().masked_fill(~(read & more), -math.inf)
        emits = torch.cat([emits, torch.zeros_like(emits[:, :1]).masked_fill(more, -math.inf)], dim=1)  # likewise

        # Backwards from the corner is forwards on the flipped lattice, so both recursions share each step.
        by_blank = torch.cat([F.pad(blanks[:, :-1], (0, 0, 1, 0), value=-math.inf), blanks.flip(1, 2)])
        by_label = torch.cat([F.pad(emits[:, :, :-1], (1, 0), value=-math.inf), emits.flip(1, 2)])
        alpha, beta = _log_path_sums(by_blank, by_label).split(batch)
        beta = beta.flip(1, 2)
        log_likelihood = beta[:, :1, :1]
        if ctx.needs_input_grad[0]:
            reached = alpha[:, :time] - log_likelihood.masked_fill(log_likelihood == -math.inf, math.inf)
            blank_use = (reached + blanks[:, :time] + beta[:, 1:]).masked_fill_(~read, -math.inf)
            label_use = reached + emits[:, :time] + F.pad(beta[:, :time, 1:], (0, 1), value=-math.inf)
            uses = (_probability(log_use.to(log_probs.dtype)) for log_use in (blank_use, label_use))
            ctx.save_for_backward(log_probs, *uses, index)
            ctx.blank, ctx.dtype = blank, logits.dtype
        return -log_likelihood[:, 0, 0].to(log_probs.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        log_probs, blank_use, label_use, index = ctx.saved_tensors
        scale = grad[:, None, None]
        blank_use, label_use = blank_use * scale, label_use * scale
        grad_logits = log_probs.exp().mul_((blank_use + label_use)[..., None])
        grad_logits[..., ctx.blank] -= blank_use
        grad_logits.scatter_add_(-1, index, -label_use[..., None])
        return grad_logits.to(ctx.dtype), None, None, None, None


def _probability(log_probability: Tensor) -> Tensor:
    """`exp`, where less than 1e-26 counts as 0: around float32's denormal numbers it takes 20 times longer on a CPU."""
    return F.threshold(log_probability.clamp_(min=-60.0).exp_(), 1e-26, 0.0)


def _log_path_sums(by_blank: Tensor, by_label: Tensor) -> Tensor:
    """Log of the summed weight of all paths from node (0, 0) to each node.

    Args:
        by_blank: `(R, T1, U1)` log-weight of the arc that enters a node from `(t - 1, u)`.
        by_label: `(R, T1, U1)` log-weight of the arc that enters a node from `(t, u - 1)`.

    Returns:
        `(R, T1, U1)`.
    """
    rows, frames, nodes = by_blank.shape
    enter_blank, enter_label = _skew(by_blank).unbind(), _skew(by_label).unbind()
    # The extra first column stands for u = -1 and stays at log(0).
    sums = by_blank.new_full((frames + nodes - 1, rows, nodes + 1), -math.inf)
    sums[0, :, 1] = 0.0
    here, left = sums[:, :, 1:].unbind(), sums[:, :, :-1].unbind()
    stay, emit = torch.empty_like(by_blank[:, 0]), torch.empty_like(by_blank[:, 0])
    for n in range(1, len(here)):
        torch.add(here[n - 1], enter_blank[n], out=stay)
        torch.add(left[n - 1], enter_label[n], out=emit)
        torch.logaddexp(stay, emit, out=here[n])
    return _unskew(sums[:, :, 1:], frames)


def _skew(lattice: Tensor) -> Tensor:
    """`(R, T1, U1)` to anti-diagonals `(T1 + U1 - 1, R, U1)`: entry `[n, :, u]` is node `(n - u, u)`, or log(0)."""
    rows, frames, nodes = lattice.shape
    diagonals = frames + nodes - 1
    # A row that is one entry longer than its stride starts one entry later each time.
    columns = F.pad(lattice.mT, (0, nodes), value=-math.inf)  # (R, U1, diagonals + 1)
    return columns.flatten(1)[:, : nodes * diagonals].view(rows, nodes, diagonals).permute(2, 0, 1).contiguous()


def _unskew(diagonals: Tensor, frames: int) -> Tensor:
    """The inverse of `_skew`."""
    count, rows, nodes = diagonals.shape
    columns = F.pad(diagonals.permute(1, 2, 0).flatten(1), (0, nodes)).view(rows, nodes, count + 1)
    return columns[:, :, :frames].mT


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
