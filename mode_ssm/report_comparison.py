"""What a comparison of models leaves behind: tables on the screen, in Markdown and on a page, and `compare.json`."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as ScreenTable

from mode_ssm.report_comparison_plots import curves_figure, models_figure, sessions_figure
from mode_ssm.report_page import NOTHING, interval, page, percent, table

JSON_FILE, HTML_FILE, MARKDOWN_FILE = "compare.json", "compare.html", "compare.md"
KINDS = {
    "by_seen": "sentences, in training too or not",
    "by_corpus": "corpus",
    "by_mode": "mode",
    "by_distance": "distance of the session to the nearest one of training",
    "by_session": "session",
}
FEW = 6  # groups that a table for reading has at most


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of text; the first column names the row."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_comparison(folder: Path, summary: Mapping[str, Any], curves: Mapping[str, Sequence[Path]]) -> None:
    """Write `compare.json`, `compare.html` and `compare.md` into `folder`, each whole or not at all.

    summary: of `inference_comparison`. curves: the files metrics.jsonl of every row.
    """
    _write(folder / JSON_FILE, json.dumps(summary, indent=1, allow_nan=False) + "\n")
    _write(folder / MARKDOWN_FILE, markdown(summary))
    _write(folder / HTML_FILE, _page(folder.name, summary, curves))


def errors_table(summary: Mapping[str, Any], split: str) -> Table:
    """Means over seeds with intervals, and changes against the first row."""
    rows = []
    for row, rates in summary["splits"][split].items():
        cells = [row, str(len(summary["rows"][row]["seeds"]))]
        for metric in ("per", "wer"):
            cells += [_rate(rates["all"][metric]), _change(rates["all"][metric])]
        rows.append([*cells, _rate(rates["all"]["per_greedy_ctc"])])
    head = ["", "seeds", "PER %", "change", "WER %", "change", "PER % of greedy CTC"]
    return Table(f"Error rates on {split}", head, rows)


def costs_table(summary: Mapping[str, Any]) -> Table:
    head = [
        "", "parameters, M", "MACs a second, M", "training, min", "peak memory, MB", "ms a frame, whole trial",
        "ms a frame, streaming", "ms of signal a frame", "causal", "learning rate",
    ]  # fmt: skip
    rows = []
    for name, row in summary["rows"].items():
        step, peak = row["step_ms"], row["peak_memory"]
        rows.append(
            [
                name,
                f"{row['num_parameters'] / 1e6:.2f}",
                f"{row['macs_per_second'] / 1e6:.1f}",
                f"{row['training_seconds'] / 60:.1f}",
                NOTHING if peak is None else f"{peak / 2**20:.0f}",
                f"{row['trial_ms']:.3f}",
                NOTHING if step is None else f"{step:.2f}",
                str(20 * row["frame_stride"]),
                "yes" if row["causal"] else "no",
                f"{row['learning_rate']:g}",
            ]
        )
    return Table("What it costs", head, rows)


def group_tables(summary: Mapping[str, Any], split: str, most: int) -> list[Table]:
    """A row for every model, a column for every group, where there are two to `most` groups of a kind."""
    compared = summary["splits"][split]
    reference = compared[summary["reference"]]
    tables = []
    for kind, title in KINDS.items():
        groups = list(reference[kind])
        if not 2 <= len(groups) <= most:
            continue
        for metric in ("per", "wer"):
            if reference["all"][metric] is None:
                continue
            head = ["", *(f"{group} ({reference[kind][group]['num_trials']})" for group in groups)]
            rows = [[row, *(_rate(of[kind][group][metric]) for group in groups)] for row, of in compared.items()]
            tables.append(Table(f"{metric.upper()} in % by {title}", head, rows))
    return tables


def notes(summary: Mapping[str, Any]) -> list[str]:
    """Sentences that belong under the table."""
    split, reference = summary["split"], summary["reference"]
    trials = summary["splits"][split][reference]["all"]["num_trials"]
    lines = [
        f"{trials} trials of {split}. Means over seeds; 95 % bootstrap intervals over trials and seeds. A change is "
        f"against {reference}: trials are drawn together, seeds of each model by itself. A few seeds say little about "
        "how far seeds spread.",
        "The checkpoint of every run was chosen on val"
        + (", which flatters the figures." if split == "val" else f"; nothing was chosen on {split}."),
    ]
    for row, settings in summary["rows"].items():
        tried = settings["tried_learning_rates"]
        if tried:
            told = ", ".join(f"{rate} {percent(per)}" for rate, per in tried.items())
            chosen = settings["learning_rate"]
            edge = len(tried) > 1 and chosen in (min(map(float, tried)), max(map(float, tried)))
            lines.append(
                f"Learning rate of {row}: {chosen:g}, chosen by PER in % on val with seed {settings['seeds'][0]} "
                f"({told})" + ("; it is at the edge of what was tried." if edge else ".")
            )
    by_signal: dict[str, list[str]] = {}
    for row, settings in summary["rows"].items():
        by_signal.setdefault(settings["signal"], []).append(row)
    lines += [f"{', '.join(rows)}: {signal[0].lower()}{signal[1:]}" for signal, rows in by_signal.items()]
    lines += [f"Failed: {name}, {reason}" for name, reason in summary["failures"].items()]
    return lines


def markdown(summary: Mapping[str, Any]) -> str:
    """Tables and notes for the experiment log."""
    tables = [errors_table(summary, summary["split"]), costs_table(summary)]
    tables += group_tables(summary, summary["split"], FEW)
    parts = []
    for shown in tables:
        lines = [shown.head, ["---", *["--:"] * (len(shown.head) - 1)], *shown.rows]
        parts.append(f"{shown.title}:\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    return "\n\n".join([*parts, "\n".join(notes(summary))]) + "\n"


def print_comparison(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Tables with a column for every model, which fit a narrow screen, and the notes."""
    output = console or Console()
    for shown in (errors_table(summary, summary["split"]), costs_table(summary)):
        names, *columns = zip(*shown.rows, strict=True)
        on_screen = ScreenTable("", *names, title=shown.title, box=SIMPLE_HEAD)
        for head, cells in zip(shown.head[1:], columns, strict=True):
            on_screen.add_row(head, *cells)
        output.print(on_screen)
    for line in notes(summary):
        output.print(line, soft_wrap=True, highlight=False, markup=False)


