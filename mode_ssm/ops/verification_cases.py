"""Inputs on which every backend of an op is compared with the op's reference, and workloads on which it is timed.

Shapes: B batch, T frames, D channels, H heads, P head width, N state width, W taps, U labels, V classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mode_ssm.ops.causal_conv import causal_conv, causal_conv_reference
from mode_ssm.ops.gated_norm import gated_rms_norm, gated_rms_norm_reference, silu_gate, silu_gate_reference
from mode_ssm.ops.selective_scan import selective_scan, selective_scan_reference
from mode_ssm.ops.ssd import ssd, ssd_reference
from mode_ssm.ops.transducer_loss import transducer_loss, transducer_loss_reference

HEAD_WIDTH = 8
FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[str, ...]]] = {
    "selective_scan": (selective_scan, selective_scan_reference, ("y", "state")),
    "ssd": (ssd, ssd_reference, ("y", "state")),
    "causal_conv": (causal_conv, causal_conv_reference, ("y", "state")),
    "gated_rms_norm": (gated_rms_norm, gated_rms_norm_reference, ("y",)),
    "silu_gate": (silu_gate, silu_gate_reference, ("y",)),
    "transducer_loss": (transducer_loss, transducer_loss_reference, ("loss",)),
}


@dataclass(frozen=True, slots=True)
class Case:
    """Differentiable `inputs` in float64 and the other arguments of a call.

    Those in `parameters` stay float32 where the others are bf16. Without `through_state` the loss does not read the
    final state, because not every backend has its gradient.
    """

    op: str
    label: str
    inputs: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    parameters: frozenset[str] = frozenset()
    through_state: bool = True


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a workload; `states` is N of the scans, `labels` U of the transducer."""

    batch: int
    frames: int
    channels: int
    states: int
    labels: int


SMALL = Shape(batch=2, frames=200, channels=256, states=16, labels=20)
FULL = Shape(batch=8, frames=500, channels=1024, states=64, labels=60)


