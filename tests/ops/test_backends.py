"""Dispatch: chosen once, said in one line, refused rather than swapped."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from mode_ssm.ops import backends
from mode_ssm.ops.cpu import build, library


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No memory of what other tests probed or asked for."""
    monkeypatch.delenv(backends.ENVIRONMENT_KEY, raising=False)

    def forget() -> None:
        backends.request("auto")
        for cached in (backends.why_not, backends._cpu_backend, backends.kernel, library.library):
            cached.cache_clear()

    forget()
    yield
    monkeypatch.undo()
    forget()


def chosen(op: str = "ssd", dtype: torch.dtype = torch.float32) -> str:
    return backends.choose(op, "cpu", dtype)


def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)


def test_one_line_names_the_kernel_of_every_op() -> None:
    line = backends.describe("cpu")
    assert "\n" not in line
    assert [part.split(": ")[0] for part in line.split("; ")] == list(backends.OPS)


def test_float64_takes_the_torch_path_whatever_was_asked_for() -> None:
    backends.request("cpu")
    assert chosen(dtype=torch.float64) == "torch"


def test_a_name_for_all_and_names_for_some() -> None:
    backends.request("torch")
    assert {backends.choose(op, "cpu", torch.float32) for op in backends.OPS} == {"torch"}
    backends.request("ssd=torch, selective_scan=cpu-portable")
    assert (chosen("ssd"), chosen("selective_scan")) == ("torch", "cpu-portable")
    assert chosen("causal_conv") != "torch"


def test_the_fastest_is_measured_and_the_request_stands() -> None:
    backends.request("silu_gate=fastest")
    assert chosen("silu_gate") in backends.offered("silu_gate")
    assert backends.requested() == "silu_gate=fastest"


def test_the_environment_is_heard_before_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backends.ENVIRONMENT_KEY, "cpu-portable")
    backends.request("torch")
    assert chosen() == "cpu-portable"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cuda", "unknown backend 'cuda'; choose one of auto, cpu, fastest, torch"),
        ("sdd=torch", "unknown op 'sdd' in backend 'sdd=torch'; choose one of selective_scan, ssd"),
        ("silu_gate=mamba-ssm", "silu_gate has no backend mamba-ssm; choose one of torch"),
        ("mamba-ssm", "backend mamba-ssm was asked for and cannot run here: "),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        backends.request(spec)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_triton_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="backend triton was asked for and cannot run here: "):
        backends.request("triton")


def test_a_kernel_of_another_device_is_refused_at_the_call() -> None:
    backends.request("ssd=cpu-portable")
    with pytest.raises(ValueError, match="the tensors are on cuda, it runs on cpu"):
        backends.choose("ssd", "cuda", torch.float32)


def test_without_a_compiler_the_torch_path_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without_compiler(monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert {backends.choose(op, "cpu", torch.float32) for op in backends.OPS} == {"torch"}
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("compiled kernels are off: no C compiler (cc, gcc, clang);")


def test_without_a_compiler_compiled_kernels_that_were_asked_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    without_compiler(monkeypatch)
    for spec in ("cpu", "cpu-portable", "ssd=cpu-portable"):
        with pytest.raises(ValueError, match=r"cannot run here: no C compiler"):
            backends.request(spec)


def test_a_compiler_that_fails_is_reported_with_its_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "cc"  # type: ignore[operator]
    broken.write_text("#!/bin/sh\necho 'x.c:1: error: no such instruction' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("MODE_SSM_CACHE", str(tmp_path / "cache"))  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        assert chosen() == "torch"
    (line,) = [record.getMessage() for record in caplog.records]
    assert "failed with status 3: x.c:1: error: no such instruction" in line
    assert list((tmp_path / "cache").iterdir()) == []  # type: ignore[operator]


def test_a_cpu_without_avx2_gets_the_portable_kernels() -> None:
    program = "from mode_ssm.ops import backends; print(backends.describe('cpu'))"
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "ssd: cpu-portable" in result.stdout
    asked = environment | {backends.ENVIRONMENT_KEY: "cpu-avx2"}
    program = "from mode_ssm.ops import backends; backends.request('auto')"
    refused = subprocess.run([sys.executable, "-c", program], env=asked, capture_output=True, text=True, check=False)
    assert "backend cpu-avx2 was asked for and cannot run here: this CPU has no AVX2" in refused.stderr


def test_levels_are_those_that_torch_finds() -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    assert "portable" in library.usable_levels()
    assert ("avx512" in library.usable_levels()) == (capability == "AVX512")
    assert set(library.usable_levels()) <= set(build.LEVELS)
