"""Normalisation of the trials of a dataset, before everything else: a function (trial, features) -> features.

Shapes: T bins, C features.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from mode_ssm.data.batch import TrialInfo
from mode_ssm.data.rolling_normaliser import RollingNormaliser
from mode_ssm.data.statistics import FeatureStatistics

SMALLEST_STD = 1e-6  # below it a feature counts as one that never varies

Normalise = Callable[[TrialInfo, np.ndarray], np.ndarray]


def as_released(trial: TrialInfo, features: np.ndarray) -> np.ndarray:
    """Features as the files hold them."""
    return features


class SessionNormalisation:
    """By mean and spread of the session's training data; a session without any gets those of all sessions."""

    def __init__(self, by_session: Mapping[str, FeatureStatistics], overall: FeatureStatistics) -> None:
        self.by_session, self.overall = by_session, overall

    def __call__(self, trial: TrialInfo, features: np.ndarray) -> np.ndarray:
        """(T, C) -> (T, C) float32."""
        statistics = self.by_session.get(trial.session, self.overall)
        mean, std = statistics.mean.astype(np.float32), usable_std(statistics.std).astype(np.float32)
        return (features - mean) / std

    def of(self, session: str, raw: FeatureStatistics) -> FeatureStatistics:
        """Statistics of normalised data from those of recorded data of a session."""
        statistics = self.by_session.get(session, self.overall)
        std = usable_std(statistics.std)
        return FeatureStatistics(count=raw.count, mean=(raw.mean - statistics.mean) / std, std=raw.std / std)


class RollingNormalisation:
    """By mean and spread of the block's last `window_bins`, over trials in the order of their recording, whatever split
    they are of: `RollingNormaliser` offline. A trial depends on itself and on earlier trials of its block."""

    def __init__(
        self,
        trials: Iterable[TrialInfo],
        load: Callable[[TrialInfo], np.ndarray],
        training: FeatureStatistics,
        window_bins: int,
    ) -> None:
        """trials: all recordings; load: their features; training: statistics before a block has any."""
        self.load, self.training, self.window_bins = load, training, window_bins
        self.blocks: dict[tuple[str, int], list[TrialInfo]] = {}
        for trial in sorted(trials, key=lambda trial: (trial.trial, trial.name)):
            self.blocks.setdefault((trial.session, trial.block), []).append(trial)
        self.places = {trial.name: place for block in self.blocks.values() for place, trial in enumerate(block)}

    def __call__(self, trial: TrialInfo, features: np.ndarray) -> np.ndarray:
        """(T, C) -> (T, C) float32."""
        normaliser = RollingNormaliser(self.training.mean, self.training.std, self.window_bins)
        for earlier in self.earlier(trial):
            normaliser.observe(self.load(earlier))
        return normaliser.step(features)

    def earlier(self, trial: TrialInfo) -> list[TrialInfo]:
        """The trials before this one that reach into the window at its first bin, in order."""
        block = self.blocks[trial.session, trial.block]
        first, bins = self.places[trial.name], 0
        while first > 0 and bins < self.window_bins:
            first -= 1
            bins += block[first].num_bins
        return block[first : self.places[trial.name]]


def usable_std(std: np.ndarray) -> np.ndarray:
    """What to divide by: features that never vary stay unscaled."""
    return np.where(std > SMALLEST_STD, std, 1.0)
