"""Around a run: the options of an entry script, sweeps, and errors in one line."""

import errno
import itertools
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.types import Override

from mode_ssm.compose.keys import ConfigError
from mode_ssm.compose.overrides import EXPERIMENT, PACKAGE, Space, sweep_values

TRACEBACK_SWITCH = "MODE_SSM_TRACEBACK"
FILES_IN_THE_WAY = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
FRAME = re.compile(r'^  File "(.+)", line \d+', re.MULTILINE)  # of a traceback as text


@dataclass(frozen=True, slots=True)
class Flags:
    help: bool
    cfg: bool
    multirun: bool


def split_flags(argv: Sequence[str]) -> tuple[Flags, list[str]]:
    """Options of the script, and what remains: overrides."""
    rest: list[str] = []
    seen: set[str] = set()
    arguments = iter(argv)
    for argument in arguments:
        if argument in ("--help", "-h"):
            seen.add("help")
        elif argument in ("--multirun", "-m"):
            seen.add("multirun")
        elif argument in ("--cfg", "-c"):
            if next(arguments, None) != "job":
                raise ConfigError("--cfg takes one value: --cfg job")
            seen.add("cfg")
        else:
            rest.append(argument)
    return Flags(help="help" in seen, cfg="cfg" in seen, multirun="multirun" in seen), rest


def sweep_jobs(overrides: Sequence[Override], lines: Sequence[str], space: Space) -> list[list[str]]:
    """The overrides of every job of a sweep: the product of all swept values, the last key varying fastest."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("--multirun does not run under torchrun; start one torchrun for every setting")
    options: list[list[str]] = []
    for override, line in zip(overrides, lines, strict=True):
        if override.is_sweep_override():
            key = override.key_or_group
            options.append([f"{key}={value}" for value in sweep_values(override, space.groups.get(key, ()))])
        else:
            options.append([line])
    if all(len(values) == 1 for values in options):
        raise ConfigError("--multirun needs a setting with several values, such as optim.lr=1e-3,2e-3")
    return [list(job) for job in itertools.product(*options)]


def job_name(run_name: str, job: Sequence[str], lines: Sequence[str]) -> str:
    """A run directory of its own for every job: the run name and what the sweep changed."""
    changed = [line for line in job if line not in lines and line.split("=")[0] not in (EXPERIMENT, "run_name")]
    return re.sub(r"[^\w.-]+", "-", "_".join([run_name, *changed]))


def run_jobs(jobs: Sequence[Sequence[str]], names: Sequence[str]) -> int:
    """Run every job as a process of its own, one after the other; the first failure ends the sweep. Its exit code."""
    for number, (job, name) in enumerate(zip(jobs, names, strict=True), start=1):
        settings = [line for line in job if not line.startswith("run_name=")]
        print(f"[{number}/{len(jobs)}] {' '.join(settings)} -> {name}", flush=True)
        code = subprocess.run([sys.executable, sys.argv[0], *settings, f"run_name={name}"], check=False).returncode
        if code != 0:
            print(f"error: job {number} of {len(jobs)} ({name}) ended with exit code {code}", file=sys.stderr)
            return code
    return 0


def run_main(main: Callable[[], object]) -> None:
    """Run the `main` of an entry script. What a user can mend ends in `error: ...` and exit code 2, in all scripts.

    Those are `ValueError` and `OSError` in words of this project, here or in a worker process, files that are missing,
    in the way or forbidden, a full disk, and a worker that was killed. Exit code 1 is for work that was done and ended
    badly (a run that diverged, a kernel that is wrong; `main` raises `SystemExit`) and for a mistake inside of a
    library, which keeps its traceback. MODE_SSM_TRACEBACK=1 shows every traceback.
    """
    try:
        main()
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, BrokenProcessPool) as error:
        if not _mendable(error) or os.environ.get(TRACEBACK_SWITCH) == "1":
            raise
        if isinstance(error, OSError) and error.filename is not None:
            message = f"{str(error.strerror).lower()}: {error.filename}"
        elif isinstance(error, BrokenProcessPool):
            message = "a worker process was killed, perhaps for want of memory; fewer processes need less"
        else:
            message = str(error)
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2) from None


def _mendable(error: ValueError | OSError | BrokenProcessPool) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return isinstance(error, FILES_IN_THE_WAY) or error.errno in NO_ROOM
    return isinstance(error, (*FILES_IN_THE_WAY, BrokenProcessPool)) or _raised_here(error)


def _raised_here(error: Exception) -> bool:
    """Whether the innermost frame belongs to the package or to a script beside it."""
    frames = FRAME.findall(str(error.__cause__))  # a worker process sends its traceback as the text of the cause
    if not frames:
        frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    file = Path(frames[-1]).resolve()
    return file.is_relative_to(PACKAGE) or file.parent in (PACKAGE.parent, PACKAGE.parent / "scripts")
