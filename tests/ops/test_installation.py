"""What is known not to work together."""

from pathlib import Path

import pytest

from mode_ssm.ops import installation
from mode_ssm.ops.installation import known_problems, versions

KNOWN_GOOD = {
    "torch": "2.2.2+cu121",
    "numpy": "1.26.4",
    "mamba-ssm": "2.2.2",
    "causal-conv1d": "1.4.0",
    "triton": "2.2.0",
    "CUDA of torch": "12.1",
    "GPU": "NVIDIA H200",
}


def test_the_known_good_set_has_no_problem() -> None:
    assert known_problems(KNOWN_GOOD) == []


def test_nothing_but_torch_has_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "NVIDIA_DEVICE", Path("/nowhere"))
    assert known_problems({"torch": "2.11.0", "numpy": "2.4.6", "GPU": None}) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"numpy": "2.0.1"}, "torch 2.2.2+cu121 was built for numpy 1 and numpy is 2.0.1: install numpy<2"),
        ({"torch": "2.10.0"}, "wheels of mamba-ssm 2.2.2 are for torch 2.0, 2.1, 2.2, 2.3, 2.4, torch is 2.10.0: "),
        ({"mamba-ssm": "2.3.1"}, "wheels of mamba-ssm 2.3.1 are for torch 2.6, 2.7, 2.8, 2.9, 2.10, torch is 2.2.2"),
        ({"causal-conv1d": "1.0.0"}, "wheels of causal-conv1d 1.0.0 are for torch before 2.0"),
        ({"mamba-ssm": "2.3.2"}, "mamba-ssm 2.3.2 asks for triton 3.5 or later and triton is 2.2.0"),
        ({installation.TRITON_WANTED: "==3.6.0"}, "torch 2.2.2+cu121 asks for triton==3.6.0 and triton is 2.2.0"),
    ],
)
def test_combinations_that_fail_are_named(change: dict[str, str], problem: str) -> None:
    assert any(line.startswith(problem) for line in known_problems({**KNOWN_GOOD, **change}))


def test_a_gpu_that_torch_cannot_see_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "NVIDIA_DEVICE", tmp_path)
    (line,) = known_problems({**KNOWN_GOOD, "GPU": None})
    assert line.endswith("torch 2.2.2+cu121 sees no GPU: its CUDA 12.1 may be newer than the driver")
    (line,) = known_problems({**KNOWN_GOOD, "GPU": None, "CUDA of torch": None})
    assert line.endswith("sees no GPU: it is a build for CPUs")


def test_versions_name_what_is_here() -> None:
    found = versions()
    assert found["torch"]
    assert found["CPU"]
    assert {"python", "triton", "mamba-ssm", "causal-conv1d", "compiler", "CUDA of torch"} <= found.keys()
