"""Normalisation of bins as they are recorded, from the statistics in a manifest. Needs no torch.

Shapes: n bins, C features.
"""

from typing import Protocol

import numpy as np

from mode_ssm.data.rolling_normaliser import RollingNormaliser
from mode_ssm.export.manifest import Manifest


class LiveNormaliser(Protocol):
    def step(self, bins: np.ndarray) -> np.ndarray:
        """Recorded bins (n, C) -> (n, C) float32, any n; the same numbers however a block is cut."""
        ...

    def reset(self) -> None:
        """The next block begins."""
        ...


class SessionNormaliser:
    """By mean and spread (C,) of the session's training data, as `data.normalisation=session`."""

    def __init__(self, mean: np.ndarray, std: np.ndarray) -> None:
        self.mean, self.std = mean.astype(np.float32), std.astype(np.float32)

    def step(self, bins: np.ndarray) -> np.ndarray:
        return (bins.astype(np.float32, copy=False) - self.mean) / self.std

    def reset(self) -> None:
        """Blocks are alike to it."""


def live_normaliser(manifest: Manifest) -> LiveNormaliser | None:
    """What the checkpoint's data went through, None for data as released. Raises `ValueError` for a manifest without
    the statistics that it takes."""
    if manifest.normalisation == "released":
        return None
    found = manifest.recorded
    if found is None:
        raise ValueError(
            f"the model reads bins of data.normalisation={manifest.normalisation}, and its manifest lacks their "
            "statistics; export it again where the training data are"
        )
    mean, std = np.array(found.mean), np.array(found.std)
    return (
        SessionNormaliser(mean, std) if found.window_bins is None else RollingNormaliser(mean, std, found.window_bins)
    )
