"""What is installed for the kernels, and which of it is known not to work together.

The rules come from the packages' own metadata, change logs and the lists of torch versions that their releases were
built for; whether a backend runs is found out elsewhere, by running it.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.version import Version

from mode_ssm.ops.cpu.build import BuildError, find_compiler

PACKAGES = ("torch", "triton", "mamba-ssm", "causal-conv1d", "numpy")
TRITON_WANTED = "triton that torch asks for"
NVIDIA_DEVICE = Path("/dev/nvidiactl")
KNOWN_GOOD = (
    "torch 2.2.2+cu121, mamba-ssm 2.2.2, causal-conv1d 1.4.0, numpy below 2",
    "newer torch, mamba-ssm 2.3.x and causal-conv1d 1.6 built from source against it",
)
# First release of a package -> the torch releases that its wheels, and those of later ones, were built for.
WHEELS = {
    "mamba-ssm": {
        "2.2.2": ("2.0", "2.1", "2.2", "2.3", "2.4"),
        "2.2.4": ("2.1", "2.2", "2.3", "2.4", "2.5", "2.6"),
        "2.2.5": ("2.4", "2.5", "2.6", "2.7"),
        "2.3.1": ("2.6", "2.7", "2.8", "2.9", "2.10"),
    },
    "causal-conv1d": {
        "1.4.0": ("2.0", "2.1", "2.2", "2.3", "2.4"),
        "1.5.0": ("2.1", "2.2", "2.3", "2.4", "2.5", "2.6"),
        "1.5.2": ("2.4", "2.5", "2.6", "2.7"),
        "1.6.0": ("2.5", "2.6", "2.7", "2.8", "2.9"),
        "1.6.1": ("2.6", "2.7", "2.8", "2.9", "2.10"),
    },
}


def versions() -> dict[str, str | None]:
    """Versions by name, None for what is not installed, and what the CPU, GPU and compiler call themselves."""
    found = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    found["torch"] = torch.__version__  # the metadata lacks the build, +cu121
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        **found,
        TRITON_WANTED: _triton_that_torch_wants(),
        "CUDA of torch": torch.version.cuda,
        "GPU": gpu,
        "compiler": _compiler(),
        "CPU": torch.backends.cpu.get_cpu_capability(),
        "CPU threads": str(torch.get_num_threads()),
    }


def known_problems(found: dict[str, str | None]) -> list[str]:
    """A line for every combination in `found` that is known to fail or to need care."""
    problems = []
    torch_version = Version(found["torch"] or "0")
    numpy_version = found.get("numpy")
    if numpy_version and Version(numpy_version) >= Version("2") and torch_version < Version("2.3"):
        problems.append(f"torch {torch_version} was built for numpy 1 and numpy is {numpy_version}: install numpy<2")
    for package in WHEELS:
        if problem := _wheel_problem(package, found.get(package), torch_version):
            problems.append(problem)
    mamba, triton = found.get("mamba-ssm"), found.get("triton")
    if mamba and triton and Version(mamba) >= Version("2.3.2") and Version(triton) < Version("3.5"):
        problems.append(f"mamba-ssm {mamba} asks for triton 3.5 or later and triton is {triton}")
    wanted = found.get(TRITON_WANTED)
    if wanted and triton and triton not in Requirement(f"triton{wanted}").specifier:
        problems.append(f"torch {torch_version} asks for triton{wanted} and triton is {triton}")
    if NVIDIA_DEVICE.exists() and found.get("GPU") is None:
        cuda = found.get("CUDA of torch")
        reason = f"its CUDA {cuda} may be newer than the driver" if cuda else "it is a build for CPUs"
        problems.append(f"{NVIDIA_DEVICE} exists, but torch {torch_version} sees no GPU: {reason}")
    return problems


def _triton_that_torch_wants() -> str | None:
    """The version in the installed torch's own requirements, `==3.6.0`; None where it names none for this system."""
    for line in requires("torch") or []:
        requirement = Requirement(line)
        if requirement.name == "triton" and (requirement.marker is None or requirement.marker.evaluate()):
            return str(requirement.specifier)
    return None


def _wheel_problem(package: str, installed: str | None, torch_version: Version) -> str | None:
    if installed is None:
        return None
    lists = [torches for first, torches in WHEELS[package].items() if Version(first) <= Version(installed)]
    release = f"{torch_version.major}.{torch_version.minor}"
    if lists and release in lists[-1]:
        return None
    built_for = ", ".join(lists[-1]) if lists else "before 2.0"
    return (
        f"wheels of {package} {installed} are for torch {built_for}, torch is {torch_version}: it works only where it "
        "was built from source against this torch (pip install --no-build-isolation --no-binary :all:)"
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _compiler() -> str | None:
    try:
        command = find_compiler()
    except BuildError:
        return None
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False, env=environment)
    first = (done.stdout.splitlines() or [command[0]])[0]
    return re.sub(r"\s+", " ", first)
