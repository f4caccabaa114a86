"""Are the backends that run here right, and how fast are they? Every output and every gradient on its own.

The truth is each op's reference in float64, given the numbers that the backend is given after rounding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from mode_ssm.ops import backends
from mode_ssm.ops.peers import why_no_peer
from mode_ssm.ops.timing import milliseconds
from mode_ssm.ops.verification_cases import FUNCTIONS, SMALL, Case, Shape, cases, leaves_of, on_device, workload

# Largest error that counts as right, relative to the largest magnitude of the tensor.
BARS = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
NOTHING = 1e-20  # what is smaller has decayed to zero in float32


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The error of one output or gradient; or a case that the backend refuses, with its reason and no error."""

    op: str
    backend: str
    device: str
    dtype: str
    case: str
    quantity: str
    error: float | None
    bar: float
    refusal: str | None = None

    @property
    def right(self) -> bool:
        return self.error is not None and self.error <= self.bar

    @property
    def wrong(self) -> bool:
        return self.refusal is None and not self.right


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Median time of an op forwards and backwards."""

    op: str
    backend: str
    device: str
    dtype: str
    milliseconds: float


@contextmanager
def on_backend(op: str, name: str) -> Iterator[None]:
    """`op` takes backend `name` inside, whatever environment and configuration ask for.

    Raises `ValueError` for one that cannot run here.
    """
    said, requested = os.environ.pop(backends.ENVIRONMENT_KEY, None), backends.requested()
    try:
        backends.request(f"{op}={name}")
        yield
    finally:
        if said is not None:
            os.environ[backends.ENVIRONMENT_KEY] = said
        backends.request(requested)


def why_not_for(op: str, name: str, device: str) -> str | None:
    """Why backend `name` does not compute `op` on tensors of `device` here; None where it does."""
    if name not in backends.offered(op):
        return f"does not implement {op}"
    if reason := why_no_peer(op) if name == "mamba-ssm" else backends.why_not(name):
        return reason
    try:
        with on_backend(op, name):
            backends.choose(op, device, torch.float32)
    except ValueError as error:
        return str(error).rpartition(": ")[2]
    return None


def runnable(op: str, device: str) -> list[str]:
    return [name for name in backends.offered(op) if why_not_for(op, name, device) is None]


def verify(
    device: str, dtypes: Sequence[torch.dtype], ops: Sequence[str] = tuple(FUNCTIONS), frames: int = 60
) -> Iterator[Finding]:
    """Findings of every backend of every op that runs on `device`."""
    for op in ops:
        names = runnable(op, device)
        for case in cases(op, frames):
            for dtype in dtypes:
                yield from measure(case, names, device, dtype)


def measure(case: Case, names: Sequence[str], device: str, dtype: torch.dtype) -> Iterator[Finding]:
    """Findings of the named backends on one case."""
    function, reference, _ = FUNCTIONS[case.op]
    leaves = leaves_of(case, device, dtype)
    rounded = {name: value.detach().cpu().double().requires_grad_() for name, value in leaves.items()}
    expected = _results(reference, case, rounded, "cpu")
    for name in names:
        about = {"op": case.op, "backend": name, "device": device, "dtype": str(dtype).removeprefix("torch.")}
        bar = BARS[dtype]
        try:
            if case.op == "ssd" and dtype == torch.bfloat16 and _interpreted(name, device):
                raise ValueError("Triton's interpreter multiplies bf16 by their bit patterns: only a GPU can tell")
            with on_backend(case.op, name):
                results = _results(function, case, leaves, device)
        except ValueError as refusal:
            yield Finding(**about, case=case.label, quantity="", error=None, bar=bar, refusal=str(refusal))
            continue
        for quantity, value in expected.items():
            error = relative_error(results[quantity], value)
            yield Finding(**about, case=case.label, quantity=quantity, error=error, bar=bar)


def missing(names: Sequence[str], devices: Sequence[str]) -> list[str]:
    """A line for every op that a required backend should compute and does not, on any of the devices.

    `cpu` is whichever of the compiled kernels this CPU can run. Raises `ValueError` for an unknown name.
    """
    lines = []
    for name in names:
        if name not in (*backends.NAMES, "cpu"):
            raise ValueError(f"unknown backend {name!r}; choose one of {', '.join((*backends.NAMES, 'cpu'))}")
        family = backends.CPU_BACKENDS if name == "cpu" else (name,)
        for op in backends.OPS:
            reasons = [why_not_for(op, n, device) for n in family if n in backends.offered(op) for device in devices]
            if reasons and None not in reasons:
                lines.append(f"{name} is required and does not run {op}: {reasons[0]}")
    return lines


def worst(findings: Sequence[Finding]) -> dict[tuple[str, str, str, str], dict[str, Finding]]:
    """By (op, backend, device, dtype): the finding of each quantity that is the furthest off; refusals left out."""
    found: dict[tuple[str, str, str, str], dict[str, Finding]] = {}
    for finding in findings:
        if finding.error is None:
            continue
        row = found.setdefault((finding.op, finding.backend, finding.device, finding.dtype), {})
        before = row.get(finding.quantity)
        if before is None or before.error is None or not finding.error <= before.error:
            row[finding.quantity] = finding
    return found


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest magnitude expected; NaN where `actual` has one."""
    if expected.numel() == 0:
        return 0.0
    scale = expected.detach().abs().max().clamp(min=NOTHING)
    return float((actual.detach().cpu().double() - expected.detach()).abs().max() / scale)


def speeds(
    device: str,
    dtype: torch.dtype,
    ops: Sequence[str] = tuple(FUNCTIONS),
    shape: Shape = SMALL,
    repeats: int = 7,
) -> Iterator[Speed]:
    """Forward and backward times of every backend that runs on `device`, in turns; not of interpreted kernels."""
    for op in ops:
        run = workload(op, shape, device, dtype)
        usable = []
        for name in runnable(op, device):
            if _interpreted(name, device):
                continue
            try:
                with on_backend(op, name):
                    run()
                usable.append(name)
            except ValueError:  # a refusal, which `verify` reports with its reason
                continue
        around = lambda name, op=op: on_backend(op, name)  # noqa: E731
        times = milliseconds(dict.fromkeys(usable, run), device, repeats, around=around)
        for name, time in times.items():
            yield Speed(op=op, backend=name, device=device, dtype=str(dtype).removeprefix("torch."), milliseconds=time)


def _interpreted(backend: str, device: str) -> bool:
    return backend == "triton" and device == "cpu"


def _results(function: Callable[..., object], case: Case, leaves: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    """Outputs, and gradients of a sum that weighs every entry of them at random."""
    names = FUNCTIONS[case.op][2]
    outputs = function(**leaves, **on_device(case.options, device))
    tensors = [outputs] if isinstance(outputs, Tensor) else list(outputs)  # type: ignore[call-overload]
    generator = torch.Generator().manual_seed(2)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    for name, tensor in zip(names, tensors, strict=True):
        weights = torch.randn(tensor.shape, dtype=torch.float64, generator=generator)
        if name != "state" or case.through_state:
            loss = loss + (tensor.double() * weights.to(device)).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    gradients = {f"d {name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return {**dict(zip(names, tensors, strict=True)), **gradients}
