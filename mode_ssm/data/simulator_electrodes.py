"""From articulator trajectories to 512 features: four areas of 64 electrodes, drift, noise, block z-scoring.

Shapes: N bins (20 ms) of one block, A articulators, E = 256 electrodes.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

from mode_ssm.data.simulator_articulation import NUM_ARTICULATORS, VOICING
from mode_ssm.data.simulator_constants import SimulatorConstants

AREA_SIZE = 64
NUM_ELECTRODES = 4 * AREA_SIZE
NUM_FEATURES = 2 * NUM_ELECTRODES
_DRIFT_WAVES = 12  # cosines that make up a drifting quantity


@dataclass(frozen=True, slots=True)
class Area:
    """lead: bins by which activity precedes the articulator; strength: share of the tuning; blur: extra smoothing in
    bins; velocity: share of the tuning that follows movement and not position."""

    lead: int
    strength: float
    blur: float
    velocity: float


# In the order of the features. 6v carries most speech information, 55b leads and is broad, area 4 follows movement.
AREAS = {
    "ventral 6v": Area(lead=4, strength=1.0, blur=0.0, velocity=0.25),
    "area 4": Area(lead=2, strength=0.8, blur=0.0, velocity=0.5),
    "55b": Area(lead=9, strength=0.7, blur=4.0, velocity=0.0),
    "dorsal 6v": Area(lead=5, strength=0.7, blur=1.0, velocity=0.25),
}
_LEAD_SPREAD = 3  # electrodes of an area differ by up to this many bins
MAX_LEAD = max(area.lead for area in AREAS.values()) + _LEAD_SPREAD
_FAST, _SLOW = 2.0, 20.0  # smoothing in bins of the shared noise's quick and slow halves


class _Drift:
    """A random array that moves smoothly with the day: unit variance, correlation about exp(-days / time_constant).

    A sum of cosines whose frequencies are quantiles of a Cauchy distribution (whose characteristic function is that
    exponential), so that any day is computed without the days before it.
    """

    def __init__(self, shape: tuple[int, ...], time_constant: float, rng: np.random.Generator) -> None:
        quantiles = (np.arange(_DRIFT_WAVES) + 0.5) / _DRIFT_WAVES
        self._frequencies = np.tan(np.pi / 2 * quantiles) / time_constant
        self._waves = rng.normal(0, _DRIFT_WAVES**-0.5, (2, _DRIFT_WAVES, *shape))

    def at(self, day: float) -> np.ndarray:
        angles = self._frequencies * day
        return np.tensordot(np.cos(angles), self._waves[0], 1) + np.tensordot(np.sin(angles), self._waves[1], 1)


@dataclass(frozen=True, slots=True)
class SessionTuning:
    """The implant on one day. weights (2A, E): from positions and velocities to log rate, by mode; base (E,): log of
    the mean count in a bin; leads (E,): bins; alive (E,)."""

    weights: dict[str, np.ndarray]
    base: np.ndarray
    leads: np.ndarray
    alive: np.ndarray
    shared: np.ndarray  # (F, E) loadings of the shared noise


class Implant:
    """256 electrodes over their lifetime. The same seed gives the same implant; `on` is a pure function of the day."""

    def __init__(self, constants: SimulatorConstants, seed: int) -> None:
        rng = np.random.default_rng([seed, 0x1E])
        self._constants = constants
        areas = [area for area in AREAS.values() for _ in range(AREA_SIZE)]
        size = (2 * NUM_ARTICULATORS, NUM_ELECTRODES)
        velocity = np.array([area.velocity for area in areas])
        self._kind = np.repeat(np.sqrt(np.stack([1 - velocity, velocity])), NUM_ARTICULATORS, axis=0)
        self._strength = np.array([area.strength for area in areas]) * rng.lognormal(0, 0.5, NUM_ELECTRODES)
        self._strength /= np.sqrt(np.mean(self._strength**2))
        self._leads = np.array([area.lead for area in areas]) + rng.integers(
            -_LEAD_SPREAD, _LEAD_SPREAD + 1, NUM_ELECTRODES
        )
        self._fixed = {name: rng.normal(size=size) for name in ("vocalised", "silent")}
        self._moving = {name: _Drift(size, constants.tuning_days, rng) for name in ("vocalised", "silent")}
        self._base = rng.normal(np.log(constants.mean_rate), 0.5, NUM_ELECTRODES)
        self._offset = _Drift((NUM_ELECTRODES,), constants.tuning_days, rng)
        self._gain = _Drift((NUM_ELECTRODES,), constants.tuning_days, rng)
        self._death = rng.exponential(constants.electrode_life_days, NUM_ELECTRODES)
        self._shared = rng.normal(size=(2 * constants.shared_factors, NUM_ELECTRODES))
        self._shared /= np.sqrt(constants.shared_factors)

    def on(self, day: float) -> SessionTuning:
        c = self._constants
        alive = self._death > day
        gain = self._strength * np.exp(c.gain_drift * self._gain.at(day)) * alive * c.tuning
        directions = {
            name: np.sqrt(1 - c.rotating_share) * self._fixed[name]
            + np.sqrt(c.rotating_share) * self._moving[name].at(day)
            for name in self._fixed
        }
        own = np.sqrt(1 - c.silent_turn**2) * directions["vocalised"] + c.silent_turn * directions["silent"]
        own[[VOICING, NUM_ARTICULATORS + VOICING]] = 0
        scale = gain * self._kind / np.sqrt(NUM_ARTICULATORS)
        return SessionTuning(
            weights={
                "vocalised": (directions["vocalised"] * scale).astype(np.float32),
                "silent": (c.silent_gain * own * scale).astype(np.float32),
            },
            base=np.where(alive, self._base + c.offset_drift * self._offset.at(day), np.log(c.dead_rate)),
            leads=self._leads,
            alive=alive,
            shared=(self._shared * alive).astype(np.float32),
        )


def _motor_drive(positions: np.ndarray, weights: np.ndarray, leads: np.ndarray) -> np.ndarray:
    """(N, E) float32: the log rate that movement adds. Activity at bin n reflects movement at n + lead."""
    velocities = np.gradient(positions, axis=0) * 4  # brings movement to the spread of position
    plain = np.concatenate([positions, velocities], 1)
    drive = np.empty((len(positions), NUM_ELECTRODES), np.float32)
    for index, area in enumerate(AREAS.values()):
        basis = gaussian_filter1d(plain, area.blur, axis=0, mode="nearest") if area.blur else plain
        first = index * AREA_SIZE
        for lead in np.unique(leads[first : first + AREA_SIZE]):
            columns = first + np.flatnonzero(leads[first : first + AREA_SIZE] == lead)
            drive[:, columns] = np.roll(basis, -lead, axis=0) @ weights[:, columns]
    return drive


def _smooth_noise(bins: int, channels: int, width: float, rng: np.random.Generator) -> np.ndarray:
    """(bins, channels) of unit variance, Gaussian-smoothed by `width` bins."""
    noise = gaussian_filter1d(rng.standard_normal((bins, channels), np.float32), width, axis=0, mode="wrap")
    return noise * np.float32(np.sqrt(2 * width * np.sqrt(np.pi)))


def _wander(bins: int, constants: SimulatorConstants, rng: np.random.Generator) -> np.ndarray:
    """(bins, E): slow movement of each electrode's baseline: knots joined by straight lines."""
    knots = np.arange(0, bins + constants.wander_bins, constants.wander_bins)
    values = rng.normal(0, constants.wander, (len(knots), NUM_ELECTRODES)).astype(np.float32)
    place = np.arange(bins) / constants.wander_bins
    left = place.astype(np.int64)
    share = (place - left).astype(np.float32)[:, None]
    return values[left] * (1 - share) + values[left + 1] * share


