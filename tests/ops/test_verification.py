"""Verification finds what is wrong with a backend, and nothing where nothing is."""

import os

import pytest
import torch

from mode_ssm.ops import backends
from mode_ssm.ops.selective_scan import selective_scan
from mode_ssm.ops.torch_path.selective_scan import SelectiveScan
from mode_ssm.ops.verification import measure, missing, on_backend, relative_error, runnable, speeds, verify, worst
from mode_ssm.ops.verification_cases import FUNCTIONS, Shape, cases

TINY = Shape(batch=1, frames=5, channels=16, states=3, labels=2)


def test_every_op_has_cases() -> None:
    assert set(FUNCTIONS) == set(backends.OPS)
    with pytest.raises(ValueError, match="no verification cases for op 'fft'"):
        next(cases("fft"))


@pytest.mark.parametrize("op", backends.OPS)
def test_backends_that_run_here_are_right_in_every_output_and_gradient(op: str) -> None:
    findings = list(verify("cpu", [torch.float32, torch.bfloat16], [op], frames=20))
    assert {finding.backend for finding in findings} == set(runnable(op, "cpu"))
    assert [finding for finding in findings if not finding.right] == []
    for case in cases(op, 20):
        quantities = {finding.quantity for finding in findings if finding.case == case.label}
        assert quantities == {*FUNCTIONS[op][2], *(f"d {name}" for name in case.inputs)}


def test_a_gradient_that_is_off_by_a_thousandth_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = SelectiveScan.backward

    def off(self: SelectiveScan, *arguments: object) -> tuple[torch.Tensor, ...]:
        grads = list(exact(self, *arguments))  # type: ignore[arg-type]
        grads[2] = grads[2] * 1.001
        return tuple(grads)

    monkeypatch.setattr(SelectiveScan, "backward", off)
    case = next(cases("selective_scan", 20))
    findings = list(measure(case, ["torch"], "cpu", torch.float32))
    assert [finding.quantity for finding in findings if finding.wrong] == ["d A"]
    assert worst(findings)["selective_scan", "torch", "cpu", "float32"]["d A"].error == pytest.approx(1e-3, rel=0.01)


def test_nan_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = SelectiveScan.forward

    def broken(self: SelectiveScan, *arguments: object) -> tuple[torch.Tensor, ...]:
        y, final, starts = exact(self, *arguments)  # type: ignore[arg-type]
        y[0, 0, 0] = torch.nan
        return y, final, starts

    monkeypatch.setattr(SelectiveScan, "forward", broken)
    findings = list(measure(next(cases("selective_scan", 20)), ["torch"], "cpu", torch.float32))
    assert [finding.quantity for finding in findings if finding.wrong] == ["y"]
    assert worst(findings)["selective_scan", "torch", "cpu", "float32"]["y"].wrong


def test_a_refusal_is_neither_right_nor_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: SelectiveScan, *arguments: object) -> None:
        raise ValueError("not today")

    monkeypatch.setattr(SelectiveScan, "forward", refuse)
    (finding,) = measure(next(cases("selective_scan", 20)), ["torch"], "cpu", torch.float32)
    assert (finding.refusal, finding.right, finding.wrong) == ("not today", False, False)
    assert worst([finding]) == {}
    assert "torch" not in [speed.backend for speed in speeds("cpu", torch.float32, ["selective_scan"], TINY, 1)]


def test_errors_are_relative_to_the_largest_magnitude() -> None:
    expected = torch.tensor([0.0, -4.0, 1.0], dtype=torch.float64)
    assert relative_error(torch.tensor([0.1, -4.0, 1.0]), expected) == pytest.approx(0.025)
    assert relative_error(torch.zeros(0), torch.zeros(0, dtype=torch.float64)) == 0.0
    assert relative_error(torch.tensor([1e-7]), torch.zeros(1, dtype=torch.float64)) > 1.0


def test_every_op_can_be_timed_on_every_backend() -> None:
    found = list(speeds("cpu", torch.float32, shape=TINY, repeats=1))
    assert {(s.op, s.backend) for s in found} == {(op, name) for op in backends.OPS for name in runnable(op, "cpu")}
    assert all(speed.milliseconds > 0 for speed in found)


def test_a_backend_is_chosen_inside_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backends.ENVIRONMENT_KEY, "auto")
    usual = backends.choose("selective_scan", "cpu", torch.float32)
    with on_backend("selective_scan", "torch"):
        assert backends.choose("selective_scan", "cpu", torch.float32) == "torch"
        assert selective_scan(*(torch.ones(1, 2, 3),) * 2, -torch.ones(3, 2), *(torch.ones(1, 2, 2),) * 2)[0].shape
    assert backends.choose("selective_scan", "cpu", torch.float32) == usual
    assert os.environ[backends.ENVIRONMENT_KEY] == "auto"


def test_required_backends_that_do_not_run_are_named_by_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backends.why_not.cache_clear()
    lines = missing(["torch", "mamba-ssm"], ["cpu"])
    assert [line.split(":")[0] for line in lines] == [
        f"mamba-ssm is required and does not run {op}" for op in ("selective_scan", "ssd", "causal_conv")
    ]
    assert missing(["cpu"], ["cpu"]) == []
    with pytest.raises(ValueError, match="unknown backend 'tritn'; choose one of torch, "):
        missing(["tritn"], ["cpu"])
