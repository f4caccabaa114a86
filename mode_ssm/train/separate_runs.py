"""Many trainings, each a process of train.py in a folder of its own: a crash of one loses nothing of the others."""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mode_ssm.config import TrainConfig
from mode_ssm.train.checkpoint import STATE, latest_checkpoint, load_checkpoint
from mode_ssm.train.run_directory import differing_keys

LOG_FILE, PROCESS_FILE, REPORT_FILE, _LOCK_FILE = "train.log", "process.json", "report.json", ".lock"

_POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class SeparateRun:
    """One training: `arguments` of train.py compose `config`; `name` as in `sim_gru_baseline/lr_0.001/seed_0`."""

    name: str
    row: str
    seed: int
    config: TrainConfig
    arguments: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return Path(self.config.run_dir)

    def finished(self) -> bool:
        """Whether it has been trained and reported on."""
        loop = self._loop()
        return loop is not None and loop["finished"] and (self.folder / REPORT_FILE).exists()

    def refuse_changes(self) -> None:
        """Raise `ValueError` where the folder holds a run with other settings."""
        latest = latest_checkpoint(self.folder)
        differing = [] if latest is None else differing_keys(load_checkpoint(latest).config, self.config)
        if differing:
            key, old, new = differing[0]
            more = f" and {len(differing) - 1} more" if differing[1:] else ""
            raise ValueError(
                f"{self.folder} holds a run with {key}={old}, not {new}{more}; restore it, choose another name=..., "
                "or delete the folder"
            )

    def seconds(self) -> float | None:
        """Of training and validation, over all starts; None before the first checkpoint."""
        loop = self._loop()
        return None if loop is None else float(loop["seconds"])

    def peak_memory(self) -> int | None:
        """Bytes of main memory that its largest process held at most; None where that was not seen."""
        file = self.folder / PROCESS_FILE
        return int(json.loads(file.read_text())["peak_memory"]) if file.exists() else None

    def _loop(self) -> dict[str, Any] | None:
        """Where the newest checkpoint stands; read without its configuration, which takes longer."""
        latest = latest_checkpoint(self.folder)
        loop: dict[str, Any] | None = None if latest is None else json.loads((latest / STATE).read_text())["loop"]
        return loop


class RunsProgress:
    """Which run of how many, and the time left; a line for each run that ends."""

    def __init__(self, bar: Progress, total: int, processes: int) -> None:
        self._bar, self._total, self._processes = bar, total, processes
        self._task = bar.add_task("", total=total)
        self._done = 0
        self._seconds: dict[str, list[float]] = defaultdict(list)  # of finished runs by row

    def running(self, running: Sequence[SeparateRun], ahead: Sequence[SeparateRun]) -> None:
        names = ", ".join(run.name for run in running)
        self._bar.update(self._task, description=names + self._left([*running, *ahead]))

    def ended(self, run: SeparateRun, outcome: str, ahead: Sequence[SeparateRun] = ()) -> None:
        self._done += 1
        if (seconds := run.seconds()) is not None:
            self._seconds[run.row].append(seconds)
        line = f"[{self._done}/{self._total}] {run.name}: {outcome}{self._left(ahead)}"
        self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        self._bar.advance(self._task)

    def _left(self, ahead: Sequence[SeparateRun]) -> str:
        known = [seconds for of_row in self._seconds.values() for seconds in of_row]
        if not known or not ahead:
            return ""
        each = [self._seconds.get(run.row) or known for run in ahead]
        seconds = sum(sum(of_row) / len(of_row) for of_row in each) / min(self._processes, len(ahead))
        return f", about {seconds / 60:.0f} min left"


@contextmanager
def runs_progress(total: int, processes: int) -> Iterator[RunsProgress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as bar:
        yield RunsProgress(bar, total, processes)


@dataclass(frozen=True, slots=True)
class _Running:
    run: SeparateRun
    process: subprocess.Popen[bytes]
    started: float


def train_all(
    runs: Sequence[SeparateRun], command: Sequence[str], processes: int, progress: RunsProgress
) -> dict[str, str]:
    """Train what is not finished, continuing what was begun, `processes` at a time; {name: reason} of what failed.

    command: what starts train.py. A run writes into `train.log` of its folder. When this process is interrupted, the
    trainings save, and the exception goes on once they have.
    """
    failures: dict[str, str] = {}
    waiting: list[SeparateRun] = []
    for run in runs:
        if run.finished():
            progress.ended(run, "was finished")
        else:
            waiting.append(run)
    running: dict[int, _Running] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                run = waiting.pop(0)
                try:
                    process = _start(run, command)
                    running[process.pid] = _Running(run, process, time.monotonic())
                except OSError as error:
                    failures[run.name] = str(error)
                    progress.ended(run, f"failed: {error}", waiting)
            progress.running([now.run for now in running.values()], waiting)
            if not running:
                continue
            ended, peak = _first_to_end(running)
            ahead = [*(other.run for other in running.values()), *waiting]
            _remember_memory(ended.run.folder, peak)
            reason = _failure(ended.run, ended.process.returncode)
            if reason is None:
                progress.ended(ended.run, f"trained in {(time.monotonic() - ended.started) / 60:.1f} min", ahead)
            else:
                failures[ended.run.name] = reason
                progress.ended(ended.run, f"failed: {reason}", ahead)
    except BaseException:
        for now in running.values():
            os.killpg(now.process.pid, signal.SIGTERM)
        for now in running.values():
            now.process.wait()
        raise
    return failures


def _start(run: SeparateRun, command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Raises `BlockingIOError` where a training of an earlier call still goes on."""
    run.folder.mkdir(parents=True, exist_ok=True)
    line = [*command, *run.arguments, "resume=true"]
    with (run.folder / _LOCK_FILE).open("w") as lock, (run.folder / LOG_FILE).open("a") as log:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"a process of an earlier call still trains in {run.folder}") from None
        log.write(f"$ {shlex.join(line)}\n")
        log.flush()
        # The lock is the child's as well, and goes when the last of both has gone. A session of its own: Ctrl-C comes
        # here, and from here to all processes of the training.
        return subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(lock.fileno(),), start_new_session=True
        )


def _first_to_end(running: dict[int, _Running]) -> tuple[_Running, int]:
    """Wait for one of them and take it out; it, and the bytes of main memory that it held at most.

    They are asked in turns: waiting for any child would take other children of this process from whom they belong to.
    """
    while True:
        for pid in running:
            found, status, usage = os.wait4(pid, os.WNOHANG)
            if found:
                ended = running.pop(pid)
                ended.process.returncode = os.waitstatus_to_exitcode(status)  # or Popen would wait for it as well
                return ended, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        time.sleep(_POLL_SECONDS)


def _failure(run: SeparateRun, code: int) -> str | None:
    if code == 0 and run.finished():
        return None
    last = ""
    for text in (run.folder / LOG_FILE).read_text(errors="replace").splitlines():
        last = text.strip() or last
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{how}, {last.removeprefix('error: ')} ({run.folder / LOG_FILE})"


def _remember_memory(folder: Path, peak: int) -> None:
    """The most of all starts of a run."""
    file = folder / PROCESS_FILE
    before = json.loads(file.read_text())["peak_memory"] if file.exists() else 0
    partial = file.with_name(f".partial_{PROCESS_FILE}")
    partial.write_text(json.dumps({"peak_memory": max(peak, before)}) + "\n")
    os.replace(partial, file)
