"""Gaussian smoothing over time: one recording in NumPy, or a padded batch on its device.

Shapes: B trials, T bins, C features, K taps.
"""

from functools import lru_cache

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from mode_ssm.config import Smoothing

SMALLEST_TAP = 0.01  # the official kernel drops taps that are not larger


@lru_cache
def gaussian_kernel(std: float, kind: Smoothing) -> np.ndarray:
    """Taps (K,) float32 summing to one, in the order of time.

    `symmetric`: a Gaussian of `std` bins cut off at four standard deviations, taps <= 0.01 dropped, the rest
    renormalised, as in the Brain-to-Text '25 baseline (9 taps for std 2). `causal`: its half up to and including
    the present, renormalised. `none`: the single tap 1.
    """
    if kind is Smoothing.none:
        return np.ones(1, np.float32)
    if std <= 0:
        raise ValueError(f"smoothing_std={std} must be positive; smoothing=none switches smoothing off")
    radius = int(4.0 * std + 0.5)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / std) ** 2)
    taps /= taps.sum()
    taps = taps[taps > SMALLEST_TAP]
    if len(taps) == 0:
        raise ValueError(f"smoothing_std={std} leaves no tap above {SMALLEST_TAP}; it must stay below 40 bins")
    if kind is Smoothing.causal:
        taps = taps[: len(taps) // 2 + 1]
    return (taps / taps.sum()).astype(np.float32)


def lookahead_bins(kind: Smoothing, std: float) -> int:
    """How many bins of the future a smoothed bin depends on."""
    return len(gaussian_kernel(std, kind)) // 2 if kind is Smoothing.symmetric else 0


def smooth(features: np.ndarray, kind: Smoothing, std: float) -> np.ndarray:
    """Convolve every feature (T, C) with `gaussian_kernel(std, kind)`; beyond the trial's ends the signal counts as
    zero."""
    kernel = gaussian_kernel(std, kind)
    lookahead = lookahead_bins(kind, std)
    bins = len(features)
    smoothed = np.zeros(features.shape, np.float32)
    scaled = np.empty(features.shape, np.float32)
    for offset, tap in enumerate(kernel, start=lookahead - len(kernel) + 1):
        # The tap `offset` bins away from the present; rows whose neighbour lies outside the trial get nothing.
        low, high = max(0, -offset), min(bins, bins - offset)
        if low < high:
            np.multiply(features[low + offset : high + offset], tap, out=scaled[low:high])
            smoothed[low:high] += scaled[low:high]
    return smoothed


def smooth_batch(features: Tensor, kind: Smoothing, std: float) -> Tensor:
    """`smooth` of every trial of a batch (B, T, C) that is zero beyond each trial's end, on the device that holds it.

    What a symmetric kernel spills beyond the end of a short trial is left to the caller.
    """
    first, *others = gaussian_kernel(std, kind).tolist()
    if not others:
        return features
    bins, lookahead = features.shape[1], lookahead_bins(kind, std)
    padded = F.pad(features, (0, 0, len(others) - lookahead, lookahead))
    smoothed = padded[:, :bins] * first
    for offset, tap in enumerate(others, start=1):
        smoothed.add_(padded[:, offset : offset + bins], alpha=tap)
    return smoothed
