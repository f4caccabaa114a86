"""scripts/gpu_validation.py, rehearsed at toy size on the CPU."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parent.parent / "scripts"
ALL = ("kernels", "autocast", "throughput", "layers", "memory", "step", "data_parallel", "resume")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    """Run the script in this process, with its folder first on the path as `python` has it."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["gpu_validation.py", *arguments])
        try:
            runpy.run_path(str(SCRIPTS / "gpu_validation.py"), run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return call


def test_every_section_but_that_of_whole_runs_passes_and_is_reported(run, tmp_path: Path) -> None:
    assert run("--rehearse", "--output", str(tmp_path), "--only", ",".join(ALL[:-1])) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["facts"]["torch"] == torch.__version__
    sections = report["sections"]
    assert {name: section["status"] for name, section in sections.items()} == dict.fromkeys(ALL[:-1], "passed")
    for name, section in sections.items():
        assert section["result"]["tables"], name
        assert all(table["rows"] for table in section["result"]["tables"]), name

    errors = sections["kernels"]["result"]["tables"][0]["rows"]
    assert {row[0] for row in errors} >= {"selective_scan", "ssd", "causal_conv", "transducer_loss"}
    assert all(0 <= row[3] <= row[4] for row in errors)
    parity = {row[0]: row[1] for row in sections["autocast"]["result"]["tables"][0]["rows"]}
    assert parity["the same in bf16"] != parity["loss after 30 steps, float32"]
    memory = {(row[0], row[1]): row[2] for row in sections["memory"]["result"]["tables"][0]["rows"]}
    assert all(memory[mixer, True] < memory[mixer, False] for mixer in ("mamba", "mamba2"))
    steps = sections["step"]["result"]["tables"][0]["rows"]
    assert all(row[2] > 0 and row[6] > 0 for row in steps)
    assert all(row[3] is None and row[7] is None for row in steps)  # no target and no peak for a CPU

    page = (tmp_path / "report.md").read_text()
    for plot in ("selective_scan_n4.png", "ssd_n4.png"):
        assert f"]({plot})" in page
        assert (tmp_path / plot).read_bytes().startswith(b"\x89PNG")


def test_a_section_that_fails_does_not_end_the_others(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gpu_sections import numbers, training
    from gpu_sections.result import Result

    def broken(setting: object) -> Result:
        raise RuntimeError("no room\nat all")

    monkeypatch.setattr(training, "memory", broken)
    monkeypatch.setattr(numbers, "kernels", lambda setting: Result(faults=["ssd is off by 3"]))
    assert run("--rehearse", "--output", str(tmp_path), "--only", "memory,kernels,data_parallel") == 1
    sections = json.loads((tmp_path / "report.json").read_text())["sections"]
    assert [section["status"] for section in sections.values()] == ["error", "failed", "passed"]
    assert sections["memory"]["error"] == "RuntimeError: no room"
    page = (tmp_path / "report.md").read_text()
    assert "- **RuntimeError: no room**" in page
    assert "- **ssd is off by 3**" in page
    assert "1 of 3 sections passed" in capsys.readouterr().out


def test_a_loss_that_does_not_read_the_labels_fails_the_parity(run, tmp_path: Path, monkeypatch) -> None:
    from gpu_sections import numbers

    exact = numbers.loss_of
    fixed: list[object] = []

    def blind(objective, batch, phase, bf16):
        fixed.append(batch)
        return exact(objective, fixed[0], phase, bf16)

    monkeypatch.setattr(numbers, "loss_of", blind)
    assert run("--rehearse", "--output", str(tmp_path), "--only", "autocast") == 1
    (fault,) = json.loads((tmp_path / "report.json").read_text())["sections"]["autocast"]["result"]["faults"]
    assert fault.startswith("labels shifted by one change the loss by 0.")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "error: torch sees no GPU here; --rehearse runs it at toy size on the CPU\n"),
        (("--rehearse", "--only", "kernles"), "error: unknown section 'kernles'; choose from kernels, "),
    ],
)
def test_what_cannot_run_ends_in_one_line(run, capsys, monkeypatch, arguments: tuple[str, ...], line: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(*arguments) == 2
    assert capsys.readouterr().err.startswith(line)


@pytest.mark.slow
def test_a_killed_run_resumes(run, tmp_path: Path) -> None:
    assert run("--rehearse", "--output", str(tmp_path), "--only", "resume") == 0
    (table,) = json.loads((tmp_path / "report.json").read_text())["sections"]["resume"]["result"]["tables"]
    values = {row[0]: row[1] for row in table["rows"]}
    assert values["continued"].startswith("continuing after step ")
    assert values["relative difference of weights, at most 0e+00"] == 0.0
