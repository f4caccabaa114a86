"""Output projection and cross-entropy in one, in bounded memory: logits of a chunk of rows exist at a time.

The softmax over a vocabulary dominates a small language model. Its gradient is known as soon as the logits are, so it
is computed with them and nothing of the size (N, V) is kept or read twice.

Most words are rare. With two levels the classes are the frequent ones and one that stands for all rare ones; a second
softmax tells the rare ones apart, and is computed for rows with such a target only. Probabilities stay exact
(hierarchical softmax: Goodman 2001; with levels by frequency: Grave et al. 2017).

Shapes: N rows, D width, V classes, of which the first F are frequent and the other R are rare.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mode_ssm.ops.lengths import few_sizes

CHUNK_ROWS = 512


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Sum over rows of -log softmax(hidden weight^T)[target]: a scalar in float32.

    hidden (N, D), weight (V, D), targets (N,) int64. Products run in autocast's type where autocast is on, the softmax
    in float32. Gradients of first order only.
    """
    return _LinearCrossEntropy.apply(hidden, weight, targets)


def linear_cross_entropy_reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The same with all logits at once."""
    return F.cross_entropy(hidden @ weight.T, targets, reduction="sum")


def linear_log_probs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log softmax(hidden weight^T)[target] (N,) by chunks, without gradients."""
    chunks = []
    with torch.no_grad():
        for rows, wanted in zip(hidden.split(CHUNK_ROWS), targets.split(CHUNK_ROWS), strict=True):
            padded = F.pad(rows, (0, 0, 0, few_sizes(len(rows)) - len(rows)))
            log_probs = F.log_softmax((padded @ weight.T)[: len(rows)], -1, dtype=_softmax_dtype(weight.dtype))
            chunks.append(log_probs.gather(1, wanted[:, None])[:, 0])
    return torch.cat(chunks)


def two_level_cross_entropy(hidden: Tensor, frequent: Tensor, rare: Tensor, targets: Tensor) -> Tensor:
    """Sum over rows of -log P(target): frequent (F + 1, D), whose last row stands for all rare ones; rare (R, D).

    Classes 0 .. F - 1 are the frequent ones, F .. F + R - 1 the rare ones. There may be none of these: R = 0.
    """
    first_rare = len(frequent) - 1
    is_rare = targets >= first_rare
    return linear_cross_entropy(hidden, frequent, targets.clamp(max=first_rare)) + linear_cross_entropy(
        hidden[is_rare], rare, targets[is_rare] - first_rare
    )


def two_level_log_probs(hidden: Tensor, frequent: Tensor, rare: Tensor, targets: Tensor) -> Tensor:
    """log P(target) (N,) as `two_level_cross_entropy` has it, by chunks, without gradients."""
    first_rare = len(frequent) - 1
    is_rare = targets >= first_rare
    log_probs = linear_log_probs(hidden, frequent, targets.clamp(max=first_rare))
    log_probs[is_rare] += linear_log_probs(hidden[is_rare], rare, targets[is_rare] - first_rare)
    return log_probs


def _softmax_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        with torch.autocast(kind, enabled=False):
            rows, matrix = hidden.to(dtype), weight.to(dtype)
            exact = _softmax_dtype(dtype)
            total = torch.zeros((), dtype=exact, device=hidden.device)
            with_gradient = any(ctx.needs_input_grad)
            grad_rows = torch.empty_like(rows) if with_gradient else None
            grad_weight = torch.zeros_like(weight) if with_gradient else None
            for first in range(0, len(rows), CHUNK_ROWS):
                part = slice(first, first + CHUNK_ROWS)
                log_probs = F.log_softmax(rows[part] @ matrix.T, -1, dtype=exact)
                wanted = targets[part, None]
                total -= log_probs.gather(1, wanted).sum()
                if grad_rows is not None and grad_weight is not None:
                    probs = log_probs.exp_()
                    probs.scatter_add_(1, wanted, -torch.ones_like(wanted, dtype=probs.dtype))
                    probs = probs.to(dtype)
                    grad_rows[part] = probs @ matrix
                    grad_weight += probs.T @ rows[part]
        if with_gradient:
            ctx.save_for_backward(grad_rows, grad_weight)
            ctx.hidden_dtype = hidden.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_rows, grad_weight = ctx.saved_tensors
        (scale,) = grad_outputs
        return (grad_rows * scale).to(ctx.hidden_dtype), grad_weight * scale, None
