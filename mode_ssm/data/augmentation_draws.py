"""What augmentation draws for one trial: all its small random numbers, as a pure function of (seed, epoch, trial name).

A counter-based generator (Philox, Salmon et al. 2011) is keyed by the trial, and every kind of augmentation reads a
stream of its own: numbers depend neither on batch, worker, rank and what was drawn before, nor on which other kinds are
switched on.

Shapes: T bins of the recording, T' of the augmented trial, C features.
"""

import hashlib
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from mode_ssm.config import AugmentConfig

MIN_BINS_PER_LABEL = 8  # augmentation leaves this much, or does nothing: two frames a phoneme at stride 4
WARP_KNOT_BINS = 25  # local speed is redrawn about twice a second
ARRAY_ELECTRODES = 64
FEATURES_PER_ELECTRODE = 2  # threshold crossings in the first half of the features, spike-band power in the second


class Stream(IntEnum):
    """Which numbers of a trial's generator an augmentation reads. Stored runs depend on the values."""

    random_cut = 0
    time_shift = 1
    time_warp = 2
    static_gain = 3
    constant_offset = 4
    white_noise = 5
    random_walk = 6
    electrode_dropout = 7
    array_dropout = 8
    feature_masks = 9
    time_masks = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialDraws:
    """How one trial changes; None where nothing does.

    positions (T',): where each bin comes from, in bins of the recording; fractions lie between two bins, negative ones
    before the first. gain and offset (C,). silent (C,) and masked (T',): features and bins that become zero.
    noise_seed and walk_seed start the generators of what is drawn on the device.
    """

    num_bins: int  # T'
    positions: np.ndarray | None
    gain: np.ndarray | None
    offset: np.ndarray | None
    silent: np.ndarray | None
    masked: np.ndarray | None
    noise_seed: int | None
    walk_seed: int | None


class TrialGenerator:
    """The random numbers of one trial in one epoch."""

    def __init__(self, seed: int, epoch: int, name: str) -> None:
        digest = hashlib.blake2b(f"{seed}/{epoch}/{name}".encode(), digest_size=16).digest()
        self.key = int.from_bytes(digest, "little")

    def stream(self, stream: Stream) -> np.random.Generator:
        """A generator at the beginning of a stream. Streams are 2^192 numbers apart."""
        return np.random.Generator(np.random.Philox(key=self.key, counter=[0, 0, 0, int(stream)]))

    def seed(self, stream: Stream) -> int:
        """What starts the generator of another library."""
        return int(self.stream(stream).integers(2**63))


def draw_trial(
    augment: AugmentConfig, trial: TrialGenerator, num_bins: int, num_labels: int, num_features: int
) -> TrialDraws:
    """Everything that happens to a recording of `num_bins` bins with `num_labels` phonemes."""
    positions = draw_positions(augment, trial, num_bins, MIN_BINS_PER_LABEL * num_labels)
    kept_bins = num_bins if positions is None else len(positions)
    gain = offset = masked = None
    if augment.static_gain:
        gain = draw_gain(augment.static_gain, num_features, trial.stream(Stream.static_gain))
    if augment.constant_offset_std:
        drawn = trial.stream(Stream.constant_offset).standard_normal(num_features, dtype=np.float32)
        offset = np.float32(augment.constant_offset_std) * drawn
    if augment.time_masks:
        rng = trial.stream(Stream.time_masks)
        masked = draw_stretches(kept_bins, augment.time_masks, augment.time_mask_max_fraction, rng)
    return TrialDraws(
        num_bins=kept_bins,
        positions=positions,
        gain=gain,
        offset=offset,
        silent=draw_silent(augment, trial, num_features),
        masked=masked,
        noise_seed=trial.seed(Stream.white_noise) if augment.white_noise_std else None,
        walk_seed=trial.seed(Stream.random_walk) if augment.random_walk_std else None,
    )


