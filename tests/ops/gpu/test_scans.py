"""The Triton scans against their recurrences in float64: every result and every gradient of every case on its own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from mode_ssm.ops.gpu import selective_scan, ssd
from mode_ssm.ops.selective_scan import selective_scan_reference
from mode_ssm.ops.ssd import ssd_reference

SHORT, RAGGED = (25, 0, 1, 9), (45, 0, 1, 9)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # of each tensor's largest magnitude
TINY, HUGE, MIXED = (-10.0, -10.0), (5.0, 9.2), (-14.0, 9.2)  # ranges of log(dt)
RESULTS = ("y", "state", "x", "dt", "A", "B", "C", "D", "initial_state")


@dataclass(frozen=True)
class Case:
    """`channels` are `(heads, width)` for Mamba-2; without `everything` there is no D, initial state or softplus."""

    time: int
    states: int
    channels: tuple[int, ...]
    lengths: tuple[int, ...] = ()
    reverse: bool = False
    everything: bool = True
    dtype: torch.dtype = torch.float32
    log_dt: tuple[float, float] = (-4.0, 0.0)
    tolerance: float | None = None
    tiling: Any = field(default=None, compare=False)

    @property
    def mamba2(self) -> bool:
        return len(self.channels) == 2

    @property
    def softplus(self) -> bool:
        return self.everything and not self.mamba2


# Groups have 8 frames and chunks two of them; blocks of channels have 64 for N = 16 and 32 for wider ones.
MAMBA = {
    "one frame": Case(1, 16, (3,)),
    "full": Case(17, 16, (70,)),
    "ragged": Case(25, 16, (5,), SHORT),
    "ragged reverse": Case(25, 64, (5,), SHORT, reverse=True),
    "bare reverse": Case(20, 128, (33,), reverse=True, everything=False),
    "bare ragged": Case(25, 20, (5,), SHORT, everything=False),
    "other tiles": Case(21, 16, (9,), tiling=selective_scan.Tiling(warps=2, channels=4, frames=4, groups=3)),
    # Decays rounded to float32 repeat their error at every frame, and miss this bar after 90 of them.
    "tiny steps": Case(90, 16, (4,), (90,), everything=False, log_dt=TINY, tolerance=1e-6),
    "huge steps": Case(20, 16, (4,), everything=False, log_dt=HUGE),
    "mixed steps": Case(20, 64, (4,), everything=False, log_dt=MIXED),
    "float16": Case(25, 64, (5,), SHORT, dtype=torch.float16),
    "mixed steps in bfloat16": Case(20, 64, (4,), everything=False, log_dt=MIXED, dtype=torch.bfloat16),
    "bfloat16": Case(25, 16, (5,), SHORT, reverse=True, dtype=torch.bfloat16),
}
# Chunks have 32 frames and heads are cut at 32 in float32, 64 and 64 otherwise.
MAMBA2 = {
    "one frame": Case(1, 16, (1, 3)),
    "full": Case(70, 16, (3, 5)),
    "ragged": Case(45, 64, (2, 40), RAGGED),
    "ragged reverse": Case(45, 16, (2, 32), RAGGED, reverse=True),
    "bare reverse": Case(70, 128, (2, 8), reverse=True, everything=False),
    "bare ragged": Case(45, 20, (2, 8), RAGGED, everything=False),
    "other tiles": Case(40, 16, (2, 33), tiling=ssd.Tiling(frames=16, width=16)),
    "tiny steps": Case(200, 16, (2, 8), everything=False, log_dt=TINY),
    "huge steps": Case(100, 16, (2, 8), everything=False, log_dt=HUGE),
    "mixed steps": Case(100, 64, (2, 8), everything=False, log_dt=MIXED),
    "float16": Case(150, 64, (2, 16), (150, 0, 1, 70), dtype=torch.float16),
    "mixed steps in bfloat16": Case(100, 64, (2, 8), everything=False, log_dt=MIXED, dtype=torch.bfloat16),
    "bfloat16": Case(150, 64, (2, 64), (150, 0, 1, 70), reverse=True, dtype=torch.bfloat16),
}
CASES = {f"mamba {name}": case for name, case in MAMBA.items()} | {
    f"mamba2 {name}": case for name, case in MAMBA2.items()
}


def inputs_of(case: Case) -> dict[str, Tensor | None]:
    """As the public functions hand them to a kernel: A, D, the state and Mamba-2's steps stay in float32."""
    generator = torch.Generator().manual_seed(3)
    batch, rate = len(case.lengths) or 1, (case.channels[:1] if case.mamba2 else case.channels)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    log_dt = torch.empty(batch, case.time, *rate).uniform_(*case.log_dt, generator=generator)
    return {
        "x": normal(batch, case.time, *case.channels).to(case.dtype),
        # of the raw numbers, where the kernel applies softplus: from steps of 1e-9 to steps of 10
        "dt": (5.0 * log_dt + 10.0 if case.softplus else log_dt.exp()).to(torch.float32 if case.mamba2 else case.dtype),
        "A": -normal(*rate, *(() if case.mamba2 else (case.states,))).exp(),
        "B": normal(batch, case.time, case.states).to(case.dtype),
        "C": normal(batch, case.time, case.states).to(case.dtype),
        "D": normal(*rate) if case.everything else None,
        "initial_state": normal(batch, *case.channels, case.states) if case.everything else None,
    }


