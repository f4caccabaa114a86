"""What a study of decoding scales leaves behind: a table, a heat map, a page, and the settings to use."""

import base64
import io
import os
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mode_ssm.report_page import interval, page, percent, table
from mode_ssm.report_plots import INK, MUTED
from mode_ssm.tasks.tuning import AXES, Setting, Study

HTML_FILE, PNG_FILE, YAML_FILE = "tune.html", "heatmap.png", "decode.yaml"
NAMES = {
    "acoustic_scale": "acoustic scale",
    "word_bonus": "word bonus",
    "blank_penalty": "blank penalty",
    "neural_weight": "neural weight",
}
KEYS = {
    "acoustic_scale": "decode.acoustic_scale",
    "word_bonus": "decode.word_bonus",
    "blank_penalty": "decode.blank_penalty",
    "neural_weight": "lm.neural_weight",
}
SHOWN, PIXELS = 15, 240  # trials of the page's table; width and height of a map
WORST = 1.5  # times the best rate: where the colours of a map end


def write_tuning_report(
    folder: Path,
    study: Study,
    summary: Mapping[str, Any],
    *,
    title: str,
    command: Sequence[str],
    decode: Mapping[str, Any],
) -> None:
    """Write `heatmap.png`, `tune.html` and `decode.yaml` into `folder`, each whole or not at all.

    command: of an evaluation with the chosen setting. decode: all settings of the default search.
    """
    picture = heat_maps(study)
    line = shlex.join(command)
    _write(folder / PNG_FILE, picture)
    _write(folder / HTML_FILE, _page(study, summary, title, line, picture).encode())
    _write(folder / YAML_FILE, _decode_yaml(study, summary, line, decode).encode())


def verdict(summary: Mapping[str, Any]) -> str:
    """One sentence: is the chosen setting better than the default where it was not chosen?"""
    if all(summary["chosen"][name] == summary["default"][name] for name in AXES):
        return "No setting beats the default."
    check = summary["cross_check"]["difference"]
    change = f"{100 * check['value']:+.1f} points ({100 * check['low']:+.1f} to {100 * check['high']:+.1f})"
    if summary["within_noise"]:
        return f"The gain is within noise: {change} on halves that did not choose; the default is as good a choice."
    return f"The gain holds on halves that did not choose: {change}."


def print_tuning(summary: Mapping[str, Any], console: Console | None = None) -> None:
    shown = Table(title=f"WER in %, 95 % intervals, {summary['num_utterances']} utterances", box=SIMPLE_HEAD)
    axes = [name for name in AXES if name != "neural_weight" or summary["chosen"][name] or summary["default"][name]]
    shown.add_column("setting", no_wrap=True)
    for name in axes:
        shown.add_column(NAMES[name], justify="right")
    shown.add_column("WER", justify="right", no_wrap=True)
    for row in ("default", "chosen"):
        values = (f"{summary[row][name]:g}" for name in axes)
        shown.add_row(row, *values, f"{percent(summary[row]['wer'])} [dim]{interval(summary[row]['wer_ci'])}[/dim]")
    check = summary["cross_check"]
    blank = [""] * len(axes)
    shown.add_row("cross-check", *blank, f"{percent(check['wer'])} [dim]{interval(check['wer_ci'])}[/dim]")
    shown.caption = f"cross-check: halves of the {check['halves_of']}, each with the other's best setting"
    output = console or Console()
    output.print(shown)
    output.print(verdict(summary), soft_wrap=True, highlight=False)
    for name in summary["at_the_edge"]:
        output.print(f"{NAMES[name]} is at the edge of what was tried: widen axes.{name}", soft_wrap=True)


def heat_maps(study: Study) -> bytes:
    """A PNG: WER over the acoustic scale and each other axis that varies, the best of all trials there.

    A point of the map has the colour of the nearest trial, which holds for grids and for random draws alike.
    """
    varied = [name for name in AXES if len({getattr(setting, name) for setting in study.trials}) > 1]
    pairs = [(varied[0], other) for other in varied[1:]] or [(varied[0], varied[0])] if varied else []
    style: Any = {"font.size": 9, "axes.labelcolor": MUTED, "text.color": INK, "axes.edgecolor": MUTED}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.1 * max(1, len(pairs)), 3.6), layout="constrained")
        wers = 100 * np.array([study.wer(setting) for setting in study.trials])
        # Beyond that all is simply bad, and the differences that matter keep their colours.
        limits = wers.min(), max(min(wers.max(), WORST * wers.min()), wers.min() + 1e-3)
        all_axes = figure.subplots(1, max(1, len(pairs)), squeeze=False)[0]
        for axes, (x, y) in zip(all_axes, pairs, strict=False):
            image = _heat_map(axes, study, x, y, limits)
        if pairs:
            bar = figure.colorbar(
                image, ax=list(all_axes), extend="max" if wers.max() > limits[1] else "neither", aspect=30
            )
            bar.outline.set_visible(False)  # type: ignore[operator]
            bar.set_label("WER (%), best over the other axes")
            all_axes[0].legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()


