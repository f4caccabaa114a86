"""Compile the C kernels at first use: about a second, then a file in the user's cache folder.

The file's name carries a hash of the sources, the flags, the compiler and the machine, so that a change of any of them
builds anew. It is written under a name of its own and renamed: processes that build at once do not see each other.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
# No -ffast-math: linked into a shared library it changes the whole process's floating-point mode.
FLAGS = ("-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")

log = logging.getLogger(__name__)


class BuildError(RuntimeError):
    """The kernels cannot be compiled here; the message is one line."""


@dataclass(frozen=True, slots=True)
class Level:
    """An instruction set: vector width, the compiler's flags, and the names that torch has for CPUs that know it."""

    lanes: int
    flags: tuple[str, ...]
    capabilities: tuple[str, ...]


LEVELS = {
    "avx512": Level(
        16,
        ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
        ("AVX512",),
    ),
    "avx2": Level(8, ("-mavx2", "-mfma"), ("AVX512", "AVX2")),
    "portable": Level(4, (), ("any",)),
}


def build(level: str) -> Path:
    """The shared library of `level`, compiled unless the cache has it.

    Where the cache folder cannot be written, it is compiled into a temporary one, anew in every process.

    Raises:
        BuildError: no C compiler (`CC`, cc, gcc, clang), or it fails.
    """
    compiler = find_compiler()
    flags = [*FLAGS, f"-DLANES={LEVELS[level].lanes}", *LEVELS[level].flags]
    name = f"ops-{level}-{_fingerprint(compiler, flags)}.so"
    folder = cache_folder()
    if (folder / name).is_file():
        return folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    except OSError as error:
        folder = Path(tempfile.mkdtemp(prefix="mode_ssm-"))
        log.warning("cache folder %s: %s; kernels are compiled anew in every process", cache_folder(), error.strerror)
        handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    os.close(handle)
    try:
        _compile(compiler, flags, Path(temporary))
        os.replace(temporary, folder / name)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return folder / name


def cache_folder() -> Path:
    """`$MODE_SSM_CACHE`, else `mode_ssm` in the user's cache folder."""
    if chosen := os.environ.get("MODE_SSM_CACHE"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mode_ssm"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mode_ssm"


def find_compiler() -> list[str]:
    """The command of a C compiler: `$CC`, else the first of cc, gcc and clang.

    Raises:
        BuildError: none is there.
    """
    candidates = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    for candidate in candidates:
        command = shlex.split(candidate)
        if shutil.which(command[0]):
            return command
    raise BuildError(f"no C compiler ({', '.join(candidates)})")


def _compile(compiler: list[str], flags: list[str], output: Path) -> None:
    sources = [str(path) for path in sorted(SOURCES.glob("*.c"))]
    # Without OpenMP (Apple's clang has none) the kernels are the same, on one thread.
    for openmp in (["-fopenmp"], []):
        command = [*compiler, *flags, *openmp, "-o", str(output), *sources, "-lm"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0:
            return
    lines = (
        [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines() or ["no output"]
    )
    raise BuildError(f"{compiler[0]} failed with status {result.returncode}: {lines[0].strip()}")


def _fingerprint(compiler: list[str], flags: list[str]) -> str:
    digest = hashlib.sha256()
    for path in sorted([*SOURCES.glob("*.c"), *SOURCES.glob("*.h")]):
        digest.update(path.name.encode() + path.read_bytes())
    executable = Path(shutil.which(compiler[0]) or compiler[0]).resolve()
    identity = [
        *compiler,
        str(executable),
        str(executable.stat().st_mtime_ns),
        *flags,
        platform.machine(),
        sys.platform,
    ]
    digest.update("\0".join(identity).encode())
    return digest.hexdigest()[:16]