def expected_of(case: Case, inputs: dict[str, Tensor | None], grads: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    leaves = {name: value.double().requires_grad_() for name, value in inputs.items() if value is not None}
    options: dict[str, Any] = {"lengths": torch.tensor(case.lengths) if case.lengths else None, "reverse": case.reverse}
    if case.mamba2:
        results = ssd_reference(**leaves, **options)
    else:
        x = leaves.pop("x")
        results = selective_scan_reference(x, **leaves, **options, dt_softplus=case.softplus)
        leaves = {"x": x} | leaves
    found = torch.autograd.grad(results, list(leaves.values()), [grad.double() for grad in grads])
    return dict(zip(("y", "state"), results, strict=True)) | dict(zip(leaves, found, strict=True))


def run_case(case: Case, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """Results and gradients of the class, in the order of `RESULTS`."""
    *inputs, initial, lengths, grad_y, grad_final = tensors
    if case.mamba2:
        kernel: Any = ssd.SSD(case.tiling)
        options: tuple[bool, ...] = (case.reverse,)
    else:
        kernel = selective_scan.SelectiveScan(case.tiling)
        options = (case.softplus, case.reverse)
    y, state, kept = kernel.forward(*inputs, lengths, initial, *options, True)
    return (y, state, *kernel.backward(grad_y, grad_final, *inputs, lengths, kept, *options))


@pytest.fixture(scope="module", params=CASES)
def results(request: pytest.FixtureRequest, run: Callable[..., Any]) -> tuple[Case, dict, dict]:
    """A case, what the kernels give, and what the recurrence gives in float64 for the same rounded inputs."""
    case = CASES[request.param]
    inputs = inputs_of(case)
    generator = torch.Generator().manual_seed(4)
    assert inputs["x"] is not None
    grads = tuple(
        torch.randn(shape, generator=generator)
        for shape in (inputs["x"].shape, (len(inputs["x"]), *case.channels, case.states))
    )
    grad_y = grads[0].to(case.dtype)
    lengths = torch.tensor(case.lengths) if case.lengths else None
    actual = run(run_case, case, *inputs.values(), lengths, grad_y, grads[1])
    return case, dict(zip(RESULTS, actual, strict=True)), expected_of(case, inputs, (grad_y, grads[1]))


@pytest.mark.parametrize("name", RESULTS)
def test_results_and_gradients(results: tuple[Case, dict, dict], name: str) -> None:
    case, actual, expected = results
    if name not in expected:
        assert name == "initial_state" or actual[name].numel() == 0
        return
    assert actual[name].shape == expected[name].shape
    scale = expected[name].abs().max().clamp(min=1e-10)
    error = (actual[name].double() - expected[name]).abs().max() / scale
    assert error <= (case.tolerance or TOLERANCE[case.dtype])
