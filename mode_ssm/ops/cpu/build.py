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
FLAGS = ("-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fPIC")

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
    """Every source in a process of its own, all at once, then one library of them."""
    # Without OpenMP (Apple's clang has none) the kernels are the same, on one thread.
    for openmp in (["-fopenmp"], []):
        with tempfile.TemporaryDirectory(prefix="mode_ssm-") as folder:
            objects = {source: Path(folder) / f"{source.stem}.o" for source in sorted(SOURCES.glob("*.c"))}
            running = [
                _start([*compiler, *flags, *openmp, "-c", str(source), "-o", str(target)])
                for source, target in objects.items()
            ]
            errors = [error for process in running if (error := _error_of(process))]
            if not errors:
                link = [*compiler, *flags, *openmp, "-shared", "-o", str(output), *map(str, objects.values()), "-lm"]
                errors = [error for error in [_error_of(_start(link))] if error]
            if not errors:
                return
    raise BuildError(f"{compiler[0]} {errors[0]}")


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _error_of(process: subprocess.Popen[str]) -> str | None:
    """Wait for it; its status and first error line, or None where it succeeded."""
    _, stderr = process.communicate()
    if process.returncode == 0:
        return None
    lines = [line for line in stderr.splitlines() if "error" in line] or stderr.splitlines() or ["no output"]
    return f"failed with status {process.returncode}: {lines[0].strip()}"


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
