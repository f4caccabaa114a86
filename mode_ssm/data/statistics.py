"""Mean and spread of every feature, of one trial, a session or a whole split, and how to merge them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch


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
    """Statistics of the union of disjoint parts (Chan, Golub & LeVeque 1983, pairwise update); of one, that itself."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
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


def merge_blocks(trials: Iterable[tuple[int, FeatureStatistics]]) -> FeatureStatistics:
    """Statistics of a session from (block, statistics) of its trials or blocks: blocks first, then those in order.

    The order is part of the result, to the last bit: whoever keeps blocks gets the same numbers as who keeps trials.
    """
    blocks: dict[int, list[FeatureStatistics]] = {}
    for block, part in trials:
        blocks.setdefault(block, []).append(part)
    return merge(merge(blocks[block]) for block in sorted(blocks))


class RunningCovariance:
    """Covariance of features that come a trial at a time (Chan, Golub & LeVeque 1983).

    Products are those of float32, which keeps what a float32 result can hold; sums are float64.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0)
        self.scatter = torch.zeros(0)  # sum of the outer products of what differs from the mean

    def add(self, features: np.ndarray) -> None:
        """features (T, C), T > 0."""
        wide = torch.from_numpy(features).double()
        mean = wide.mean(dim=0)
        centred = (wide - mean).float()
        scatter = (centred.T @ centred).double()
        if self.count == 0:
            self.count, self.mean, self.scatter = len(wide), mean, scatter
            return
        total, shift = self.count + len(wide), mean - self.mean
        self.scatter.add_(scatter).addr_(shift, shift, alpha=self.count * len(wide) / total)
        self.mean += shift * (len(wide) / total)
        self.count = total

    def covariance(self) -> np.ndarray:
        """Population covariance (C, C) float64."""
        return (self.scatter / self.count).numpy()
