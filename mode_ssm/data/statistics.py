"""Mean and spread of every feature, of one trial, a session or a whole split, and how to merge them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureStatistics:
    """Over `count` bins: mean (C,) and population standard deviation (C,), both float64, in the features' units."""

    count: int
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> "FeatureStatistics":
        """Statistics of features (T, C). Not finite exactly where a feature is not."""
        if features.ndim != 2 or len(features) == 0:
            raise ValueError(f"statistics need features of shape (T, C) with T > 0, got {features.shape}")
        wide = features.astype(np.float64)
        with np.errstate(invalid="ignore"):
            mean = wide.mean(axis=0)
            wide -= mean
            variance = np.einsum("tc,tc->c", wide, wide) / len(wide)
        return cls(count=len(features), mean=mean, std=np.sqrt(variance))


def merge(parts: Iterable[FeatureStatistics]) -> FeatureStatistics:
    """Statistics of the union of disjoint parts (Chan, Golub & LeVeque 1983, pairwise update)."""
    count, mean, squares = 0, np.zeros(0), np.zeros(0)
    for part in parts:
        if count == 0:
            count, mean, squares = part.count, part.mean.copy(), part.std**2 * part.count
            continue
        if part.mean.shape != mean.shape:
            raise ValueError(f"cannot merge statistics of {len(part.mean)} features with those of {len(mean)}")
        total = count + part.count
        shift = part.mean - mean
        mean = mean + shift * (part.count / total)
        squares = squares + part.std**2 * part.count + shift**2 * (count * part.count / total)
        count = total
    if count == 0:
        raise ValueError("cannot merge an empty list of feature statistics")
    return FeatureStatistics(count=count, mean=mean, std=np.sqrt(squares / count))
