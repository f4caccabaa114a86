"""What a run shows and writes: metrics.jsonl, TensorBoard, a progress bar or plain lines.

metrics.jsonl holds one JSON object a line:
    {"kind": "train", "step", "phase", "epoch", "train/loss", "train/<term>", "lr", "grad_norm",
     "trials_per_second", "seconds"}
    {"kind": "evaluation", "step", "phase", "val/...", "seconds"}
`train/loss` is the weighted sum of the terms, each per count; `seconds` is training time since the start of the run.
"""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mode_ssm.config import LoggingConfig
from mode_ssm.train.curriculum import ResolvedPhase
from mode_ssm.train.run_directory import METRICS

PLAIN_EVERY_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """One optimizer step. `terms` are global means, `seconds` what the step took."""

    step: int
    step_in_phase: int
    phase: ResolvedPhase
    epoch: float
    loss: float
    terms: Mapping[str, float]
    learning_rate: float
    gradient_norm: float
    trials: int
    seconds: float


class Sink(Protocol):
    """A place that lines go to."""

    def step(self, record: StepRecord, trials_per_second: float) -> None: ...
    def line(self, line: Mapping[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


class RunLogger:
    """Hands every step and evaluation to its sinks; without sinks (ranks above 0) it is silent."""

    def __init__(self, sinks: Sequence[Sink], every_steps: int) -> None:
        self._sinks = sinks
        self._every_steps = every_steps
        self._trials = 0
        self._seconds = 0.0

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for sink in self._sinks:
            sink.close()

    def step(self, record: StepRecord, run_seconds: float) -> None:
        """A line every `every_steps` steps of a phase, and at its first and last."""
        self._trials += record.trials
        self._seconds += record.seconds
        speed = self._trials / max(self._seconds, 1e-9)
        for sink in self._sinks:
            sink.step(record, speed)
        n = record.step_in_phase
        if n == 1 or n == record.phase.steps or n % self._every_steps == 0:
            self._emit(
                {
                    "kind": "train",
                    "step": record.step,
                    "phase": record.phase.name,
                    "epoch": round(record.epoch, 4),
                    "train/loss": record.loss,
                    **{f"train/{term}": value for term, value in record.terms.items()},
                    "lr": record.learning_rate,
                    "grad_norm": record.gradient_norm,
                    "trials_per_second": round(speed, 2),
                    "seconds": round(run_seconds, 3),
                }
            )
            self._trials, self._seconds = 0, 0.0

    def evaluation(self, step: int, phase: str, metrics: Mapping[str, float], run_seconds: float) -> None:
        self._emit({"kind": "evaluation", "step": step, "phase": phase, **metrics, "seconds": round(run_seconds, 3)})
        values = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self.note(f"{phase}, step {step}: {values}")

    def note(self, text: str) -> None:
        for sink in self._sinks:
            sink.note(text)

    def _emit(self, line: Mapping[str, Any]) -> None:
        for sink in self._sinks:
            sink.line(line)


def open_logger(
    run_dir: Path, config: LoggingConfig, phases: Sequence[ResolvedPhase], start_step: int, is_main: bool
) -> RunLogger:
    """The logger of this rank. Lines beyond `start_step` are leftovers of a run that was killed, and are dropped."""
    if config.every_steps < 1:
        raise ValueError(f"logging.every_steps={config.every_steps} must be 1 or more")
    sinks: list[Sink] = []
    if is_main:
        sinks.append(MetricsFile(run_dir / METRICS, start_step))
        if config.tensorboard:
            sinks.append(TensorBoardEvents(run_dir, start_step))
        if config.progress:
            sinks.append(_display(phases, start_step))
    return RunLogger(sinks, config.every_steps)


def _display(phases: Sequence[ResolvedPhase], start_step: int) -> Sink:
    total = sum(phase.steps for phase in phases)
    console = Console(stderr=True)
    if console.is_terminal:
        return ProgressBars(console, len(phases), total, start_step)
    return PlainLines(len(phases), total)


class MetricsFile:
    def __init__(self, path: Path, start_step: int) -> None:
        self._file = _kept_lines(path, start_step)

    def step(self, record: StepRecord, trials_per_second: float) -> None:
        """Lines only."""

    def line(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def note(self, text: str) -> None:
        """Lines only."""

    def close(self) -> None:
        self._file.close()


def _kept_lines(path: Path, start_step: int) -> Any:
    """Open `path` for appending after dropping lines beyond `start_step`; a half-written last line goes too."""
    kept = []
    if path.exists():
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                break
            if line["step"] <= start_step:
                kept.append(text + "\n")
    partial = path.with_name(f".partial_{path.name}")
    partial.write_text("".join(kept))
    os.replace(partial, path)
    return path.open("a")


class TensorBoardEvents:
    def __init__(self, run_dir: Path, start_step: int) -> None:
        # Imported here: it takes a second, and runs without TensorBoard should not pay for it.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir), purge_step=start_step + 1)

    def step(self, record: StepRecord, trials_per_second: float) -> None:
        """Lines only."""

    def line(self, line: Mapping[str, Any]) -> None:
        for name, value in line.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(name, value, line["step"])

    def note(self, text: str) -> None:
        """Lines only."""

    def close(self) -> None:
        self._writer.close()


def _stage(record: StepRecord, num_phases: int) -> str:
    return f"stage {record.phase.index + 1}/{num_phases} {record.phase.name}"


class ProgressBars:
    """Two bars on a terminal: the stage with loss, learning rate and throughput, and the whole run."""

    def __init__(self, console: Console, num_phases: int, run_steps: int, start_step: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._num_phases = num_phases
        self._phase: str | None = None
        self._stage_bar = self._progress.add_task("starting", total=None, values="")
        self._run_bar = self._progress.add_task("whole run", total=run_steps, completed=start_step, values="")
        self._progress.start()

    def step(self, record: StepRecord, trials_per_second: float) -> None:
        if record.phase.name != self._phase:
            self._phase = record.phase.name
            self._progress.reset(
                self._stage_bar,
                total=record.phase.steps,
                completed=record.step_in_phase - 1,
                description=_stage(record, self._num_phases),
            )
        values = f"loss {record.loss:.4f}  lr {record.learning_rate:.2e}  {trials_per_second:.0f} trials/s"
        self._progress.update(self._stage_bar, completed=record.step_in_phase, values=values)
        self._progress.update(self._run_bar, completed=record.step)

    def line(self, line: Mapping[str, Any]) -> None:
        """Bars and notes only."""

    def note(self, text: str) -> None:
        self._progress.console.print(text, highlight=False)

    def close(self) -> None:
        self._progress.stop()


class PlainLines:
    """For logs: a line about every ten seconds, and every note."""

    def __init__(self, num_phases: int, run_steps: int) -> None:
        self._num_phases = num_phases
        self._run_steps = run_steps
        self._last = float("-inf")
        self._started: tuple[float, int] | None = None

    def step(self, record: StepRecord, trials_per_second: float) -> None:
        now = time.monotonic()
        self._started = self._started or (now - record.seconds, record.step - 1)
        if now - self._last < PLAIN_EVERY_SECONDS and record.step_in_phase != record.phase.steps:
            return
        self._last = now
        since, from_step = self._started
        per_step = (now - since) / (record.step - from_step)
        stage_left = (record.phase.steps - record.step_in_phase) * per_step
        run_left = (self._run_steps - record.step) * per_step
        self.note(
            f"{_stage(record, self._num_phases)}  step {record.step_in_phase}/{record.phase.steps}"
            f"  loss {record.loss:.4f}  lr {record.learning_rate:.2e}  {trials_per_second:.0f} trials/s"
            f"  left: stage {_clock(stage_left)}, run {_clock(run_left)}"
        )

    def line(self, line: Mapping[str, Any]) -> None:
        """Notes only."""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is open."""


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