def record(
    positions: np.ndarray, tuning: SessionTuning, mode: str, constants: SimulatorConstants, rng: np.random.Generator
) -> np.ndarray:
    """Raw features of one block, positions (N, A) -> (N, 512) float32: 256 threshold-crossing counts, then the
    spike-band power of the same electrodes."""
    bins = len(positions)
    drive = _motor_drive(positions, tuning.weights[mode], tuning.leads)
    fast = constants.fast_noise * _smooth_noise(bins, constants.shared_factors, _FAST, rng)
    slow = constants.slow_noise * _smooth_noise(bins, constants.shared_factors, _SLOW, rng)
    drive += np.concatenate([fast, slow], axis=1) @ tuning.shared
    drive += _wander(bins, constants, rng)
    rate = np.exp(np.minimum(drive + tuning.base.astype(np.float32), np.log(constants.max_rate)))
    counts = rng.poisson(rate).astype(np.float32)
    # Power also hears the electrode's neighbours, and its noise goes with the spikes that were counted.
    by_area = drive.reshape(bins, len(AREAS), AREA_SIZE)
    heard = 0.6 * by_area + 0.2 * (np.roll(by_area, 1, axis=2) + np.roll(by_area, -1, axis=2))
    log_power = heard.reshape(bins, NUM_ELECTRODES)
    log_power += constants.power_spike_share * (counts - rate) / np.sqrt(rate)
    log_power += constants.power_noise * rng.standard_normal(log_power.shape, np.float32)
    return np.concatenate([counts, np.exp(constants.power_skew * log_power)], axis=1)


def z_score(features: np.ndarray) -> np.ndarray:
    """Each feature of a block (N, C) to mean 0 and standard deviation 1; a feature that never changes becomes 0."""
    mean = features.mean(axis=0, dtype=np.float64)
    std = features.std(axis=0, dtype=np.float64)
    scale = np.divide(1.0, std, out=np.zeros_like(std), where=std > 0)
    return ((features - mean.astype(np.float32)) * scale.astype(np.float32)).astype(np.float32)
