"""Several models with several seeds on one dataset: what `scripts/compare.py` does.

Every run is trained by a process of train.py in `runs/<name>/<row>/seed_<s>`, or `.../<row>/lr_<rate>/seed_<s>` where
learning rates are tried. What is finished stays as it is.
"""

import json
import statistics
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mode_ssm.config import CompareConfig, TaskName, TrainConfig
from mode_ssm.inference_measurement import Measurement, measure
from mode_ssm.report_comparison import write_comparison
from mode_ssm.tasks.choice import prepare_data
from mode_ssm.tasks.comparison import compare
from mode_ssm.tasks.progress import progress_bar
from mode_ssm.train.checkpoint import git_commit
from mode_ssm.train.run_directory import METRICS
from mode_ssm.train.separate_runs import LOG_FILE, REPORT_FILE, SeparateRun, runs_progress, train_all

Compose = Callable[[list[str]], TrainConfig]


def run_comparison(
    config: CompareConfig, rows: Mapping[str, list[str]], compose: Compose, command: Sequence[str]
) -> dict[str, Any]:
    """Train what is missing, measure, write `compare.json`, `compare.html` and `compare.md`; the content of the first.

    rows: overrides of train.py for each row. compose: from overrides to a checked configuration. command: starts
    train.py. Runs that fail are listed under `failures`; the others are compared.

    Raises `ValueError` before anything is trained for a configuration that makes no sense, for rows on several datasets
    and for folders that hold runs with other settings; and where every run has failed.
    """
    folder = Path("runs") / config.name
    plan = Plan(config, rows, compose, folder)
    plan.check()
    prepare_data(plan.first_runs[0].config)
    with runs_progress(plan.total, config.processes) as progress:
        failures = train_all(plan.first_runs, command, config.processes, progress)
        chosen, tried = plan.choose(failures)
        later = [run for row, rate in chosen.items() for run in plan.later_runs(row, rate)]
        failures |= train_all(later, command, config.processes, progress)
    measured = _measure_all(plan.compared(chosen, failures), failures)
    if not measured:
        raise ValueError(f"every run has failed: {'; '.join(f'{name}: {why}' for name, why in failures.items())}")
    summary = _summary(rows, measured, tried, failures, config.samples)
    curves = {row: [run.folder / METRICS for run, _ in of_row] for row, of_row in measured.items()}
    write_comparison(folder, summary, curves)
    return summary


class Plan:
    """Which trainings there are, in which folders."""

    def __init__(self, config: CompareConfig, rows: Mapping[str, list[str]], compose: Compose, folder: Path) -> None:
        self.config, self._rows, self._compose, self._folder = config, rows, compose, folder
        first, *_ = config.seeds
        self._tried = {
            row: [self._run(row, first, rate) for rate in config.tune_lr[row]] for row in rows if row in config.tune_lr
        }
        self.first_runs = [
            run
            for row in rows
            for run in (self._tried.get(row) or [self._run(row, seed, None) for seed in config.seeds])
        ]
        self.total = len(self.first_runs) + len(self._tried) * (len(config.seeds) - 1)

    def check(self) -> None:
        """What can be told before anything is trained."""
        roots = {run.row: run.config.data.root for run in self.first_runs}
        if len(set(roots.values())) > 1:
            told = ", ".join(f"{row}: {root}" for row, root in roots.items())
            raise ValueError(f"rows are compared on one dataset, but data.root differs ({told}); give data.root=...")
        for run in self.first_runs:
            if run.config.task.name is not TaskName.transcription:
                raise ValueError(f"{run.row} is of task={run.config.task.name.value}; transcription is compared")
            run.refuse_changes()

    def choose(self, failures: Mapping[str, str]) -> tuple[dict[str, float], dict[str, dict[str, float | None]]]:
        """{row: learning rate} with the lowest PER on val of the first seed, and that PER of every one, None where the
        training failed."""
        tried: dict[str, dict[str, float | None]] = {}
        chosen: dict[str, float] = {}
        for row, runs in self._tried.items():
            pers = {run.config.optim.lr: None if run.name in failures else _validation_per(run.folder) for run in runs}
            tried[row] = {f"{rate:g}": per for rate, per in pers.items()}
            known = {rate: per for rate, per in pers.items() if per is not None}
            if known:
                chosen[row] = min(known, key=lambda rate: known[rate])
        return chosen, tried

    def later_runs(self, row: str, rate: float) -> list[SeparateRun]:
        """All but the first seed, which has been trained."""
        runs = [self._run(row, seed, rate) for seed in self.config.seeds[1:]]
        for run in runs:
            run.refuse_changes()
        return runs

    def compared(self, chosen: Mapping[str, float], failures: Mapping[str, str]) -> dict[str, list[SeparateRun]]:
        """Of every row the runs that the table is of."""
        runs = {
            row: [self._run(row, seed, chosen.get(row)) for seed in self.config.seeds]
            for row in self._rows
            if row not in self._tried or row in chosen
        }
        kept = {row: [run for run in of_row if run.name not in failures] for row, of_row in runs.items()}
        return {row: of_row for row, of_row in kept.items() if of_row}

    def _run(self, row: str, seed: int, rate: float | None) -> SeparateRun:
        name = f"{row}/" + (f"lr_{rate:g}/" if rate is not None else "") + f"seed_{seed}"
        arguments = [
            *self._rows[row],
            f"seed={seed}",
            f"run_name={name.replace('/', '_').replace('+', '')}",
            f"run_dir={self._folder / name}",
            *([f"optim.lr={rate}"] if rate is not None else []),
        ]
        return SeparateRun(name=name, row=row, seed=seed, config=self._compose(arguments), arguments=tuple(arguments))


