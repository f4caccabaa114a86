"""Every version is pinned, the two lists of pins agree, and no committed file names where a package comes from."""

import re
import subprocess
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(pin.split("==") for pin in PROJECT["tool"]["uv"]["constraint-dependencies"])
REQUIREMENTS = (ROOT / "requirements.txt").read_text()
REQUIRED = dict(re.findall(r"^([\w.-]+)==([\w.+-]+)", REQUIREMENTS, re.MULTILINE))
DIRECT = {
    "core": PROJECT["project"]["dependencies"],
    **PROJECT["project"]["optional-dependencies"],
    **PROJECT["dependency-groups"],
}
ADDRESS = re.compile(r"https?://(pypi|files\.pythonhosted|download\.pytorch)")


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)


def committed_files() -> list[Path]:
    """Files that git tracks or would add; in an unpacked archive without git, none."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout.split("\0")
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


def test_requirements_agree_with_the_pins():
    assert REQUIRED.items() <= PINS.items()


@pytest.mark.parametrize("group", DIRECT)
def test_every_direct_dependency_is_pinned_within_its_range(group):
    for line in DIRECT[group]:
        requirement = Requirement(line)
        version = PINS[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{line} is pinned to {version}"


def test_requirements_hold_what_runs_and_nothing_that_needs_a_compiler():
    names = {group: {canonicalize_name(Requirement(line).name) for line in lines} for group, lines in DIRECT.items()}
    assert names["core"] | names["speech"] <= REQUIRED.keys()
    assert not (names["cuda"] | names["kenlm"] | names["dev"]) & REQUIRED.keys()


def test_every_requirement_has_a_hash_and_no_address():
    blocks = re.split(r"\n(?=\S)", REQUIREMENTS.strip())
    pinned = [block for block in blocks if not block.startswith("#")]
    assert len(pinned) == len(REQUIRED)
    assert all("--hash=sha256:" in block for block in pinned)
    assert "://" not in REQUIREMENTS
    assert " @ " not in REQUIREMENTS


def test_everything_installed_is_pinned_to_the_installed_version():
    installed = {canonicalize_name(found.metadata["Name"]): found.version for found in distributions()}
    known = {name: version for name, version in installed.items() if name in PINS}
    assert known.items() <= PINS.items()
    assert len(known) >= len(DIRECT["core"])


def test_the_lock_file_is_not_committed():
    assert git("check-ignore", "uv.lock").stdout == "uv.lock\n"
    assert git("ls-files", "uv.lock").stdout == ""


def test_no_committed_file_names_a_registry_address():
    files = [file for file in committed_files() if file.stat().st_size < 2**20]
    assert files
    assert [file for file in files if ADDRESS.search(file.read_bytes().decode(errors="replace"))] == []


@pytest.mark.parametrize("address", ["https://" + "pypi.org/simple", "http://" + "download.pytorch.org/whl"])
def test_an_address_would_be_found(address):
    assert ADDRESS.search(f'index = "{address}"')