def draw_positions(augment: AugmentConfig, trial: TrialGenerator, num_bins: int, min_bins: int) -> np.ndarray | None:
    """Cut, shift and warp of a trial as `TrialDraws.positions`; None for the recording as it is.

    At least `min_bins` bins of the recording stay, or as many as it has.
    """
    spare = max(0, num_bins - max(min_bins, 1))
    first = 0
    if augment.random_cut_bins:
        first = int(trial.stream(Stream.random_cut).integers(min(augment.random_cut_bins, spare) + 1))
    if augment.time_shift_bins:
        later = trial.stream(Stream.time_shift).integers(-augment.time_shift_bins, augment.time_shift_bins + 1)
        first = min(first - int(later), spare)
    steps = None
    if augment.time_warp:
        steps = draw_warp(num_bins - first, augment.time_warp, min_bins, trial.stream(Stream.time_warp))
    if steps is None:
        return np.arange(first, num_bins, dtype=np.float64) if first else None
    return first + steps


def draw_warp(num_bins: int, strength: float, min_bins: int, rng: np.random.Generator) -> np.ndarray | None:
    """Positions (T',) of a trial played at a smoothly changing speed within 1 +- strength.

    The length changes with the mean speed. None for a warp that would leave fewer than `min_bins` bins.
    """
    knots = 1.0 + strength * rng.uniform(-1.0, 1.0, size=num_bins // WARP_KNOT_BINS + 2)
    # Enough steps to reach the end at the slowest speed.
    steps = int(np.ceil(num_bins / (1.0 - strength)))
    speed = np.interp(np.arange(steps), np.linspace(0, steps, len(knots)), knots)
    position = np.concatenate(([0.0], np.cumsum(speed)))
    position = position[position <= num_bins - 1]
    return position if len(position) >= min(min_bins, num_bins) else None


def draw_gain(largest: float, num_features: int, rng: np.random.Generator) -> np.ndarray:
    """(C,) uniform within 1 +- largest."""
    return 1 + np.float32(largest) * (2 * rng.random(num_features, dtype=np.float32) - 1)


def draw_stretches(length: int, count: int, max_fraction: float, rng: np.random.Generator) -> np.ndarray:
    """(length,) true in `count` stretches of 0..floor(max_fraction * length) each, at uniformly drawn places."""
    widths = rng.integers(int(max_fraction * length) + 1, size=count)
    starts = rng.integers(length - widths + 1)
    inside = np.zeros(length, bool)
    for start, width in zip(starts, widths, strict=True):
        inside[start : start + width] = True
    return inside


def draw_silent(augment: AugmentConfig, trial: TrialGenerator, num_features: int) -> np.ndarray | None:
    """(C,) true for features that are silent in the whole trial: electrodes, an array, bands of features.

    An electrode's features fall silent together; an array is `ARRAY_ELECTRODES` neighbouring electrodes.
    """
    if not (augment.electrode_dropout or augment.array_dropout or augment.feature_masks):
        return None
    silent = np.zeros(num_features, bool)
    if augment.feature_masks:
        rng = trial.stream(Stream.feature_masks)
        silent |= draw_stretches(num_features, augment.feature_masks, augment.feature_mask_max_fraction, rng)
    if augment.electrode_dropout:
        drawn = trial.stream(Stream.electrode_dropout).random(num_features // FEATURES_PER_ELECTRODE)
        silent |= np.tile(drawn < augment.electrode_dropout, FEATURES_PER_ELECTRODE)
    if augment.array_dropout:
        rng = trial.stream(Stream.array_dropout)
        array_of = np.arange(num_features // FEATURES_PER_ELECTRODE) // ARRAY_ELECTRODES
        lost, array = rng.random() < augment.array_dropout, rng.integers(array_of[-1] + 1)
        silent |= np.tile(lost & (array_of == array), FEATURES_PER_ELECTRODE)
    return silent
