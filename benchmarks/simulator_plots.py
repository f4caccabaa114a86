"""Plots of what simulator_calibration.py measures, as small PNG files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mode_ssm.report_plots import BLUE, MUTED, ORANGE, STYLE, WIDTH

DPI = 100
BIN_SECONDS = 0.02
QUIET: Any = {"color": MUTED, "linewidth": 1, "linestyle": "--"}


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is plotted. phonemes, pauses: seconds; marginals: z-scored values `crossings` and `power`, and `empty`, the
    share of bins without a crossing of each electrode; correlations (S, S) between sessions on `days`, NaN where too
    little was said; decay (P, 2): days since the last training day, and error in percent."""

    phonemes: np.ndarray
    pauses: np.ndarray
    words: np.ndarray
    bins: np.ndarray
    marginals: dict[str, np.ndarray]
    days: np.ndarray
    correlations: np.ndarray
    decay: np.ndarray


def plot_all(folder: Path, calibration: Calibration) -> None:
    """Write speech.png, marginals.png, structure.png and decay.png."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figures = {
            "speech": _speech(calibration),
            "marginals": _marginals(calibration),
            "structure": _structure(calibration),
            "decay": _decay(calibration),
        }
        for name, figure in figures.items():
            figure.savefig(folder / f"simulator_{name}.png", dpi=DPI)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _histogram(axes: Axes, values: np.ndarray, edges: np.ndarray, title: str, unit: str, color: str = BLUE) -> None:
    axes.hist(values, edges.tolist(), weights=np.full(len(values), 100 / len(values)), color=color, alpha=0.85)
    axes.axvline(float(values.mean()), **QUIET)
    axes.set(title=title, xlabel=unit)


def _speech(c: Calibration) -> Figure:
    figure, axes = _panels(4)
    _histogram(axes[0], c.phonemes, np.arange(0, 1.05, 0.04), "phonemes", "seconds")
    _histogram(axes[1], c.pauses, np.arange(0, 1.25, 0.04), "pauses between words", "seconds")
    _histogram(axes[2], c.words, np.arange(2.5, c.words.max() + 1), "words of a sentence", "words")
    _histogram(axes[3], c.bins * BIN_SECONDS, np.arange(0, 40, 2), "trials", "seconds")
    axes[0].set_ylabel("share (%); dashed: mean")
    return figure


def _marginals(c: Calibration) -> Figure:
    figure, axes = _panels(3)
    edges = np.arange(-3, 8.1, 0.25)
    _histogram(axes[0], c.marginals["crossings"], edges, "threshold crossings", "z-scored value of a bin")
    _histogram(axes[1], c.marginals["power"], edges, "spike-band power", "z-scored value of a bin", ORANGE)
    _histogram(
        axes[2], 100 * c.marginals["empty"], np.arange(0, 101, 5), "bins without a crossing", "% of an electrode's"
    )
    for each in axes[:2]:
        each.set_yscale("log")
    axes[0].set_ylabel("share (%), log scale")
    axes[2].set_ylabel("electrodes (%)")
    return figure


def _structure(c: Calibration) -> Figure:
    figure, axes = _panels(2)
    image = axes[0].imshow(c.correlations, vmin=0, vmax=1, cmap="cividis")
    axes[0].set(title="correlation of phoneme means", xlabel="session", ylabel="session")
    figure.colorbar(image, ax=axes[0])
    upper = np.triu_indices(len(c.days), 1)
    gaps, values = np.abs(c.days[:, None] - c.days)[upper], c.correlations[upper]
    axes[1].plot(gaps, values, ".", color=BLUE, markersize=2, alpha=0.5)
    _binned_mean(axes[1], gaps, values)
    axes[1].set(title="the same against time", xlabel="days between sessions", ylim=(0, 1.3))
    return figure


def _decay(c: Calibration) -> Figure:
    figure, axes = _panels(1)
    gaps, errors = c.decay.T
    axes[0].plot(gaps, errors, ".", color=BLUE, markersize=2, alpha=0.5)
    _binned_mean(axes[0], gaps, errors)
    axes[0].axhline(float(errors[gaps == 0].mean()), **QUIET)
    axes[0].set(
        title="linear probe on later sessions; dashed: held-out sentences of its own",
        xlabel="days since its last training session", ylabel="phonemes wrong (%)", ylim=(0, 100),
    )  # fmt: skip
    return figure


def _binned_mean(axes: Axes, gaps: np.ndarray, values: np.ndarray, bins: int = 12) -> None:
    edges = np.unique(np.quantile(gaps, np.linspace(0, 1, bins + 1)))
    place = np.clip(np.searchsorted(edges, gaps, side="right") - 1, 0, len(edges) - 2)
    groups = [place == i for i in range(len(edges) - 1)]
    axes.plot(
        [gaps[g].mean() for g in groups], [np.nanmean(values[g]) for g in groups], "-o", color=ORANGE, markersize=3
    )
