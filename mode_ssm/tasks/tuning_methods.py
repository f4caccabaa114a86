"""Which settings to try: a grid that becomes finer around the best, or Optuna's draws."""

from collections.abc import Sequence
from importlib import import_module
from itertools import product
from typing import Any

from mode_ssm.tasks.tuning import AXES, Setting, Study

_DIGITS = 4  # after the point


def grid_search(study: Study, refinements: int) -> None:
    """All combinations of the axes' values, then `refinements` times those halfway between the best and its neighbours.

    Only the grid's own settings are looked at, so that a study that goes on takes the same way again.
    """
    settings = [study.default, *(Setting(*values) for values in product(*study.axes.values()))]
    study.run(settings)
    for _ in range(refinements):
        settings += around_best(study, settings)
        study.run(settings)


def around_best(study: Study, settings: Sequence[Setting]) -> list[Setting]:
    """The best of `settings` with every axis at its value and halfway to the next lower and higher one of any."""
    best, values = study.best(settings), []
    for name in AXES:
        value = getattr(best, name)
        given = sorted({getattr(setting, name) for setting in settings})
        neighbours = [*given[: given.index(value)][-1:], *given[given.index(value) + 1 :][:1]]
        if len(study.axes[name]) == 1:
            neighbours = []
        values.append([value, *(round((value + other) / 2, _DIGITS) for other in neighbours)])
    return [Setting(*combination) for combination in product(*values)]


def optuna_search(study: Study, trials: int, seed: int, at_once: int) -> None:
    """`trials` settings in all, the default among them: Optuna's tree-structured Parzen estimator (Bergstra et al.
    2011) draws between the smallest and the largest value of each axis, `at_once` at a time.

    Raises `ValueError` where Optuna is not installed.
    """
    try:
        optuna: Any = import_module("optuna")
    except ImportError:
        raise ValueError(
            "method=optuna needs the sweep extra: uv sync --extra sweep; method=grid needs nothing"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ranges = {
        name: optuna.distributions.FloatDistribution(values[0], values[-1])
        for name, values in study.axes.items()
        if len(values) > 1
    }
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
    draws = optuna.create_study(sampler=sampler)
    study.run([study.default])
    if not ranges:
        return
    for setting in study.trials:
        params = {name: getattr(setting, name) for name in ranges}
        if all(ranges[name].low <= value <= ranges[name].high for name, value in params.items()):
            done = optuna.trial.create_trial(params=params, distributions=ranges, value=study.wer(setting))
            draws.add_trial(done)
    while len(study.trials) < trials:
        asked = [draws.ask(ranges) for _ in range(min(at_once, trials - len(study.trials)))]
        settings = [
            Setting(**{name: round(trial.params.get(name, study.axes[name][0]), _DIGITS) for name in AXES})
            for trial in asked
        ]
        study.run(settings)
        for trial, setting in zip(asked, settings, strict=True):
            draws.tell(trial, study.wer(setting))
