"""The figures of a comparison of models, each a string of inline SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mode_ssm.report_history import LOSS, VALIDATION_PER, read_history, series
from mode_ssm.report_plots import BLUE, MUTED, ORANGE, STYLE, WIDTH, inline_svg

COLOURS = (BLUE, ORANGE, "#2a8c6e", "#8a4fa3", "#8c6d1f", "#5f6c7b")
MARKERS = "osD^vP"


def models_figure(compared: Mapping[str, Any]) -> str:
    """PER and WER of every model: mean, interval, seeds."""
    metrics = _metrics(compared)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.95 + 0.3 * len(compared)), layout="constrained")
        all_axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, metric in zip(all_axes, metrics, strict=True):
            for number, rates in enumerate(compared.values()):
                known = rates["all"][metric]
                if known is not None:
                    _point(axes, known, number, number)
                    axes.plot(100 * np.array(known["per_seed"]), [number + 0.22] * len(known["per_seed"]), "o",
                              color=MUTED, markersize=3.5, fillstyle="none")  # fmt: skip
            _finish(axes, metric)
        all_axes[0].set_yticks(range(len(compared)), list(compared))
        all_axes[0].set_ylim(len(compared) - 0.5, -0.5)
        return inline_svg(figure, "PER and WER by model with 95 % intervals")


def sessions_figure(compared: Mapping[str, Any]) -> str:
    """PER and WER of every model in every session."""
    metrics, first = _metrics(compared), next(iter(compared.values()))
    sessions = list(first["by_session"])
    with matplotlib.rc_context(STYLE):
        height = 1.3 + (0.12 + 0.12 * len(compared)) * len(sessions)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        all_axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, metric in zip(all_axes, metrics, strict=True):
            for number, (row, rates) in enumerate(compared.items()):
                shift = (number - (len(compared) - 1) / 2) * 0.6 / len(compared)
                for place, session in enumerate(sessions):
                    known = rates["by_session"][session][metric]
                    if known is not None:
                        _point(axes, known, place + shift, number, row if place == 0 else None)
            _finish(axes, metric)
        names = [f"{name}, {days} d" if (days := first["by_session"][name].get("days")) else name for name in sessions]
        all_axes[0].set_yticks(range(len(sessions)), names)
        all_axes[0].set_ylim(len(sessions) - 0.5, -0.5)
        handles, labels = all_axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", frameon=False, ncols=3, fontsize=8)
        return inline_svg(figure, "PER and WER by session and model with 95 % intervals")


def curves_figure(curves: Mapping[str, Sequence[Path]]) -> str:
    """Training loss of every model in a panel of its own, and the validation PER of all."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.9 + 1.2 * (len(curves) + 1)), layout="constrained")
        all_axes = figure.subplots(len(curves) + 1, 1, squeeze=False)[:, 0]
        for number, (row, files) in enumerate(curves.items()):
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            for seed, file in enumerate(files):
                stages = read_history(file)
                for stage in stages:
                    all_axes[number + 1].plot(*series(stage.train, LOSS), color=colour, linewidth=1, alpha=0.7)
                lines = [line for stage in stages for line in stage.evaluations]
                steps, pers = series(lines, VALIDATION_PER)
                all_axes[0].plot(steps, 100 * np.array(pers), marker=marker, markersize=4, color=colour, linewidth=1,
                                 alpha=0.7, label=row if seed == 0 else None)  # fmt: skip
            all_axes[number + 1].set_title(f"{row}: loss")
        all_axes[0].set_title("validation PER (%), greedy CTC")
        all_axes[0].set_ylim(bottom=0)
        all_axes[0].legend(frameon=False, fontsize=8)
        for axes in all_axes:
            axes.yaxis.set_major_locator(MaxNLocator(3))
            axes.grid(axis="y")
            axes.margins(x=0.015)
        all_axes[-1].set_xlabel("optimizer step")
        return inline_svg(figure, "Validation PER and training losses over optimizer steps")


def _metrics(compared: Mapping[str, Any]) -> list[str]:
    return [metric for metric in ("per", "wer") if any(of["all"][metric] is not None for of in compared.values())]


def _point(axes: Axes, rates: Mapping[str, Any], place: float, number: int, label: str | None = None) -> None:
    colour = COLOURS[number % len(COLOURS)]
    axes.plot(100 * np.array(rates["ci"]), [place, place], color=colour, linewidth=2, alpha=0.35)
    marker = MARKERS[number % len(MARKERS)]
    axes.plot(100 * rates["value"], place, marker, color=colour, markersize=5, label=label, linestyle="")


def _finish(axes: Axes, metric: str) -> None:
    axes.set_title(f"{metric.upper()} (%)")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
