"""Error rates of several models on the same trials, each trained with several seeds, and their differences.

Shapes: S seeds, N trials.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np

from mode_ssm.metrics import ErrorRate
from mode_ssm.metrics_seeds import Resampling
from mode_ssm.tasks.results import TrialResult, trial_errors

METRICS = ("per", "wer", "per_greedy_ctc")
GROUPS = ("by_seen", "by_corpus", "by_mode", "by_distance", "by_session")
_DISTANCES = ((0, "0 days"), (7, "1-7 days"), (30, "8-30 days"), (90, "31-90 days"))
_FAR = "over 90 days"


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredTrial:
    """Edits and reference lengths of one decoded trial, and the groups that it belongs to; None where unknown.

    days: from its session to the nearest one of training.
    """

    name: str
    session: str
    corpus: str | None
    mode: str | None
    seen: bool | None
    days: int | None
    per: tuple[int, int]
    per_greedy_ctc: tuple[int, int] | None
    wer: tuple[int, int] | None

    @classmethod
    def from_result(cls, result: TrialResult, training_sessions: Sequence[str]) -> "MeasuredTrial":
        errors = trial_errors(result)

        def pair(error: ErrorRate | None) -> tuple[int, int] | None:
            return None if error is None else (error.edits, error.reference_length)

        return cls(
            name=result.info.name,
            session=result.info.session,
            corpus=result.corpus,
            mode=result.mode,
            seen=result.seen,
            days=days_from_training(result.info.session, training_sessions),
            per=(errors.per.edits, errors.per.reference_length),
            per_greedy_ctc=pair(errors.per_greedy_ctc),
            wer=pair(errors.wer),
        )


def session_date(session: str) -> date | None:
    """The date in a name such as `t15.2023.08.11`."""
    found = re.search(r"(\d{4})\.(\d{2})\.(\d{2})$", session)
    return date(*map(int, found.groups())) if found else None


def days_from_training(session: str, training_sessions: Sequence[str]) -> int | None:
    """Days from a session to the nearest one of training; None for names without a date."""
    own = session_date(session)
    dates = [found for name in training_sessions if (found := session_date(name)) is not None]
    return None if own is None or not dates else min(abs((own - other).days) for other in dates)


def distance_label(days: int | None) -> str | None:
    return None if days is None else next((label for most, label in _DISTANCES if days <= most), _FAR)


def compare(rows: Mapping[str, Sequence[Sequence[MeasuredTrial]]], samples: int, seed: int = 0) -> dict[str, Any]:
    """{row: rates} of trials that every row has decoded with every one of its seeds.

    The rates of a row are `all`, and by group `by_seen`, `by_corpus`, `by_mode`, `by_distance` and `by_session` (with
    `days`); each holds `num_trials` and for every metric `value`, the mean over seeds, `ci`, `per_seed`, and
    `difference` to the first row (`value`, `low`, `high`), None for that row itself. A metric is None where a row
    lacks it.

    Raises `ValueError` where runs have not decoded the same trials.
    """
    runs = [run for of_row in rows.values() for run in of_row]
    trials = runs[0]
    names = [trial.name for trial in trials]
    for row, of_row in rows.items():
        if any([trial.name for trial in run] != names for run in of_row):
            raise ValueError(f"{row} was evaluated on other trials than {next(iter(rows))}; compare on one dataset")
    everything = np.ones(len(trials), bool)
    compared: dict[str, Any] = {row: {} for row in rows}
    for row, rates in _rates(rows, everything, samples, seed).items():
        compared[row]["all"] = rates
    for kind in GROUPS:
        labels = np.array([_label(kind, trial) or "" for trial in trials])
        order = [label for _, label in _DISTANCES] + [_FAR] if kind == "by_distance" else sorted(set(labels))
        groups = {
            label: _rates(rows, labels == label, samples, seed) for label in order if label and label in set(labels)
        }
        for row in rows:
            compared[row][kind] = {label: of_rows[row] for label, of_rows in groups.items()}
    days = {trial.session: trial.days for trial in trials}
    for row in rows:
        for session, of_session in compared[row]["by_session"].items():
            of_session["days"] = days[session]
    return compared


def _label(kind: str, trial: MeasuredTrial) -> str | None:
    if kind == "by_seen":
        return None if trial.seen is None else "seen" if trial.seen else "unseen"
    if kind == "by_distance":
        return distance_label(trial.days)
    value = getattr(trial, kind.removeprefix("by_"))
    return None if value is None else str(value)


def _rates(
    rows: Mapping[str, Sequence[Sequence[MeasuredTrial]]], chosen: np.ndarray, samples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Of the chosen trials (N,) bool, by row."""
    rates: dict[str, dict[str, Any]] = {row: {"num_trials": int(chosen.sum())} for row in rows}
    for metric in METRICS:
        first: tuple[np.ndarray, np.ndarray] | None = None
        resampling: Resampling | None = None
        for number, (row, runs) in enumerate(rows.items()):
            errors = [[getattr(trial, metric) for trial, kept in zip(run, chosen, strict=True) if kept] for run in runs]
            rates[row][metric] = None
            if any(error is None for run in errors for error in run):
                continue
            pairs = np.array(errors)  # (S, N, 2)
            edits, lengths = pairs[..., 0], pairs[0, :, 1]
            if not lengths.sum():
                continue
            resampling = resampling or Resampling(lengths.tolist(), samples, seed)
            resampled = resampling.rates(edits)
            if number == 0:
                first = edits, resampled
            difference = None
            if number and first is not None:
                difference = resampling.difference(*first, edits, resampled)._asdict()
            rates[row][metric] = {
                "value": resampling.mean(edits),
                "ci": list(resampling.interval(resampled)),
                "per_seed": (edits.sum(1) / lengths.sum()).tolist(),
                "difference": difference,
            }
    return rates
