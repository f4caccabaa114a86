"""The end of a run: a table on the screen, `report.json`, and `report.html`, one page that needs nothing else."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mode_ssm.decode.greedy import ctc_alignment
from mode_ssm.report_history import read_history
from mode_ssm.report_page import (
    comparison,
    config_section,
    confusion_section,
    groups_section,
    headline_section,
    interval,
    page,
    percent,
    sessions_section,
    training_section,
    trials_section,
)
from mode_ssm.report_plots import example_figure
from mode_ssm.tasks.results import TrialResult

JSON_FILE, HTML_FILE = "report.json", "report.html"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleTrial:
    """One trial as the model saw it.

    features (T, C) as read from the file; log_probs (T', 41) of the CTC head, `frame_stride` bins a frame;
    phoneme_starts: the bin where each reference phoneme begins, where the truth is known.
    """

    result: TrialResult
    features: np.ndarray
    log_probs: np.ndarray
    frame_stride: int
    phoneme_starts: Sequence[int] | None = None


def choose_example(results: Sequence[TrialResult]) -> TrialResult:
    """A trial worth looking at: of middling length, the first of its kind."""
    lengths = np.array([result.info.num_bins for result in results])
    return results[int(np.argmin(np.abs(lengths - np.median(lengths))))]


def write_report(
    folder: Path,
    *,
    title: str,
    summary: Mapping[str, Any],
    results: Sequence[TrialResult],
    config_yaml: str,
    metrics_path: Path | None = None,
    example: ExampleTrial | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write `report.json`, the summary as it is, and `report.html` into `folder`; each appears whole or not at all.

    metrics_path: the run's `metrics.jsonl`; without one, or without lines in it, nothing is said about training.
    notes: lines under the title, such as which checkpoint, and whether smoothing sees the future.
    """
    stages = read_history(metrics_path) if metrics_path is not None and metrics_path.exists() else []
    sections = [
        headline_section(title, summary, notes),
        groups_section(summary),
        sessions_section(summary),
        training_section(stages),
        "" if example is None else _example_section(example),
        confusion_section(results),
        trials_section(results),
        config_section(config_yaml),
    ]
    footer = (
        "Rates are aggregate: edits summed over trials, divided by reference symbols summed over trials. Sentences are "
        "normalised as the benchmark does; PER counts SIL. Intervals: percentile bootstrap over trials."
    )
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / JSON_FILE, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    _write(folder / HTML_FILE, page(title, sections, footer))


def _example_section(example: ExampleTrial) -> str:
    result = example.result
    try:
        alignment = ctc_alignment(example.log_probs, result.reference_phonemes)
        positions = alignment.positions.tolist()
    except ValueError:  # fewer frames than phonemes: there is no alignment to show
        positions = []
    spans, frame = [], 0
    for position, group in groupby(positions):
        stop = frame + len(list(group))
        if position >= 0:
            spans.append((int(result.reference_phonemes[position]), frame, stop))
        frame = stop
    figure = example_figure(
        example.features, np.exp(example.log_probs), example.frame_stride, spans, example.phoneme_starts
    )
    mode = ""
    if result.mode_posterior is not None:
        shares = ", ".join(f"{share:.2f}" for share in result.mode_posterior)
        mode = f" p(z | X) = ({shares})" + (f"; the mode was {result.mode}." if result.mode is not None else ".")
    return (
        f'<h2>One trial</h2>\n<p class="note">{result.info.name}.{mode}</p>{comparison(result)}\n'
        f'<figure class="wide">{figure}</figure>'
    )


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".partial_{path.name}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def print_table(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """A table that fits 80 columns: the whole split and its groups with 95 % intervals, then sessions."""
    metrics = [key for key in ("per", "wer", "cer") if summary[key] is not None]
    before = summary["wer_without_tta"] is not None
    table = Table(title=f"{summary['split']}: error rates in %, 95 % intervals", box=SIMPLE_HEAD)
    table.add_column("trials of", no_wrap=True)
    table.add_column("number", justify="right", no_wrap=True)
    for key in metrics:
        table.add_column(key.upper(), justify="right", no_wrap=True)
    if before:
        table.add_column("WER,\nno TTA", justify="right", vertical="bottom")

    def add(name: str, group: Mapping[str, Any], with_interval: bool) -> None:
        cells = []
        for key in metrics:
            shown = with_interval and key != "cer"  # three intervals do not fit
            cells.append(percent(group[key]) + (f" [dim]{interval(group[f'{key}_ci'])}[/dim]" if shown else ""))
        table.add_row(name, str(group["num_trials"]), *cells, *([percent(group["wer_without_tta"])] if before else []))

    add("[bold]all[/bold]", summary, True)
    for key in ("by_seen", "by_corpus", "by_mode", "by_session"):
        if key == "by_session" or len(summary[key]) > 1:
            table.add_section()
            for name, group in summary[key].items():
                add(name, group, key != "by_session")
    heads = [
        f"{name} {percent(summary[key])}"
        for key, name in (("per_greedy_ctc", "greedy CTC"), ("per_rnnt", "RNNT"))
        if summary[key] is not None
    ]
    if heads:
        table.caption = f"PER of each head alone: {', '.join(heads)}"
    (console or Console()).print(table)
