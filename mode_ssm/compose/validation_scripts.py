"""What the types cannot say of the settings of single scripts."""

import math
import re
from dataclasses import fields

from mode_ssm.config import CompareConfig, TuneConfig

SPLITS = ("train", "val", "test")
_LARGE = 1e6
_TUNED = {
    "acoustic_scale": (1 / _LARGE, "above 0", _LARGE),
    "word_bonus": (-_LARGE, "a finite number", _LARGE),
    "blank_penalty": (0.0, "0 or above", _LARGE),
    "neural_weight": (0.0, "from 0 to 1", 1.0),
}


def validate_split(split: str) -> None:
    """Raise `ValueError` for a split that no dataset has."""
    if split not in SPLITS:
        raise ValueError(f"split={split}: expected one of {', '.join(SPLITS)}")


def validate_tuning(config: TuneConfig) -> None:
    """Raise one `ValueError` for settings of `scripts/tune_decoding.py` that make no sense, and for the test split."""
    if config.split == "test":
        raise ValueError(
            "split=test: scales chosen on the test split make its error rates too good to be true; tune with split=val"
        )
    validate_split(config.split)
    issues = []
    for key, least in (("trials", 1), ("refinements", 0), ("processes", 0)):
        if getattr(config, key) < least:
            issues.append(f"{key}={getattr(config, key)}: expected at least {least}")
    for axis in fields(config.axes):
        lowest, words, highest = _TUNED[axis.name]
        values = getattr(config.axes, axis.name)
        if not values or not all(lowest <= value <= highest for value in values):
            issues.append(f"axes.{axis.name}={values}: expected one value or more, each {words}")
    if issues:
        raise ValueError("; ".join(issues))


def validate_comparison(config: CompareConfig) -> None:
    """Raise one `ValueError` for settings of `scripts/compare.py` that make no sense."""
    issues = []
    for key in ("experiments", "seeds"):
        values = getattr(config, key)
        if not values or len(set(values)) < len(values):
            issues.append(f"{key}={values}: expected one or more, each once")
    for name in (config.name, *config.experiments):
        if not re.fullmatch(r"[\w-][\w.-]*", name):
            issues.append(f"{name!r}: expected a folder name of letters, digits and _ - .")
    if any(seed < 0 for seed in config.seeds):
        issues.append(f"seeds={config.seeds}: expected 0 or above")
    for key in ("settings", "tune_lr"):
        for row in getattr(config, key):
            if row not in config.experiments:
                issues.append(f"{key}.{row}: no row of that name; experiments={config.experiments}")
    for row, rates in config.tune_lr.items():
        if not rates or not all(0 < rate < math.inf for rate in rates) or len(set(rates)) < len(rates):
            issues.append(f"tune_lr.{row}={rates}: expected one value or more, each once and above 0")
    for key in ("processes", "samples"):
        if getattr(config, key) < 1:
            issues.append(f"{key}={getattr(config, key)}: expected at least 1")
    if issues:
        raise ValueError("; ".join(issues))