def _heat_map(axes: Axes, study: Study, x: str, y: str, limits: tuple[float, float]) -> Any:
    best: dict[tuple[float, float], float] = {}
    for setting in study.trials:
        place = getattr(setting, x), getattr(setting, y)
        best[place] = min(100 * study.wer(setting), best.get(place, np.inf))
    points, values = np.array(list(best)), np.array(list(best.values()))
    low, high = points.min(0), points.max(0)
    span = high - low
    low, high = low - 0.06 * span, high + 0.06 * span
    pixels = [np.linspace(low[i], high[i], PIXELS) for i in (0, 1)]
    away = sum(
        ((grid[..., None] - points[:, i]) / span[i]) ** 2 for i, grid in enumerate(np.meshgrid(*pixels, sparse=False))
    )
    image = axes.imshow(
        values[np.argmin(away, axis=-1)],
        origin="lower",
        aspect="auto",
        extent=(low[0], high[0], low[1], high[1]),
        cmap="viridis_r",
        vmin=limits[0],
        vmax=limits[1],
        interpolation="none",
    )
    axes.plot(*points.T, ".", color="white", markersize=2.5)
    for setting, marker, label in ((study.default, "s", "default"), (study.best(), "o", "chosen")):
        place = getattr(setting, x), getattr(setting, y)
        axes.plot(*place, marker, color="white", markersize=9, fillstyle="none", markeredgewidth=1.6)
        axes.plot(*place, marker, color=INK, markersize=11, fillstyle="none", markeredgewidth=1.0, label=label)
    axes.set_xlabel(NAMES[x])
    axes.set_ylabel(NAMES[y])
    return image


def _page(study: Study, summary: Mapping[str, Any], title: str, command: str, picture: bytes) -> str:
    cards = "".join(
        f'<div class="card"><span>{name}</span><b>{percent(part["wer"])}&thinsp;%</b>'
        f"<span>95&nbsp;% interval {interval(part['wer_ci'])}</span></div>"
        for name, part in (
            ("WER, default", summary["default"]),
            ("WER, chosen", summary["chosen"]),
            ("WER, cross-check", summary["cross_check"]),
        )
    )
    check = summary["cross_check"]
    ranked = sorted(study.trials, key=lambda setting: (study.wer(setting), study.distance(setting), setting))
    rows = [[str(place), *_cells(setting), percent(study.wer(setting))] for place, setting in enumerate(ranked, 1)]
    folds = [
        [f"half {number}, {count} utterances", *_cells(Setting(**chosen))]
        for number, (count, chosen) in enumerate(
            zip(check["utterances"], check["chosen_on_each_half"], strict=True), start=1
        )
    ]
    edges = [
        f'<p class="note">{NAMES[name]} is at the edge of what was tried: widen <code>axes.{name}</code>.</p>'
        for name in summary["at_the_edge"]
    ]
    image = base64.b64encode(picture).decode()
    names = [NAMES[name] for name in AXES]
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="note">{summary["num_trials"]} settings, {summary["num_utterances"]} utterances, '
        f"{summary['num_words']:,} words.</p>",
        f'<div class="cards">{cards}</div><p>{escape(verdict(summary))}</p>',
        *edges,
        f"<pre>{escape(command)}</pre>",
        f'<figure><img style="width:100%" alt="Word error rate over pairs of scales" '
        f'src="data:image/png;base64,{image}"><figcaption>Each point has the colour of the nearest setting that was '
        f"tried (dots), the best over the axes that are not shown. Colours end at {WORST:g} times the best rate."
        "</figcaption></figure>",
        f"<h2>Cross-check</h2><p>Every other one of the {check['halves_of']} chooses among all settings, and the rest "
        "is decoded with what it chose; then the other way round.</p>" + table(["chosen by", *names], folds),
        f"<h2>The best {min(SHOWN, len(rows))} settings</h2>" + table(["", *names, "WER %"], rows[:SHOWN]),
    ]
    footer = (
        "The WER of the chosen setting is of the utterances that chose it and flatters. Intervals: percentile bootstrap"
        " over utterances. Of settings with equal errors the one nearest to the default is chosen."
    )
    return page(title, sections, footer)


def _cells(setting: Setting) -> list[str]:
    return [f"{getattr(setting, name):g}" for name in AXES]


def _decode_yaml(study: Study, summary: Mapping[str, Any], command: str, decode: Mapping[str, Any]) -> str:
    """A file for `configs/decode/`; where a neural model is tuned its weight stands in the command only."""
    chosen = study.best()
    tuned = {key.removeprefix("decode."): getattr(chosen, name) for name, key in KEYS.items() if "decode." in key}
    return f"# {verdict(summary)}\n# {command}\n" + yaml.safe_dump({**decode, **tuned}, sort_keys=False)


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".partial_{path.name}")
    partial.write_bytes(content)
    os.replace(partial, path)
