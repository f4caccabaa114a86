"""From raw features to what the model sees: smoothing, and augmentation of training trials.

Every function takes features (T, C) float32 and returns a new array; nothing is changed in place, since the raw
features may be shared. Randomness is a pure function of (seed, epoch, trial name): the same batch comes out on any
rank, in any worker and after any interruption.
"""

import hashlib
from functools import lru_cache

import numpy as np

from mode_ssm.config import AugmentConfig, Smoothing
from mode_ssm.data.batch import Trial

SMALLEST_TAP = 0.01  # the official kernel drops taps that are not larger
MIN_BINS_PER_LABEL = 8  # augmentation leaves this much, or does nothing: two frames a phoneme at stride 4
WARP_KNOT_BINS = 25  # local speed is redrawn about twice a second


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


def smooth(features: np.ndarray, kind: Smoothing, std: float) -> np.ndarray:
    """Convolve every feature with `gaussian_kernel(std, kind)`; beyond the trial's ends the signal counts as zero."""
    kernel = gaussian_kernel(std, kind)
    lookahead = len(kernel) // 2 if kind is Smoothing.symmetric else 0
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


def lookahead_bins(kind: Smoothing, std: float) -> int:
    """How many bins of the future a smoothed bin depends on."""
    return len(gaussian_kernel(std, kind)) // 2 if kind is Smoothing.symmetric else 0


def random_cut(features: np.ndarray, max_bins: int, min_bins: int, rng: np.random.Generator) -> np.ndarray:
    """Drop 0..max_bins bins at the start, never leaving fewer than `min_bins`."""
    most = min(max_bins, len(features) - max(min_bins, 1))
    return features[rng.integers(most + 1) :] if most > 0 else features


def time_warp(features: np.ndarray, strength: float, min_bins: int, rng: np.random.Generator) -> np.ndarray:
    """Play the trial at a smoothly changing speed within 1 +- strength, by linear interpolation.

    The length changes with the mean speed. A warp that would leave fewer than `min_bins` bins is not applied.
    """
    bins = len(features)
    knots = 1.0 + strength * rng.uniform(-1.0, 1.0, size=bins // WARP_KNOT_BINS + 2)
    # Enough steps to reach the end at the slowest speed.
    steps = int(np.ceil(bins / (1.0 - strength)))
    speed = np.interp(np.arange(steps), np.linspace(0, steps, len(knots)), knots)
    position = np.concatenate(([0.0], np.cumsum(speed)))
    position = position[position <= bins - 1]
    if len(position) < min(min_bins, bins):
        return features
    left = np.minimum(position.astype(np.int64), max(bins - 2, 0))
    weight = (position - left).astype(np.float32)[:, None]
    warped = features[np.minimum(left + 1, bins - 1)]
    warped -= features[left]
    warped *= weight
    warped += features[left]
    return warped


def white_noise(features: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """Add an independent normal of `std` to every bin and feature."""
    noise = rng.standard_normal(features.shape, dtype=np.float32)
    noise *= np.float32(std)
    noise += features
    return noise


def constant_offset(features: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """Add a normal of `std` to every feature, the same in all bins."""
    return features + np.float32(std) * rng.standard_normal(features.shape[1], dtype=np.float32)


def time_masks(features: np.ndarray, count: int, max_fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Set `count` stretches to zero, each 0..floor(max_fraction * T) bins at a uniformly drawn place."""
    bins = len(features)
    widths = rng.integers(int(max_fraction * bins) + 1, size=count)
    starts = rng.integers(bins - widths + 1)
    masked = features.copy()
    for start, width in zip(starts, widths, strict=True):
        masked[start : start + width] = 0.0
    return masked


def trial_generator(seed: int, epoch: int, name: str) -> np.random.Generator:
    """The random numbers of one trial in one epoch; nothing else, so that order and worker do not matter."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{name}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


class EvalTransform:
    """Smoothing only."""

    def __init__(self, smoothing: Smoothing, std: float) -> None:
        gaussian_kernel(std, smoothing)
        self.smoothing = smoothing
        self.std = std

    def __call__(self, trial: Trial, epoch: int = 0) -> np.ndarray:
        return self.smooth(trial.features)

    def smooth(self, features: np.ndarray) -> np.ndarray:
        return features if self.smoothing is Smoothing.none else smooth(features, self.smoothing, self.std)


class TrainTransform:
    """Cut, warp, noise, offset, smoothing, masks, in this order: noise is smoothed as the signal is, masks are not."""

    def __init__(self, augment: AugmentConfig, smoothing: Smoothing, std: float, seed: int) -> None:
        if not 0.0 <= augment.time_warp < 1.0:
            raise ValueError(f"data.augment.time_warp={augment.time_warp} must lie in [0, 1)")
        if not 0.0 <= augment.time_mask_max_fraction <= 1.0:
            raise ValueError(f"data.augment.time_mask_max_fraction={augment.time_mask_max_fraction} must lie in [0, 1]")
        for key in ("white_noise_std", "constant_offset_std", "random_cut_bins", "time_masks"):
            if getattr(augment, key) < 0:
                raise ValueError(f"data.augment.{key}={getattr(augment, key)} must not be negative; 0 switches it off")
        self.augment = augment
        self.seed = seed
        self.evaluate = EvalTransform(smoothing, std)

    def __call__(self, trial: Trial, epoch: int) -> np.ndarray:
        """Features (T', C) of a training trial in epoch `epoch`."""
        augment, features = self.augment, trial.features
        rng = trial_generator(self.seed, epoch, trial.info.name)
        min_bins = MIN_BINS_PER_LABEL * (len(trial.phonemes) if trial.phonemes is not None else 0)
        if augment.random_cut_bins:
            features = random_cut(features, augment.random_cut_bins, min_bins, rng)
        if augment.time_warp:
            features = time_warp(features, augment.time_warp, min_bins, rng)
        if augment.white_noise_std:
            features = white_noise(features, augment.white_noise_std, rng)
        if augment.constant_offset_std:
            features = constant_offset(features, augment.constant_offset_std, rng)
        features = self.evaluate.smooth(features)
        if augment.time_masks:
            features = time_masks(features, augment.time_masks, augment.time_mask_max_fraction, rng)
        return features
