"""The figures of a report, each a string of inline SVG.

Text stays text (the page's own font is used), grids are faint, colours are told apart by colour-blind readers, and no
figure depends on colour alone.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mode_ssm.data.log_mel import BIN_SECONDS
from mode_ssm.report_history import LOSS, VALIDATION_PER, VALIDATION_PERPLEXITY, Stage, loss_terms, series
from mode_ssm.vocab import BLANK, CLASSES

INK, MUTED, GRID, BLUE, ORANGE = "#1f2933", "#5f6c7b", "#e3e8ee", "#1f6fb2", "#c2571a"
RATE = "lr"
WIDTH = 7.6  # inches of a figure that fills the page
MAX_POINTS = 300  # of one curve; longer ones are averaged down

STYLE: Any = {  # matplotlib types the keys as one long literal
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
}
_POSITIVE = ("train/ctc", "train/rnnt", "train/flow")  # terms that a logarithmic axis suits
_TITLES = {
    LOSS: "weighted loss",
    "train/ctc": "CTC loss",
    "train/rnnt": "transducer loss",
    "train/flow": "flow loss",
    "train/mode_information": "mode information loss",
    "train/mode_block": "mode block loss",
    RATE: "learning rate",
    "train/cross_entropy": "cross-entropy of a token",
    VALIDATION_PER: "validation PER (%)",
    VALIDATION_PERPLEXITY: "validation perplexity of a word",
}

_METRICS = (VALIDATION_PER, VALIDATION_PERPLEXITY)


def training_figure(stages: Sequence[Stage]) -> str:
    """Every loss term, the learning rate and the validation metric over steps; stages as named bands."""
    held = {key for stage in stages for line in (*stage.train, *stage.evaluations) for key in line}
    panels = [key for key in (LOSS, *loss_terms(stages), RATE, *_METRICS) if key in held]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.7 + 1.15 * len(panels)), layout="constrained")
        names, *all_axes = figure.subplots(
            len(panels) + 1, 1, sharex=True, height_ratios=[0.22, *[1.0] * len(panels)], squeeze=False
        )[:, 0]
        for axes, key in zip(all_axes, panels, strict=True):
            _training_panel(axes, stages, key)
        _name_stages(names, stages)
        all_axes[-1].set_xlabel("optimizer step")
        return inline_svg(figure, "Losses, learning rate and validation metric over optimizer steps, stage by stage")


def _training_panel(axes: Axes, stages: Sequence[Stage], key: str) -> None:
    curves = [series((*stage.train, *stage.evaluations), key) for stage in stages]
    if key in (RATE, *_METRICS):  # these run on from stage to stage; losses change their meaning
        curves = [([step for steps, _ in curves for step in steps], [v for _, values in curves for v in values])]
    title, scale = _TITLES.get(key, key.removeprefix("train/")), 1.0
    highest = max((value for _, values in curves for value in values), default=0.0)
    lowest = min((value for _, values in curves for value in values), default=0.0)
    if key == VALIDATION_PER:
        scale = 100.0
    elif key == RATE and highest > 0:
        exponent = int(np.floor(np.log10(highest)))
        title, scale = f"{title} (1e{exponent})", 10.0**-exponent
    for steps, values in curves:
        x, y = _thinned(np.array(steps, float), scale * np.array(values, float))
        axes.plot(x, y, color=BLUE, linewidth=1.4, marker="o" if len(x) < 16 else "", markersize=3.5)
    _shade_stages(axes, stages)
    axes.set_title(title)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    if key == VALIDATION_PER:
        axes.set_ylim(bottom=0)
    if key in _METRICS:
        axes.annotate(f"{y[-1]:.1f}", (x[-1], y[-1]), xytext=(0, 5), textcoords="offset points", ha="right")
    elif key in _POSITIVE and 0 < lowest * 20 < highest:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter("")
    axes.grid(axis="y")
    axes.margins(x=0.015)


def _shade_stages(axes: Axes, stages: Sequence[Stage]) -> None:
    for number in range(0, len(stages), 2):
        axes.axvspan(*_bounds(stages, number), color="#f1f4f8", linewidth=0, zorder=0)


def _bounds(stages: Sequence[Stage], number: int) -> tuple[int, int]:
    return (stages[number - 1].last_step if number else 0), stages[number].last_step


def _name_stages(axes: Axes, stages: Sequence[Stage]) -> None:
    """A strip that names the bands; a band too narrow for its name gets its number."""
    _shade_stages(axes, stages)
    for number, stage in enumerate(stages):
        start, stop = _bounds(stages, number)
        name = f"{number + 1} {stage.name.replace('_', ' ')}"
        fits = len(name) * 0.0115 < (stop - start) / stages[-1].last_step
        axes.text((start + stop) / 2, 0.5, name if fits else str(number + 1), ha="center", va="center", color=MUTED)
    axes.set_axis_off()
    axes.set_ylim(0, 1)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbours, so that at most `MAX_POINTS` remain."""
    parts = min(len(x), MAX_POINTS)
    if parts == len(x):
        return x, y
    return (
        np.array([part.mean() for part in np.array_split(x, parts)]),
        np.array([part.mean() for part in np.array_split(y, parts)]),
    )


