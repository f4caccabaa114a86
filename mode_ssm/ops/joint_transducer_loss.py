"""Joiner and transducer loss in one: activations and logits exist for a few frames of a few rows at a time.

At B 64, T 250, U 120, J 256 the activations alone would take 2 GB, and several times that with their gradients.
Shapes: B batch, T frames, U labels, J joint width, V classes, `U1 = U + 1`; n rows and f frames of a part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mode_ssm.ops import backends
from mode_ssm.ops.transducer_loss import check_shapes, check_values, loss_backward, loss_forward

CACHED_ELEMENTS = 2**17  # activations that a CPU thread works on at a time: half a megabyte, in its second-level cache


@torch.compiler.disable
def joint_transducer_loss(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = 0,
    *,
    max_elements: int = 2**26,
) -> Tensor:
    """`transducer_loss` of the logits `tanh(encoder[:, :, None] + predictor[:, None]) @ weight.T + bias`.

    Rows are grouped by length and padding is left out. Activations are computed again in the backward pass; logits too,
    unless those of the whole batch fit into `max_elements`. Differentiable once. Breaks a compiled graph: how the work
    is cut depends on the lengths.

    Args:
        encoder: `(B, T, J)`, projected; padding may hold any finite value and receives zero gradient.
        predictor: `(B, U + 1, J)`, likewise.
        weight: `(V, J)`.
        bias: `(V,)`.
        targets: `(B, U)` integer class ids; entries behind a row's length are ignored.
        logit_lengths: `(B,)` integer, valid frames, `1 <= length <= T`.
        target_lengths: `(B,)` integer, valid labels, `0 <= length <= U`.
        blank: class id of the blank.
        max_elements: the most that an intermediate holds at a time; a single row's logits may exceed it.

    Returns:
        `(B,)` in nats. The joiner computes in the dtype of encoder and predictor, under autocast in autocast's; the
        loss in float32 at least.

    Raises:
        ValueError: shapes that disagree, a length out of range, or a target that is the blank or no class.
    """
    _check_joint(encoder, predictor, weight, bias)
    lattice = torch.Size((*encoder.shape[:2], predictor.shape[1], len(weight)))
    check_shapes(lattice, targets, logit_lengths, target_lengths, blank)
    check_values(lattice, targets, logit_lengths, target_lengths, blank)
    device = encoder.device.type
    dtype = torch.promote_types(encoder.dtype, predictor.dtype)
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    parameters = (encoder.to(dtype), predictor.to(dtype), weight.to(dtype), bias.to(dtype))
    groups = _groups(lattice, encoder.shape[2], logit_lengths, target_lengths, max_elements, device == "cpu")
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in parameters)
    keep_logits = keep and sum(group.nodes for group in groups) * len(weight) <= max_elements
    loss: Tensor = _JointTransducerLoss.apply(  # type: ignore[no-untyped-call]
        *parameters, targets, groups, blank, keep, keep_logits
    )
    return loss


def _check_joint(encoder: Tensor, predictor: Tensor, weight: Tensor, bias: Tensor) -> None:
    if encoder.dim() != 3:
        raise ValueError(f"encoder must be (B, T, J), got {tuple(encoder.shape)}")
    batch, _, width = encoder.shape
    if predictor.dim() != 3 or (predictor.shape[0], predictor.shape[2]) != (batch, width):
        raise ValueError(f"predictor must be (B, U + 1, J) = ({batch}, U + 1, {width}), got {tuple(predictor.shape)}")
    if weight.dim() != 2 or weight.shape[1] != width:
        raise ValueError(f"weight must be (V, J) = (V, {width}), got {tuple(weight.shape)}")
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be (V,) = ({len(weight)},), got {tuple(bias.shape)}")


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows that share one block of logits `(n, time, U1, V)`, those with most frames first."""

    rows: Tensor  # (n,) their places in the batch
    frames: tuple[int, ...]
    logit_lengths: Tensor  # (n,)
    target_lengths: Tensor  # (n,)
    labels: int  # the most that a row has
    activations_per_node: int
    max_activations: int

    @property
    def time(self) -> int:
        return self.frames[0]

    @property
    def nodes(self) -> int:
        return len(self.frames) * self.time * (self.labels + 1)

    def parts(self) -> Iterator[tuple[int, slice]]:
        """Runs of frames, each with the number of rows that reach into it, to be computed at a time."""
        begin = 0
        while begin < self.time:
            count = sum(frames > begin for frames in self.frames)
            frame = count * (self.labels + 1) * self.activations_per_node
            end = min(self.time, begin + max(1, self.max_activations // frame))
            yield count, slice(begin, end)
            begin = end


def _groups(
    lattice: torch.Size, width: int, logit_lengths: Tensor, target_lengths: Tensor, max_elements: int, cpu: bool
) -> list[_Group]:
    frames, labels = logit_lengths.tolist(), target_lengths.tolist()
    max_activations = min(max_elements, CACHED_ELEMENTS * torch.get_num_threads()) if cpu else max_elements
    groups: list[list[int]] = []
    for row in sorted(range(lattice[0]), key=lambda row: (frames[row], labels[row]), reverse=True):
        group = [*groups[-1], row] if groups else [row]
        slab = len(group) * (max(labels[member] for member in group) + 1)  # nodes at one frame
        if not groups or slab * width > max_activations or slab * frames[group[0]] * lattice[3] > max_elements:
            groups.append([row])
        else:
            groups[-1] = group
    return [
        _Group(
            rows=(rows := torch.tensor(group, device=logit_lengths.device)),
            frames=tuple(frames[row] for row in group),
            logit_lengths=logit_lengths[rows],
            target_lengths=target_lengths[rows],
            labels=max(labels[row] for row in group),
            activations_per_node=width,
            max_activations=max_activations,
        )
        for group in groups
    ]


class _JointTransducerLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        encoder: Tensor,
        predictor: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        groups: list[_Group],
        blank: int,
        keep: bool,
        keep_logits: bool,
    ) -> Tensor:
        wide = torch.promote_types(encoder.dtype, torch.float32)
        backend = backends.choose("transducer_loss", encoder.device.type, wide)
        losses = encoder.new_empty(len(encoder), dtype=wide)
        kept_uses, kept_logits = [], []
        for group in groups:
            encoded, predicted, labels = _members(group, encoder, predictor, targets)
            logits = losses.new_zeros(*encoded.shape[:2], predicted.shape[1], len(weight))
            for count, frames in group.parts():
                hidden = _activations(encoded[:count, frames], predicted[:count])
                logits[:count, frames] = F.linear(hidden, weight, bias)
            losses[group.rows], uses = loss_forward(
                logits, labels, group.logit_lengths, group.target_lengths, blank, keep, backend
            )
            kept_uses.append(uses)
            if keep_logits:
                kept_logits.append(logits)
        if keep:
            ctx.save_for_backward(encoder, predictor, weight, bias, targets, *kept_uses, *kept_logits)
            ctx.settings = (groups, blank, backend, wide)
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        encoder, predictor, weight, bias, targets, *kept = ctx.saved_tensors
        groups, blank, backend, wide = ctx.settings
        kept_uses, kept_logits = kept[: len(groups)], kept[len(groups) :] or [None] * len(groups)
        grad_encoder, grad_predictor = torch.zeros_like(encoder), torch.zeros_like(predictor)
        grad_weight, grad_bias = torch.zeros_like(weight, dtype=wide), torch.zeros_like(bias, dtype=wide)
        for group, uses, known in zip(groups, kept_uses, kept_logits, strict=True):
            encoded, predicted, labels = _members(group, encoder, predictor, targets)
            grad_encoded, grad_predicted = torch.zeros_like(encoded), torch.zeros_like(predicted, dtype=wide)
            for count, frames in group.parts():
                hidden = _activations(encoded[:count, frames], predicted[:count])
                logits = F.linear(hidden, weight, bias).to(wide) if known is None else known[:count, frames]
                grad_logits = loss_backward(
                    grad[group.rows[:count]],
                    logits,
                    labels[:count],
                    (group.logit_lengths[:count] - frames.start).clamp(max=frames.stop - frames.start),
                    group.target_lengths[:count],
                    uses[:, :count, frames],
                    blank,
                    backend,
                ).flatten(0, 2)
                grad_bias += grad_logits.sum(0)
                grad_logits = grad_logits.to(weight.dtype)
                grad_weight += grad_logits.mT @ hidden.flatten(0, 2)
                grad_sum = torch.ops.aten.tanh_backward((grad_logits @ weight).view_as(hidden), hidden)
                grad_encoded[:count, frames] = grad_sum.sum(2)
                grad_predicted[:count] += grad_sum.sum(1)
            grad_encoder[group.rows, : group.time] = grad_encoded
            grad_predictor[group.rows, : group.labels + 1] = grad_predicted.to(predictor.dtype)
        gradients = (grad_encoder, grad_predictor, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype))
        return (*gradients, None, None, None, None, None)


def _members(group: _Group, encoder: Tensor, predictor: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The group's rows of each, without what is padding in all of them."""
    nodes = group.labels + 1
    return encoder[group.rows, : group.time], predictor[group.rows, :nodes], targets[group.rows, : group.labels]


def _activations(encoded: Tensor, predicted: Tensor) -> Tensor:
    """`(n, f, J)` and `(n, U1, J)` to `(n, f, U1, J)`."""
    return (encoded[:, :, None] + predicted[:, None]).tanh_()
