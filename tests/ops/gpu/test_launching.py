"""The Triton backend's edges: what it says where it cannot run, what it accepts as it comes, what it compiles to."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mode_ssm.ops import backends
from mode_ssm.ops.gpu import probe
from mode_ssm.ops.gpu.selective_scan import SelectiveScan
from mode_ssm.ops.gpu.ssd import SSD

SCRIPT = Path(__file__).with_name("compile_for_hopper.py")


@pytest.fixture(autouse=True)
def _fresh_probe() -> None:
    probe.why_no_triton.cache_clear()


def test_a_kernel_is_run_before_triton_is_offered(interpreted: Callable[..., Any]) -> None:
    assert interpreted(probe.why_no_triton) is None


def test_reasons_why_there_is_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert probe.why_no_triton() == "torch sees no GPU"
    probe.why_no_triton.cache_clear()
    monkeypatch.setattr(probe, "find_spec", lambda name: None)
    assert probe.why_no_triton() == "triton is not installed"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no compiler found\nsee the log"), "a first kernel failed: no compiler found"),
        (AssertionError(), "a first kernel failed: AssertionError"),
        (None, "a first kernel gave 5051 instead of 5050"),
    ],
)
def test_a_kernel_that_fails_gives_the_reason(
    error: Exception | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kernel:
        def sum_to(self, count: int, device: str) -> float:
            if error is not None:
                raise error
            return 5051.0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(probe, "import_module", lambda name: Kernel())
    assert probe.why_no_triton() == reason


@pytest.mark.parametrize("op", [op for op in backends.OPS if "triton" in backends.offered(op)])
def test_the_registered_classes_exist(op: str) -> None:
    kernel = backends.kernel(op, "triton")
    assert callable(kernel.forward)
    assert callable(kernel.backward)


def scan_of_views(projected: Tensor, A: Tensor) -> tuple[Tensor, ...]:
    """B and C as slices of one projection, and the gradient of a sum, which has a stride of 0."""
    u, dt, B, C = projected.split([6, 6, 16, 16], -1)
    both = []
    for u_, dt_, B_, C_ in ((u, dt, B, C), tuple(each.contiguous() for each in (u, dt, B, C))):
        scan = SelectiveScan()
        y, state, starts = scan.forward(u_, dt_, A, B_, C_, None, None, None, True, False, True)
        grad = torch.ones((), device=y.device).expand_as(y)
        grad = grad if u_ is u else grad.contiguous()
        both += [y, state, *scan.backward(grad, None, u_, dt_, A, B_, C_, None, None, starts, True, False)]
    return tuple(both)


def ssd_of_views(projected: Tensor, A: Tensor) -> tuple[Tensor, ...]:
    x, dt, B, C = projected.split([6, 2, 16, 16], -1)
    both = []
    for x_, dt_, B_, C_ in ((x, dt, B, C), tuple(each.contiguous() for each in (x, dt, B, C))):
        mamba2, heads = SSD(), x_.unflatten(-1, (2, 3))
        y, state, kept = mamba2.forward(heads, dt_.abs(), A, B_, C_, None, None, None, False, True)
        grad = torch.ones((), device=y.device).expand_as(y)
        grad = grad if x_ is x else grad.contiguous()
        both += [y, state, *mamba2.backward(grad, None, heads, dt_.abs(), A, B_, C_, None, None, kept, False)]
    return tuple(both)


@pytest.mark.parametrize(
    ("function", "width", "rate"), [(scan_of_views, 44, (6, 16)), (ssd_of_views, 40, (2,))], ids=["mamba", "mamba2"]
)
def test_views_give_what_their_copies_give(
    function: Callable[..., Any], width: int, rate: tuple[int, ...], run: Callable[..., Any]
) -> None:
    generator = torch.Generator().manual_seed(2)
    projected, A = torch.randn(2, 9, width, generator=generator), -torch.rand(rate, generator=generator)
    results = run(function, projected, A)
    half = len(results) // 2
    for of_views, of_copies in zip(results[:half], results[half:], strict=True):
        assert torch.equal(of_views, of_copies)


def scan_without_keeping(u: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, ...]:
    kept = SelectiveScan().forward(u, u, A, B, B, None, None, None, True, False, False)
    return kept[2], SelectiveScan().forward(u, u, A, B, B, None, None, None, True, False, True)[2]


def test_states_are_kept_only_where_a_backward_pass_will_come(run: Callable[..., Any]) -> None:
    u, A, B = torch.ones(1, 20, 4), -torch.ones(4, 16), torch.ones(1, 20, 16)
    nothing, starts = run(scan_without_keeping, u, A, B)
    assert nothing.shape == (0,)
    assert starts.shape == SelectiveScan().starts_shape(u, A)


def compile_kernels(folder: Path, *flags: str) -> list[str]:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(SCRIPT), *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_every_kernel_compiles_for_hopper(tmp_path: Path) -> None:
    """The interpreter accepts what the compiler refuses. In bf16 with all that is optional, in fp16 without."""
    assert len(compile_kernels(tmp_path)) == 19


@pytest.mark.slow
def test_every_kernel_compiles_for_hopper_as_it_is_launched(tmp_path: Path) -> None:
    assert len(compile_kernels(tmp_path, "--default-tiles")) == 21
