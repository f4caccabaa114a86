"""The end of a language model's run: a table on the screen, `report.json`, and `report.html`."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mode_ssm.report import HTML_FILE, JSON_FILE
from mode_ssm.report_history import read_history
from mode_ssm.report_page import config_section, page, table
from mode_ssm.report_plots import training_figure

_HEAD = ("text", "words", "perplexity", "of the n-gram's words", "n-gram", "lower by %")


def write_text_report(
    folder: Path, *, title: str, summary: Mapping[str, Any], config_yaml: str, metrics_path: Path
) -> None:
    """Write the summary of `evaluate_texts` as it is, and a page with it and the curves of training."""
    stages = read_history(metrics_path) if metrics_path.exists() else []
    sections = [
        f"<h1>{escape(title)}</h1>\n<p>{escape(_caption(summary))}</p>",
        table(_HEAD, [[escape(cell) for cell in row] for row in _rows(summary)]),
        f'<h2>Training</h2>\n<figure class="wide">{training_figure(stages)}</figure>' if stages else "",
        config_section(config_yaml),
    ]
    footer = "Perplexities are per word; the end of a sentence counts as a word."
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON_FILE).write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    (folder / HTML_FILE).write_text(page(title, sections, footer), encoding="utf-8")


def print_perplexities(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """A row for every text."""
    shown = Table(title="perplexity of a word", box=SIMPLE_HEAD, caption=_caption(summary))
    for name in _HEAD:
        shown.add_column(name, justify="left" if name == "text" else "right")
    for row in _rows(summary):
        shown.add_row(*row)
    (console or Console()).print(shown)


def _caption(summary: Mapping[str, Any]) -> str:
    return (
        f"{summary['num_parameters']:,} parameters; {summary['num_words_with_token']:,} words have a token, others are "
        f"spelled. n-gram: {summary['baseline']}; it leaves unknown words out, so the two are compared on the others."
    )


def _rows(summary: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            row["text"],
            f"{row['num_words']:,}",
            f"{row['perplexity']:.1f}",
            f"{row['perplexity_known']:.1f}",
            f"{row['ngram_perplexity']:.1f}",
            f"{100 * row['reduction']:.1f}",
        ]
        for row in summary["texts"]
    ]
