"""What a study found, is it more than noise, and its file `tune.json`, from which an interrupted study goes on.

Shapes: N utterances.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mode_ssm.data.batch import TrialInfo
from mode_ssm.metrics import bootstrap_interval, paired_bootstrap_difference
from mode_ssm.tasks.tuning import AXES, Setting, Study

logger = logging.getLogger(__name__)

_NATURAL_ENDS = {("blank_penalty", 0.0), ("neural_weight", 0.0), ("neural_weight", 1.0)}  # nothing lies beyond them


@dataclass(frozen=True, slots=True)
class CrossCheck:
    """Each half of the utterances decoded with the setting that is best on the other half.

    first_half: (N,) bool. chosen: the best setting on the first and on the second half. edits: (N,).
    """

    first_half: np.ndarray
    chosen: tuple[Setting, Setting]
    edits: np.ndarray


def halves(infos: Sequence[TrialInfo]) -> tuple[np.ndarray, str]:
    """(N,) bool: every other session, block or trial, the largest unit of which there are two; and its name."""
    units = {
        "sessions": [info.session for info in infos],
        "blocks": [f"{info.session}/{info.block:06d}" for info in infos],
        "trials": [info.name for info in infos],
    }
    unit = next((name for name, of in units.items() if len(set(of)) > 1), "trials")
    odd = set(sorted(set(units[unit]))[1::2])
    return np.array([name not in odd for name in units[unit]]), unit


def cross_check(study: Study, first_half: np.ndarray) -> CrossCheck:
    """Choose among all trials on one half, count errors on the other, both ways.

    Where the search looked closer it looked with both halves; only the choice is made without the half that counts.
    """
    first, second = (study.best(part=part) for part in (first_half, ~first_half))
    edits = np.where(first_half, study.trials[second], study.trials[first])
    return CrossCheck(first_half, (first, second), edits)


def summarise_study(study: Study, infos: Sequence[TrialInfo], *, samples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """The JSON-able content of `tune.json` but for its trials. Rates are fractions, intervals 95 % bootstrap.

    `difference` is the WER of the chosen setting minus the default's on the utterances that chose it: it flatters.
    `cross_check.difference` is that of settings chosen on other utterances. `within_noise`: zero is inside of the
    latter's interval, or nothing beats the default.
    """
    default, chosen = study.default, study.best()
    first_half, unit = halves(infos)
    check = cross_check(study, first_half)

    def rate(edits: np.ndarray) -> dict[str, Any]:
        interval = bootstrap_interval(edits.tolist(), study.lengths.tolist(), samples, seed)
        return {"wer": float(edits.sum() / study.lengths.sum()), "wer_ci": list(interval)}

    def difference(edits: np.ndarray) -> dict[str, float]:
        found = paired_bootstrap_difference(
            study.trials[default].tolist(), edits.tolist(), study.lengths.tolist(), samples, seed
        )
        return found._asdict()

    held_out = difference(check.edits)
    return {
        "num_utterances": len(study.lengths),
        "num_words": int(study.lengths.sum()),
        "num_trials": len(study.trials),
        "default": {**asdict(default), **rate(study.trials[default])},
        "chosen": {**asdict(chosen), **rate(study.trials[chosen])},
        "difference": difference(study.trials[chosen]),
        "cross_check": {
            "halves_of": unit,
            "utterances": [int(part.sum()) for part in (first_half, ~first_half)],
            "chosen_on_each_half": [asdict(setting) for setting in check.chosen],
            **rate(check.edits),
            "difference": held_out,
        },
        "within_noise": chosen == default or held_out["high"] >= 0,
        "at_the_edge": [name for name in AXES if _at_edge(study, name, getattr(chosen, name))],
    }


def _at_edge(study: Study, name: str, value: float) -> bool:
    """Whether the axis might have a better value beyond those that were tried."""
    tried = {getattr(setting, name) for setting in study.trials}
    return len(tried) > 1 and value in (min(tried), max(tried)) and (name, value) not in _NATURAL_ENDS


def write_study(path: Path, made_for: Mapping[str, str], study: Study, summary: Mapping[str, Any]) -> None:
    """Write `tune.json` whole or not at all; `summary` is empty while the study runs."""
    trials = [
        {**asdict(setting), "wer": study.wer(setting), "edits": edits.tolist()}
        for setting, edits in study.trials.items()
    ]
    head = json.dumps({"made_for": made_for, **summary}, indent=1, allow_nan=False)
    lines = ",\n  ".join(json.dumps(trial, separators=(",", ":")) for trial in trials)
    partial = path.with_name(f".partial_{path.name}")
    partial.write_text(f'{head[:-2]},\n "trials": [\n  {lines}\n ]\n}}\n', encoding="utf-8")
    os.replace(partial, path)


def finished_trials(path: Path, made_for: Mapping[str, str]) -> dict[Setting, np.ndarray]:
    """Trials of an earlier study with the same recordings, language model and search; none, with a warning that names
    what differs, of any other."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        differing = " and ".join(key for key in made_for if found["made_for"].get(key) != made_for[key])
        if not differing:
            return {
                Setting(*(trial[name] for name in AXES)): np.array(trial["edits"], np.int64)
                for trial in found["trials"]
            }
        logger.warning("%s was made with another %s; the study begins afresh", path, differing)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read and the study begins afresh: %r", path, error)
    return {}
