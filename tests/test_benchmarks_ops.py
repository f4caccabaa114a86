"""benchmarks/ops.py at toy size: every figure is there, and both sides of a ratio compute the same thing."""

import json
import math
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
KEYS = (
    "scan_vs_naive", "scan_vs_mambapy", "scan_memory_vs_naive", "encoder_vs_gru", "encoder_vs_transformer",
    "rnnt_vs_torchaudio", "stream_ms_eager", "stream_ms_onnx", "stream_ms_int8",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _process_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.set_flush_denormal(False)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ops.py", *arguments])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(BENCHMARKS / "ops.py"), run_name="__main__")
    return int(done.value.code or 0)


def test_every_figure_is_measured_or_null_with_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ops_scan import QUICK_MEMORY

    report = tmp_path / "ops.json"
    assert run(monkeypatch, "--quick", "--json", str(report)) == 0
    figures = json.loads(report.read_text())
    for key in KEYS:
        assert figures[key] is not None or figures["notes"][key], key
        assert figures[key] is None or figures[key] >= 0, key
    assert figures["quick"] is True
    assert figures["scan_vs_naive"] > 0
    if figures["scan_memory_vs_naive"] is not None:
        least = float(figures["notes"]["scan_memory_vs_naive"].partition("naive at least ")[2].split()[0])
        assert least > 4 * math.prod(QUICK_MEMORY) / 2**20  # the states of all frames
        assert figures["scan_memory_vs_naive"] < 0.5
    assert "GEMM" in " ".join(figures["details"]["encoder"])


def test_a_part_alone_leaves_the_others_null(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = tmp_path / "ops.json"
    assert run(monkeypatch, "--quick", "--only", "rnnt", "--json", str(report)) == 0
    figures = json.loads(report.read_text())
    assert [key for key in KEYS if figures[key] is not None] == ["rnnt_vs_torchaudio"]
    assert figures["notes"]["scan_vs_naive"] == "not measured: --only leaves scan out"


def test_an_unknown_part_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--only", "scna") == 2
    assert capsys.readouterr().err == "ops: unknown part 'scna'; choose from scan, encoder, rnnt, stream\n"


@pytest.mark.parametrize("name", ["naive", "mambapy"])
def test_the_peers_compute_the_same_scan(name: str) -> None:
    from ops_scan import SCANS, both_ways

    if name == "mambapy":
        pytest.importorskip("mambapy.pscan")
    shape = (2, 9, 5, 3)
    torch.testing.assert_close(both_ways(name, shape)(), both_ways("ours", shape)(), rtol=1e-5, atol=1e-5)
    torch.manual_seed(0)
    leaves = [torch.rand(2, 9, 5), torch.rand(2, 9, 5), -torch.rand(5, 3), torch.rand(2, 9, 3), torch.rand(2, 9, 3)]
    leaves = [leaf.requires_grad_() for leaf in (*leaves, torch.rand(5))]
    gradients = [torch.autograd.grad(SCANS[scan](*leaves).square().sum(), leaves) for scan in ("ours", name)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_peer_that_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import ops_scan

    monkeypatch.setattr(ops_scan, "_free_memory", lambda: 2.0**10)
    rows = {row.key: row for row in ops_scan.scan(quick=True).rows}
    assert [row.value for row in rows.values()] == [None, None, None]
    for key in ("scan_vs_naive", "scan_memory_vs_naive"):
        assert rows[key].note == "needs about 0 GiB, 0 GiB are free"


@pytest.mark.parametrize(("width", "parameters", "head"), [(512, 13_236_608, 64), (64, 54_352, 4)])
def test_the_transformer_has_as_many_parameters_and_is_causal(width: int, parameters: int, head: int) -> None:
    from ops_encoder import matched_transformer, parameters_of

    transformer = matched_transformer(width, parameters, head)
    assert abs(parameters_of(transformer) / parameters - 1) <= 0.02
    if width == 64:
        x = torch.randn(1, 8, width, requires_grad=True)
        mask = nn.Transformer.generate_square_subsequent_mask(8)
        transformer(x, mask=mask, is_causal=True)[0, 3].sum().backward()
        assert x.grad is not None
        assert x.grad[0, :4].abs().sum(-1).min() > 0
        assert x.grad[0, 4:].count_nonzero() == 0
