"""The transducer loss in plain torch: what runs where no kernel does, and in float64.

Shapes: B batch, T frames, U labels, V classes, `U1 = U + 1`, `T1 = T + 1`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mode_ssm.ops.lengths import length_mask


class TransducerLoss:
    """Implements the kernel's contract of `mode_ssm.ops.transducer_loss` for any device, float32 and float64.

    The recursions run over anti-diagonals of the lattice, all rows at once and both directions in one.
    """

    def kept_shape(self, logits: Tensor) -> tuple[int, ...]:
        """The uses of blank and label: how often alignments take each arc, `(2, B, T, U1)`."""
        return (2, *logits.shape[:3])

    def forward(
        self, logits: Tensor, targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor, blank: int, keep: bool
    ) -> tuple[Tensor, Tensor]:
        batch, time, nodes, _ = logits.shape
        read = length_mask(logit_lengths, time)[:, :, None]
        more = length_mask(target_lengths, nodes)[:, None]  # (B, 1, U1), nodes that have a label to come
        last = torch.arange(nodes, device=logits.device) == target_lengths[:, None, None]
        index = _next_label(logits, targets, target_lengths, blank)
        # In float64 from here on. Logits may be far larger than what they tell apart, and sums over hundreds of frames
        # would be off by 0.5 % in float32, and gradients with them; the lattice is small.
        largest = logits.amax(-1)
        log_sum = (logits - largest[..., None]).exp_().sum(-1).log_().double() + largest
        blanks = logits[..., blank].double() - log_sum
        emits = logits.gather(-1, index)[..., 0].double() - log_sum

        # Every row's lattice is continued by arcs of probability 1 from its own end along its last column and then
        # along the extra row T, so that all rows end in one corner, (T, U), and need no bookkeeping of their own.
        blanks = blanks.masked_fill(~(read & (more | last)), -math.inf)
        blanks = F.pad(blanks.masked_fill(~read & last, 0.0), (0, 0, 0, 1), value=-math.inf)  # (B, T1, U1)
        emits = emits.masked_fill(~(read & more), -math.inf)
        emits = torch.cat([emits, torch.zeros_like(emits[:, :1]).masked_fill(more, -math.inf)], dim=1)  # likewise

        # Backwards from the corner is forwards on the flipped lattice, so both recursions share each step.
        by_blank = torch.cat([F.pad(blanks[:, :-1], (0, 0, 1, 0), value=-math.inf), blanks.flip(1, 2)])
        by_label = torch.cat([F.pad(emits[:, :, :-1], (1, 0), value=-math.inf), emits.flip(1, 2)])
        alpha, beta = _log_path_sums(by_blank, by_label).split(batch)
        beta = beta.flip(1, 2)
        log_likelihood = beta[:, :1, :1]
        kept = logits.new_empty(0)
        if keep:
            reached = alpha[:, :time] - log_likelihood.masked_fill(log_likelihood == -math.inf, math.inf)
            blank_use = (reached + blanks[:, :time] + beta[:, 1:]).masked_fill_(~read, -math.inf)
            label_use = reached + emits[:, :time] + F.pad(beta[:, :time, 1:], (0, 1), value=-math.inf)
            kept = torch.stack([_probability(log_use.to(logits.dtype)) for log_use in (blank_use, label_use)])
        return -log_likelihood[:, 0, 0].to(logits.dtype), kept

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
        blank_use, label_use = (kept * grad[:, None, None]).unbind()
        grad_logits = torch.softmax(logits, dim=-1).mul_((blank_use + label_use)[..., None])
        grad_logits[..., blank] -= blank_use
        index = _next_label(logits, targets, target_lengths, blank)
        return grad_logits.scatter_add_(-1, index, -label_use[..., None])


def _next_label(logits: Tensor, targets: Tensor, target_lengths: Tensor, blank: int) -> Tensor:
    """The class `(B, T, U1, 1)` that leads on from each node; the blank where no label is to come."""
    _, time, nodes, _ = logits.shape
    labels = F.pad(targets.long(), (0, 1)).masked_fill(~length_mask(target_lengths, nodes), blank)
    return labels[:, None].expand(-1, time, -1)[..., None]


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