def _validation_per(folder: Path) -> float:
    return float(json.loads((folder / REPORT_FILE).read_text())["per"])


def _measure_all(
    runs: Mapping[str, Sequence[SeparateRun]], failures: dict[str, str]
) -> dict[str, list[tuple[SeparateRun, Measurement]]]:
    """Rows with at least one run that could be measured; what goes wrong is added to `failures`."""
    measured: dict[str, list[tuple[SeparateRun, Measurement]]] = {}
    everything = [run for of_row in runs.values() for run in of_row]
    with progress_bar("measured", len(everything), True) as advance:
        for run in everything:
            try:
                measured.setdefault(run.row, []).append((run, measure(run.folder, run.config)))
            except Exception as error:  # whatever it is, the other runs are worth their table
                log_file = run.folder / LOG_FILE
                with log_file.open("a") as log:
                    traceback.print_exc(file=log)
                failures[run.name] = f"not measured, {error!r} ({log_file})"
            advance(1)
    return {row: of_row for row, of_row in measured.items() if of_row}


def _summary(
    rows: Mapping[str, list[str]],
    measured: Mapping[str, Sequence[tuple[SeparateRun, Measurement]]],
    tried: Mapping[str, Mapping[str, float | None]],
    failures: Mapping[str, str],
    samples: int,
) -> dict[str, Any]:
    """The JSON-able content of `compare.json`. `split` is the one to report: test where its truth is known, because
    val has chosen checkpoints and learning rates."""
    every = [measurement for of_row in measured.values() for _, measurement in of_row]
    splits = [split for split in ("val", "test") if all(split in measurement.trials for measurement in every)]
    return {
        "split": splits[-1],
        "reference": next(iter(measured)),
        "commit": git_commit(),
        "rows": {
            row: {
                "overrides": rows[row],
                "seeds": [run.seed for run, _ in of_row],
                "learning_rate": of_row[0][0].config.optim.lr,
                "tried_learning_rates": tried.get(row, {}),
                **_costs(of_row),
            }
            for row, of_row in measured.items()
        },
        "splits": {
            split: compare({row: [m.trials[split] for _, m in of_row] for row, of_row in measured.items()}, samples)
            for split in splits
        },
        "failures": dict(failures),
    }


def _costs(runs: Sequence[tuple[SeparateRun, Measurement]]) -> dict[str, Any]:
    """Of a row: medians of times over its seeds, the most memory."""
    costs = [measurement.costs for _, measurement in runs]
    steps = [cost.step_ms for cost in costs if cost.step_ms is not None]
    seconds = [seconds for run, _ in runs if (seconds := run.seconds()) is not None]
    memory = [peak for run, _ in runs if (peak := run.peak_memory()) is not None]
    return {
        **asdict(costs[0]),
        "trial_ms": statistics.median(cost.trial_ms for cost in costs),
        "step_ms": statistics.median(steps) if steps else None,
        "training_seconds": statistics.median(seconds),
        "peak_memory": max(memory, default=None),
    }