def _page(name: str, summary: Mapping[str, Any], curves: Mapping[str, Sequence[Path]]) -> str:
    split = summary["split"]
    compared = summary["splits"][split]
    others = [_html(errors_table(summary, other)) for other in summary["splits"] if other != split]
    overrides = "\n".join(f"{row}: train.py {' '.join(of['overrides'])}" for row, of in summary["rows"].items())
    sections = [
        f"<h1>{escape(name)}: models compared</h1>",
        *(f'<p class="note">{escape(line)}</p>' for line in notes(summary)),
        _html(errors_table(summary, split)),
        _figure(models_figure(compared), "Means over seeds with 95 % intervals over trials and seeds; rings: seeds."),
        _html(costs_table(summary)),
        *map(_html, group_tables(summary, split, FEW)),
        _figure(
            sessions_figure(compared),
            "Means over seeds by session, in the order of dates, with 95 % intervals; in the name, days to the nearest "
            "training session where that is another one.",
        ),
        _figure(
            curves_figure(curves),
            "A line for each seed. Losses are the weighted sums that each recipe minimises: their heights cannot be "
            "compared.",
        ),
        *others,
        f"<h2>Overrides</h2><pre>{escape(overrides)}</pre>",
    ]
    footer = (
        "Rates are aggregate: edits summed over trials, divided by reference symbols summed over trials. MACs: "
        "multiply-accumulates from features to phoneme logits, element-wise work and searches left out. Training: time "
        "of training and validation. Memory: main memory of the training's largest process."
    )
    return page(f"{name}: models compared", sections, footer)


def _html(shown: Table) -> str:
    rows = [[escape(cell) for cell in cells] for cells in shown.rows]
    return f"<h2>{escape(shown.title)}</h2>" + table(shown.head, rows)


def _figure(svg: str, caption: str) -> str:
    return f'<figure class="plot">{svg}<figcaption>{caption}</figcaption></figure>'


def _rate(rates: Mapping[str, Any] | None) -> str:
    return NOTHING if rates is None else f"{percent(rates['value'])} ({interval(rates['ci'])})"


def _change(rates: Mapping[str, Any] | None) -> str:
    if rates is None or rates["difference"] is None:
        return ""
    value, low, high = (100 * rates["difference"][key] for key in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".partial_{path.name}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
