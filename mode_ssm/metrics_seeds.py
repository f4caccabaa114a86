"""Error rates of several training runs of one model: their mean, and how far it would move with other trials and seeds.

Shapes: S seeds, N trials, R resamples.
"""

from collections.abc import Sequence

import numpy as np

from mode_ssm.metrics import Difference, Interval


class Resampling:
    """Draws of trials, common to all models, and of seeds, of each model's own.

    Trials are drawn together because what makes a sentence hard for one model makes it hard for another. Seeds are not:
    seed 0 of two models has nothing in common but the order of batches.
    """

    def __init__(self, lengths: Sequence[int], samples: int, seed: int = 0, level: float = 0.95) -> None:
        """lengths (N,): reference symbols. Raises `ValueError` where they sum to zero."""
        self._lengths = np.asarray(lengths)
        if self._lengths.sum() == 0:
            raise ValueError("no reference symbols: an error rate over nothing has no interval")
        trials = len(self._lengths)
        self._rng = np.random.default_rng(seed)
        drawn = self._rng.multinomial(trials, np.full(trials, 1 / trials), size=samples)
        self._trials = drawn[drawn @ self._lengths > 0]  # (R, N); empty references alone have no rate
        self._quantiles = [(1 - level) / 2, (1 + level) / 2]

    def rates(self, edits: np.ndarray) -> np.ndarray:
        """Resampled mean rates (R,) of a model's edits (S, N): each call draws seeds anew."""
        seeds = len(edits)
        weights = self._rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=len(self._trials))  # (R, S)
        per_seed = self._trials @ edits.T / (self._trials @ self._lengths)[:, None]  # (R, S)
        return (weights * per_seed).sum(1) / seeds

    def mean(self, edits: np.ndarray) -> float:
        """Mean over seeds of the aggregate rate."""
        return float(edits.sum() / len(edits) / self._lengths.sum())

    def interval(self, rates: np.ndarray) -> Interval:
        low, high = np.quantile(rates, self._quantiles)
        return Interval(float(low), float(high))

    def difference(
        self, edits: np.ndarray, rates: np.ndarray, other_edits: np.ndarray, other_rates: np.ndarray
    ) -> Difference:
        """How much higher the mean rate of the other model is, with its interval. `*_rates` are those of `rates`."""
        value = self.mean(other_edits) - self.mean(edits)
        return Difference(value, *self.interval(other_rates - rates))
