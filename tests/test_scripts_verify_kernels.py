"""scripts/verify_kernels.py as CI and a container build call it."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from mode_ssm.ops import backends
from mode_ssm.ops.torch_path.gated_norm import SiLUGate

SCRIPT = Path(__file__).parent.parent / "scripts" / "verify_kernels.py"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--device", "cpu", "--op", "silu_gate", *arguments])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_all_is_well_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "kernels.json"
    assert run(monkeypatch, "--require", "torch", "--json", str(report)) == 0
    written = json.loads(report.read_text())
    assert written["versions"]["torch"] == torch.__version__
    assert (written["wrong"], written["missing"]) == (0, [])
    assert {finding["quantity"] for finding in written["findings"]} == {"y", "d x", "d z"}
    assert {speed["backend"] for speed in written["speeds"]} == {finding["backend"] for finding in written["findings"]}
    printed = capsys.readouterr().out
    assert "silu_gate: largest errors" in printed
    assert f"{len(written['findings'])} outputs and gradients checked, 0 wrong, 0 required ops missing" in printed


def test_a_wrong_backend_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    exact = SiLUGate.forward
    monkeypatch.setattr(SiLUGate, "forward", lambda self, x, z: exact(self, x, z) * 1.001)
    assert run(monkeypatch, "--no-speed", "--dtype", "float32") == 1
    assert "WRONG: silu_gate y of torch on cpu, float32, D=24: 1.0e-03, more than 1e-05" in capsys.readouterr().out


def test_a_missing_one_fails_where_it_is_required(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backends.why_not.cache_clear()
    assert run(monkeypatch, "--no-speed", "--require", "triton") == 1
    assert "triton is required and does not run ssd: torch sees no GPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--require", "tritn"), "error: unknown backend 'tritn'; choose one of torch, "),
        (("--device", "cuda"), "error: --device cuda, but torch sees no GPU here"),
    ],
)
def test_what_makes_no_sense_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], line: str
) -> None:
    assert run(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err.startswith(line)
