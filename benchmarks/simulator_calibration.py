"""How simulated recordings compare with attempted speech: the figures and plots that docs/simulator.md shows.

    OMP_NUM_THREADS=1 uv run python benchmarks/simulator_calibration.py [--root FOLDER] [--plots docs/figures]

speech     durations of phonemes and pauses, words in a sentence, bins in a trial, words a minute
marginals  z-scored crossings and power: skewness, excess kurtosis, share of bins without a crossing
structure  correlation of phoneme means between sessions against the days between them, corrected for their noise
decay      linear probe (phoneme of a segment from its mean activity, alignment given): error on later sessions
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

import h5py
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from simulator_plots import Calibration, plot_all

from mode_ssm.data.simulator import simulate
from mode_ssm.data.simulator_layout import SessionLayout
from mode_ssm.data.simulator_scale import SCALES
from mode_ssm.data.t15_format import session_file
from mode_ssm.data.truth import TruthRecord, read_truth
from mode_ssm.vocab import NUM_CLASSES, SIL, normalise_sentence

BIN_SECONDS = 0.02
LEAD = 4  # bins by which activity precedes movement, about the mean of the areas
RIDGE = 0.1  # share of the mean variance that is added to the probe's covariance
WINDOW = 8  # sessions that a probe of `decay` is trained on, and that are pooled to compare the modes
LEAST_RELIABILITY = 0.05
GAP_EDGES = (0, 7, 30, 60, 120, 240, 400, 650)  # days
MARGINAL_SESSIONS = 6
CONSOLE = Console()


@dataclass(frozen=True, slots=True)
class Segments:
    """Mean activity of every spoken phoneme but SIL. means (N, 512), labels (N,), days (N,), half (N,): 0 or 1 by
    trial; silent (N,), val (N,) bool."""

    means: np.ndarray
    labels: np.ndarray
    days: np.ndarray
    half: np.ndarray
    silent: np.ndarray
    val: np.ndarray

    def where(self, chosen: np.ndarray) -> "Segments":
        return Segments(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


def measure_speech(records: list[TruthRecord], table: Table) -> tuple[np.ndarray, ...]:
    """Durations of phonemes and of pauses between words (seconds), words of a sentence, bins of a trial."""
    phonemes, pauses = [], []
    for record in records:
        assert record.phoneme_starts is not None
        spans = np.diff(record.phoneme_starts) * BIN_SECONDS  # the last SIL runs into the rest
        silent = np.array(record.phonemes[:-1]) == SIL
        phonemes.append(spans[~silent])
        pauses.append(spans[silent])
    words = np.array([len(normalise_sentence(record.sentence).split()) for record in records])
    bins = np.array([record.num_bins for record in records])
    long, short = np.concatenate(phonemes), np.concatenate(pauses)
    speaking = sum(spans.sum() for spans in phonemes) + short.sum()
    table.add_row("phoneme, mean / 5 % / 95 %", f"{_three(1000 * long)} ms")
    table.add_row("pause between words, mean / 5 % / 95 %", f"{_three(1000 * short)} ms")
    table.add_row("words in a sentence, mean / 5 % / 95 %", _three(words, 1))
    table.add_row("bins in a trial, mean / 5 % / 95 %", _three(bins))
    table.add_row("words a minute, trial / speaking", f"{_rate(words, bins.sum() * BIN_SECONDS, speaking)}")
    return long, short, words, bins


def _rate(words: np.ndarray, *seconds: float) -> str:
    return " / ".join(f"{60 * words.sum() / s:.0f}" for s in seconds)


def _three(values: np.ndarray, digits: int = 0) -> str:
    return " / ".join(f"{v:.{digits}f}" for v in (values.mean(), *np.quantile(values, (0.05, 0.95))))


def measure_marginals(root: Path, sessions: list[str], table: Table) -> dict[str, np.ndarray]:
    """Per feature, pooled over blocks: z-scored features have mean 0 and variance 1 within a block."""
    crossings, powers, empty = [], [], []
    for session in track(sessions, "marginals", console=CONSOLE):
        with h5py.File(session_file(root, session, "train")) as file:
            block = min(int(group.attrs["block_num"]) for group in file.values())
            features = np.concatenate(
                [group["input_features"][:] for group in file.values() if group.attrs["block_num"] == block]
            )
        features = features[:, features.std(0) > 0]
        crossing, power = np.split(features, 2, axis=1)
        empty.append((crossing <= crossing.min(axis=0) + 1e-6).mean(axis=0))  # the least value is a count of zero
        crossings.append(crossing)
        powers.append(power)
    table.add_row(
        "bins without a crossing, mean / 5 % / 95 % of electrodes", _three(100 * np.concatenate(empty)) + " %"
    )
    for name, blocks in (("crossings", crossings), ("power", powers)):
        skew = np.concatenate([(b**3).mean(0) for b in blocks])
        kurtosis = np.concatenate([(b**4).mean(0) - 3 for b in blocks])
        table.add_row(f"skewness of {name}, mean / 5 % / 95 %", _three(skew, 2))
        table.add_row(f"excess kurtosis of {name}, mean / 5 % / 95 %", _three(kurtosis, 1))
    pooled = {
        name: np.concatenate([b.ravel() for b in blocks])
        for name, blocks in (("crossings", crossings), ("power", powers))
    }
    return {**pooled, "empty": np.concatenate(empty)}


def read_segments(root: Path, records: list[TruthRecord]) -> Segments:
    columns: tuple[list[np.ndarray], ...] = ([], [], [], [], [], [])
    by_file: dict[Path, list[TruthRecord]] = {}
    for record in records:
        by_file.setdefault(session_file(root, record.session, record.split), []).append(record)
    for path, own in track(by_file.items(), "segments", console=CONSOLE):
        with h5py.File(path) as file:
            for number, record in enumerate(own):
                assert record.phoneme_starts is not None
                features = file[record.name.rsplit("/", 1)[1]]["input_features"][:]
                starts = np.maximum(np.array(record.phoneme_starts) - LEAD, 0)
                sums = np.add.reduceat(features, starts, axis=0)[:-1]  # the last SIL is left out
                means = sums / np.diff(starts)[:, None]
                labels = np.array(record.phonemes[:-1])
                spoken = labels != SIL
                day = SessionLayout(name=record.session, blocks=()).day
                facts = (day, number % 2, record.mode == "silent", record.split == "val")
                columns[0].append(means[spoken])
                columns[1].append(labels[spoken])
                for column, fact in zip(columns[2:], facts, strict=True):
                    column.append(np.full(spoken.sum(), fact))
    return Segments(*(np.concatenate(column) for column in columns))


def phoneme_means(segments: Segments, least: int = 4) -> np.ndarray:
    """(NUM_CLASSES, 512), centred over phonemes; NaN for a phoneme that was said fewer than `least` times."""
    if not len(segments.labels):
        return np.full((NUM_CLASSES, segments.means.shape[1]), np.nan)
    counts = np.bincount(segments.labels, minlength=NUM_CLASSES)
    sums = np.zeros((NUM_CLASSES, segments.means.shape[1]))
    np.add.at(sums, segments.labels, segments.means)
    means = np.where((counts >= least)[:, None], sums / np.maximum(counts, 1)[:, None], np.nan)
    return means - np.nanmean(means, axis=0)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    both = ~(np.isnan(first) | np.isnan(second))
    if not both.any():
        return np.nan
    return float(np.corrcoef(first[both], second[both])[0, 1])


def corrected(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    """Correlation of two sets of means, each measured twice, divided by what their own noise leaves of it.

    NaN where that noise leaves next to nothing.
    """
    across = np.mean([correlation(a, b) for a in first for b in second])
    reliability = np.array([correlation(*first), correlation(*second)])
    if not (reliability > LEAST_RELIABILITY).all():
        return np.nan
    return float(across / np.sqrt(reliability.prod()))


def by_halves(segments: Segments) -> tuple[np.ndarray, np.ndarray]:
    return phoneme_means(segments.where(segments.half == 0)), phoneme_means(segments.where(segments.half == 1))


def measure_structure(segments: Segments, table: Table) -> tuple[np.ndarray, np.ndarray]:
    days = np.unique(segments.days)
    halves = [by_halves(segments.where(segments.days == day)) for day in days]
    within = [correlation(*pair) for pair in halves]
    modes = []
    for first in range(0, len(days), WINDOW):
        own = segments.where(np.isin(segments.days, days[first : first + WINDOW]))
        modes.append(corrected(by_halves(own.where(~own.silent)), by_halves(own.where(own.silent))))
    correlations = np.eye(len(days))
    for i, j in track(list(combinations(range(len(days)), 2)), "structure", console=CONSOLE):
        correlations[i, j] = correlations[j, i] = corrected(halves[i], halves[j])
    table.add_row("phoneme means, same day, two halves of its trials (raw)", f"{np.nanmean(within):.2f}")
    table.add_row("phoneme means, same sessions, vocalised and silent", f"{np.nanmean(modes):.2f}")
    upper = np.triu_indices(len(days), 1)
    gaps = np.abs(days[:, None] - days)[upper]
    for text, values in _binned(gaps, correlations[upper]):
        table.add_row(f"phoneme means, {text} apart", f"{np.nanmean(values):.2f}")
    return days, correlations


def _binned(gaps: np.ndarray, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    for low, high in pairwise(GAP_EDGES):
        chosen = (gaps > low) & (gaps <= high)
        if chosen.any():
            yield f"{low + 1}-{high} days", values[chosen]


def fit_probe(segments: Segments) -> tuple[np.ndarray, np.ndarray]:
    """Linear discriminant with a ridge: weights (512, K), bias (K,)."""
    classes = np.unique(segments.labels)
    means = np.stack([segments.means[segments.labels == k].mean(0) for k in classes])
    centred = segments.means - means[np.searchsorted(classes, segments.labels)]
    covariance = centred.T @ centred / len(centred)
    covariance += RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    weights = np.linalg.solve(covariance, means.T)
    share = np.bincount(segments.labels, minlength=NUM_CLASSES)[classes] / len(segments.labels)
    full = np.full(NUM_CLASSES, -np.inf)
    full[classes] = np.log(share) - 0.5 * (means.T * weights).sum(0)
    table = np.zeros((segments.means.shape[1], NUM_CLASSES))
    table[:, classes] = weights
    return table, full


def probe_error(probe: tuple[np.ndarray, np.ndarray], segments: Segments) -> float:
    weights, bias = probe
    return float(100 * np.mean((segments.means @ weights + bias).argmax(1) != segments.labels))


def measure_decay(segments: Segments, table: Table) -> np.ndarray:
    """(P, 2): gap in days and error of each window of sessions on each later session."""
    own = fit_probe(segments.where(~segments.val))
    table.add_row("linear probe, all sessions: error on val", f"{probe_error(own, segments.where(segments.val)):.1f} %")
    days = np.unique(segments.days)
    points = []
    for first in track(range(0, max(1, len(days) - WINDOW), 2), "decay", console=CONSOLE):
        window = days[first : first + WINDOW]
        trained = np.isin(segments.days, window) & ~segments.val
        probe = fit_probe(segments.where(trained))
        here = segments.where(np.isin(segments.days, window) & segments.val)
        points.append((0.0, probe_error(probe, here)))
        for day in days[days > window[-1]]:
            points.append((float(day - window[-1]), probe_error(probe, segments.where(segments.days == day))))
    result = np.array(points)
    table.add_row(
        f"probe of {WINDOW} sessions: val of the same sessions", f"{result[result[:, 0] == 0, 1].mean():.1f} %"
    )
    for text, values in _binned(result[:, 0], result[:, 1]):
        table.add_row(f"    {text} later", f"{values.mean():.1f} %")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="simulated data; made afresh when not given")
    parser.add_argument("--scale", default="medium", choices=sorted(SCALES), help="of the data that are made")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    parser.add_argument("--plots", type=Path, help="folder for the plots; none are drawn when not given")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.root or Path(temporary) / "data"
        if arguments.root is None:
            simulate(root, arguments.scale, arguments.seed)
        records = list(read_truth(root).values())
        sessions = sorted({record.session for record in records})
        table = Table("measure", "value", title=f"{root.name}: {len(records)} trials, {len(sessions)} sessions")
        phonemes, pauses, words, bins = measure_speech(records, table)
        marginals = measure_marginals(root, sessions[:: max(1, len(sessions) // MARGINAL_SESSIONS)], table)
        segments = read_segments(root, [record for record in records if record.split != "test"])
        days, correlations = measure_structure(segments, table)
        decay = measure_decay(segments, table)
        CONSOLE.print(table)
        if arguments.plots is not None:
            plot_all(
                arguments.plots,
                Calibration(phonemes, pauses, words, bins, marginals, days, correlations, decay),
            )


if __name__ == "__main__":
    main()
