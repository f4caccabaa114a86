"""Pin every version: rewrite `constraint-dependencies` in pyproject.toml, and requirements.txt, from a resolution.

    uv run scripts/update_pins.py             # keep the pinned versions, pin what is new
    uv run scripts/update_pins.py --upgrade   # newest versions that the ranges in pyproject.toml allow

Works in a temporary folder: neither uv.lock nor the installed environment is touched.
"""

import argparse
import re
import shutil
import subprocess
import tempfile
import tomllib
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "mode-ssm"
BLOCK = re.compile(r"^constraint-dependencies = \[\n(?:  .*\n)*\]\n", re.MULTILINE)
HEADER = "# Versions and hashes of the run-time packages; written by scripts/update_pins.py, do not edit.\n"


def locked_versions(lock: Path) -> dict[str, str]:
    """{package: version} of a uv.lock; of two versions for two Pythons the older, which both can run."""
    versions: dict[str, str] = {}
    for package in tomllib.loads(lock.read_text())["package"]:
        name, version = package["name"], package["version"]
        if name != PROJECT and (name not in versions or Version(version) < Version(versions[name])):
            versions[name] = version
    return dict(sorted(versions.items()))


def with_pins(pyproject: str, versions: dict[str, str]) -> str:
    """`pyproject` with its block of constraints replaced; an empty dictionary empties it."""
    if not BLOCK.search(pyproject):
        raise ValueError("pyproject.toml has no constraint-dependencies list to rewrite")
    lines = "".join(f'  "{name}=={version}",\n' for name, version in versions.items())
    return BLOCK.sub(lambda _: f"constraint-dependencies = [\n{lines}]\n", pyproject)


def resolve(pyproject: str, folder: Path) -> dict[str, str]:
    """Versions that `uv lock` finds for `pyproject`, resolved in `folder`."""
    (folder / "pyproject.toml").write_text(pyproject)
    (folder / "uv.lock").unlink(missing_ok=True)
    subprocess.run(["uv", "lock", "--quiet"], cwd=folder, check=True)
    return locked_versions(folder / "uv.lock")


def export(folder: Path) -> str:
    """requirements.txt of the locked project: core and the `speech` extra; the other extras need a compiler."""
    command = ["uv", "export", "--quiet", "--frozen", "--no-dev", "--extra", "speech", "--no-emit-project"]
    command += ["--no-header", "--no-annotate", "--format", "requirements-txt"]
    return HEADER + subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="forget the present pins")
    arguments = parser.parse_args()

    path = ROOT / "pyproject.toml"
    pyproject = path.read_text()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copy(ROOT / "README.md", folder)
        shutil.copytree(ROOT / "mode_ssm", folder / "mode_ssm", ignore=shutil.ignore_patterns("__pycache__"))
        versions = resolve(with_pins(pyproject, {}) if arguments.upgrade else pyproject, folder)
        pinned = with_pins(pyproject, versions)
        if (again := resolve(pinned, folder)) != versions:
            raise ValueError(f"the pins do not reproduce themselves: {set(again.items()) ^ set(versions.items())}")
        requirements = export(folder)
    path.write_text(pinned)
    (ROOT / "requirements.txt").write_text(requirements)
    print(f"pinned {len(versions)} packages in pyproject.toml and requirements.txt")


if __name__ == "__main__":
    main()