def session_figure(summary: Mapping[str, Any]) -> str:
    """PER and WER of every session with intervals, the whole split as a line; before adaptation where that is known."""
    sessions: Mapping[str, Any] = summary["by_session"]
    metrics = [name for name in ("per", "wer") if summary[name] is not None]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.95 + 0.24 * len(sessions)), layout="constrained")
        all_axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        rows = np.arange(len(sessions))
        for axes, metric in zip(all_axes, metrics, strict=True):
            before = f"{metric}_without_tta"
            for row, group in zip(rows, sessions.values(), strict=True):
                low, high = group[f"{metric}_ci"] or (np.nan, np.nan)
                axes.plot([100 * low, 100 * high], [row, row], color=BLUE, linewidth=2, alpha=0.35)
                if group[before] is not None:
                    axes.plot(100 * group[before], row, "o", markersize=5, color=ORANGE, fillstyle="none")
            values = [np.nan if g[metric] is None else 100 * g[metric] for g in sessions.values()]
            axes.plot(values, rows, "o", markersize=5, color=BLUE)
            axes.axvline(100 * summary[metric], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
            axes.set_title(f"{metric.upper()} (%)")
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axes.grid(axis="x")
            axes.tick_params(axis="y", length=0)
        all_axes[0].set_yticks(rows, list(sessions))
        all_axes[0].set_ylim(len(sessions) - 0.5, -0.5)
        return inline_svg(figure, "PER and WER by session with 95 % intervals")


def confusion_figure(confusions: np.ndarray) -> str:
    """Counts (41, 41), reference by decoded class, column 0 for deletions -> share of each reference phoneme."""
    spoken = np.flatnonzero(confusions.sum(axis=1))
    columns = np.append(spoken, BLANK)
    shares = confusions[np.ix_(spoken, columns)] / confusions[spoken].sum(axis=1, keepdims=True)
    with matplotlib.rc_context({**STYLE, "font.size": 7}):
        figure = Figure(figsize=(5.4, 6.0), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(100 * shares, cmap="Blues", norm=PowerNorm(0.4, 0, 100), interpolation="none")
        axes.set_xticks(range(len(columns)), [*(CLASSES[c] for c in spoken), "none"], rotation=90)
        axes.set_yticks(range(len(spoken)), [CLASSES[c] for c in spoken])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("decoded (none: the phoneme was left out)", fontsize=9)
        axes.set_ylabel("spoken", fontsize=9)
        bar = figure.colorbar(image, ax=axes, location="top", shrink=0.6, aspect=40, ticks=[0, 1, 10, 50, 100])
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.set_label("% of the spoken phoneme", fontsize=8)
        return inline_svg(figure, "Phoneme confusions")


def example_figure(
    features: np.ndarray,
    probabilities: np.ndarray,
    frame_stride: int,
    spans: Sequence[tuple[int, int, int]],
    true_starts: Sequence[int] | None,
) -> str:
    """One trial: features (T, C) above posteriors (T', 41), the forced alignment between them.

    spans: (class, first frame, frame after the last) of each reference phoneme. true_starts: bins, where known.
    """
    seconds, frame_seconds = len(features) * BIN_SECONDS, frame_stride * BIN_SECONDS
    decoded_until = len(probabilities) * frame_seconds
    with matplotlib.rc_context({**STYLE, "font.size": 8}):
        figure = Figure(figsize=(9.2, 8.0), layout="constrained")
        signal, strip, posterior = figure.subplots(3, 1, sharex=True, height_ratios=[2.2, 0.32, 5])
        limit = float(np.quantile(np.abs(features), 0.985)) or 1.0
        image = signal.imshow(
            features.T,
            aspect="auto",
            origin="lower",
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            interpolation="none",
            extent=(0, seconds, 0, features.shape[1]),
        )
        signal.set_title("features, in bins of 20 ms")
        signal.set_ylabel("feature")
        figure.colorbar(image, ax=signal, aspect=14, pad=0.01).outline.set_visible(False)  # type: ignore[operator]
        _alignment_strip(strip, spans, frame_seconds, true_starts)
        image = posterior.imshow(
            probabilities.T,
            aspect="auto",
            cmap="Blues",
            norm=PowerNorm(0.5, 0, 1),
            interpolation="none",
            extent=(0, decoded_until, len(CLASSES) - 0.5, -0.5),
        )
        for symbol, start, stop in spans:
            ends = [start * frame_seconds, stop * frame_seconds]
            posterior.plot(ends, [symbol + 0.5] * 2, color=ORANGE, linewidth=1.6, clip_on=False)
        posterior.set_yticks(range(len(CLASSES)), ["blank", *CLASSES[1:]], fontsize=6.5)
        posterior.tick_params(axis="y", length=0)
        posterior.set_title("phoneme posteriors of the CTC head; underlined: the forced alignment")
        posterior.set_xlabel("seconds")
        posterior.set_xlim(0, seconds)
        figure.colorbar(image, ax=posterior, aspect=32, pad=0.01).outline.set_visible(False)  # type: ignore[operator]
        return inline_svg(figure, "Features, alignment and phoneme posteriors of one trial")


def _alignment_strip(
    axes: Axes, spans: Sequence[tuple[int, int, int]], frame_seconds: float, true_starts: Sequence[int] | None
) -> None:
    title = "forced alignment of the reference"
    for symbol, start, stop in spans:
        middle = (start + stop) / 2 * frame_seconds
        axes.text(middle, 0.5, CLASSES[symbol], ha="center", va="center", fontsize=6.5, rotation=90)
    if true_starts is not None:
        title += "; ticks: where each phoneme truly begins"
        axes.vlines(np.array(true_starts) * BIN_SECONDS, 0, 1, color=ORANGE, linewidth=0.8)
    axes.set_title(title)
    axes.set_yticks([])
    axes.set_ylim(0, 1)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="x", length=0)


def inline_svg(figure: Figure, description: str) -> str:
    """Inline SVG that scales with the page; `description` is read to those who cannot see it."""
    buffer = io.StringIO()
    # Ids of clip paths are hashed from their content and this salt: figures of one page must not share them.
    with matplotlib.rc_context({"svg.hashsalt": description}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    body = text[text.index("<svg") :]
    width = re.search(r'width="([\d.]+)pt"', body)
    assert width is not None
    body = re.sub(r'\swidth="[\d.]+pt"|\sheight="[\d.]+pt"', "", body, count=2)
    label = f'<svg role="img" aria-label="{description}" style="max-width:{float(width[1]) * 4 / 3:.0f}px"'
    return body.replace("<svg", label, 1)