def cases(op: str, frames: int = 60) -> Iterator[Case]:
    """Ragged and full batches in both directions, with and without what is optional, narrow and wide, extreme steps.

    Raises:
        ValueError: an op that has none.
    """
    if op not in FUNCTIONS:
        raise ValueError(f"no verification cases for op {op!r}; there are cases for {', '.join(FUNCTIONS)}")
    ragged = torch.tensor([frames, frames // 3, 1, 0])
    draw = _Normal(seed=0)
    if op in ("selective_scan", "ssd"):
        yield from _scan_cases(op, draw, frames, ragged)
    elif op == "causal_conv":
        for width, options in ((2, {}), (3, {"lengths": ragged}), (4, {"lengths": ragged, "reverse": True})):
            inputs = {"x": draw(4, frames, 24), "weight": draw(24, width), "bias": draw(24)}
            silu = width == 4
            yield Case(
                op, f"W={width}, {_words(options)}", inputs, {**options, "silu": silu}, frozenset(inputs) - {"x"}
            )
        inputs = {"x": draw(4, frames, 21), "weight": draw(21, 5), "initial_state": draw(4, 21, 4)}
        parameters = frozenset(inputs) - {"x"}
        yield Case(op, "W=5, ragged, silu, initial state", inputs, {"lengths": ragged, "silu": True}, parameters)
    elif op == "transducer_loss":
        labels = max(2, frames // 8)
        targets = torch.randint(1, 9, (4, labels), generator=torch.Generator().manual_seed(0))
        options = {"targets": targets, "target_lengths": torch.tensor([labels, labels // 2, 1, 0])}
        options["logit_lengths"] = torch.tensor([frames // 3, frames // 4, labels + 1, 1])
        yield Case(op, f"T={frames // 3}, U={labels}, ragged", {"logits": draw(4, frames // 3, labels + 1, 9)}, options)
    else:
        inputs = {"x": draw(4, frames, 24), "z": draw(4, frames, 24)}
        if op == "gated_rms_norm":
            inputs["weight"] = draw(24)
        yield Case(op, "D=24", inputs, parameters=frozenset({"weight"} & inputs.keys()))


def workload(op: str, shape: Shape, device: str, dtype: torch.dtype) -> Callable[[], None]:
    """One call of `op` forwards and backwards, on inputs that are ready."""
    draw, batch, frames, channels = _Normal(seed=1), shape.batch, shape.frames, shape.channels
    options: dict[str, Any] = {}
    if op in ("selective_scan", "ssd"):
        inputs = _scan_inputs(op, draw, batch, frames, channels, shape.states, head_width=min(64, channels))
    elif op == "causal_conv":
        inputs = {"x": draw(batch, frames, channels), "weight": draw(channels, 4), "bias": draw(channels)}
        options = {"silu": True}
    elif op == "transducer_loss":
        inputs = {"logits": draw(batch, max(1, frames // 5), shape.labels + 1, 41)}
        options = {"targets": torch.ones(batch, shape.labels, dtype=torch.int64)}
        options["logit_lengths"] = torch.full((batch,), max(1, frames // 5))
        options["target_lengths"] = torch.full((batch,), shape.labels)
    else:
        inputs = {"x": draw(batch, frames, channels), "z": draw(batch, frames, channels)}
        if op == "gated_rms_norm":
            inputs["weight"] = draw(channels)
    leaves = leaves_of(Case(op, "", inputs, parameters=_PARAMETERS & inputs.keys()), device, dtype)
    placed = on_device(options, device)
    function = FUNCTIONS[op][0]
    with torch.no_grad():
        output = function(**leaves, **placed)
    cotangent = torch.ones_like(output if isinstance(output, Tensor) else output[0])

    def run() -> None:
        output = function(**leaves, **placed)
        torch.autograd.grad(output if isinstance(output, Tensor) else output[0], list(leaves.values()), cotangent)

    return run


def leaves_of(case: Case, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The case's inputs on a device, in `dtype` but for parameters, which are float32 at least."""
    wide = torch.promote_types(dtype, torch.float32)
    return {
        name: value.to(device, wide if name in case.parameters else dtype).detach().requires_grad_()
        for name, value in case.inputs.items()
    }


def on_device(options: dict[str, Any], device: str) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in options.items()}


class _Normal:
    """Normal numbers in float64, the same on every machine."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=self._generator)


_PARAMETERS = frozenset({"A", "D", "weight", "bias", "initial_state"})


def _scan_cases(op: str, draw: _Normal, frames: int, ragged: Tensor) -> Iterator[Case]:
    plans: tuple[tuple[int, dict[str, Any]], ...] = (
        (16, {"lengths": ragged}),
        (64, {"lengths": ragged, "reverse": True}),
        (128, {}),
    )
    for states, options in plans:
        inputs = _scan_inputs(op, draw, 4, frames, 24, states)
        if states == 64:
            del inputs["D"]
        if op == "selective_scan" and states == 16:
            inputs["dt"], options = inputs["dt"].log(), {**options, "dt_softplus": True}
        yield Case(op, f"N={states}, {_words(options)}", inputs, options, _PARAMETERS & inputs.keys(), False)
    inputs = _scan_inputs(op, draw, 4, frames, 24, 16)
    inputs["initial_state"] = draw(4, 24, 16) if op == "selective_scan" else draw(4, 24 // HEAD_WIDTH, HEAD_WIDTH, 16)
    options = {"lengths": ragged, "reverse": True}
    yield Case(op, "N=16, ragged, backwards, initial state", inputs, options, _PARAMETERS & inputs.keys())
    for label, low, high in (("steps of 1e-6 to 1e-4", -14.0, -9.0), ("steps of 1e-6 to 1e4", -14.0, 9.0)):
        inputs = _scan_inputs(op, draw, 4, frames, 24, 16)
        inputs["dt"] = (torch.special.ndtr(draw(*inputs["dt"].shape)) * (high - low) + low).exp()
        yield Case(op, f"N=16, {label}", inputs, {}, _PARAMETERS & inputs.keys(), False)


def _scan_inputs(
    op: str, draw: _Normal, batch: int, frames: int, channels: int, states: int, head_width: int = HEAD_WIDTH
) -> dict[str, Tensor]:
    B, C = draw(batch, frames, states), draw(batch, frames, states)
    if op == "selective_scan":
        x, dt, A, D = (
            draw(batch, frames, channels),
            draw(batch, frames, channels),
            draw(channels, states),
            draw(channels),
        )
        return {"u": x, "dt": 0.1 * dt.exp(), "A": -A.exp(), "B": B, "C": C, "D": D}
    heads = channels // head_width
    x, dt = draw(batch, frames, heads, head_width), draw(batch, frames, heads)
    return {"x": x, "dt": F.softplus(dt - 2), "A": -draw(heads).exp(), "B": B, "C": C, "D": draw(heads)}


def _words(options: dict[str, Any]) -> str:
    words = ["ragged" if "lengths" in options else "full", "backwards" if options.get("reverse") else "forwards"]
    return ", ".join(words)
