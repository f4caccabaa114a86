"""The numbers that set how hard the simulated recordings are; calibrated as docs/simulator.md says."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatorConstants:
    """Rates are counts in a bin (20 ms); log rates are natural."""

    # speaking
    usual_pronunciation: float = 0.75  # chance that a word takes its first pronunciation
    slowness: float = 1.0  # multiplies every phoneme's duration; 1 is read speech, about 65 words a minute with rests
    pause: float = 1.0  # multiplies the pauses between words once more
    pace_spread: float = 0.08  # standard deviation of log pace, once a session and once a trial
    duration_spread: float = 0.3  # coefficient of variation of one phoneme's duration
    rest_before: tuple[int, int] = (14, 26)  # bins before the first phoneme, least and most
    rest_after: tuple[int, int] = (8, 18)  # bins after the last word's SIL
    coarticulation: float = 2.3  # multiplies every articulator's smoothing; more blends neighbours
    token_spread: float = 0.08  # standard deviation of a spoken phoneme's missed target; more is harder for any decoder

    # electrodes
    mean_rate: float = 0.4  # median over electrodes of the resting rate: 20 crossings a second
    max_rate: float = 6.0  # a count in a bin saturates here: 300 a second
    tuning: float = 1.0  # spread of the log rate that movement causes, on an average electrode; the signal's strength
    shared_factors: int = 8  # of each of two speeds; noise that many electrodes share
    fast_noise: float = 0.2  # spread of log rate that the quick half causes; as fast as speech, so nothing removes it
    slow_noise: float = 0.5  # the same of the slow half; a decoder that sees seconds of context can subtract it
    power_noise: float = 1.0  # spread of the power's own noise, in log units before `power_skew`
    power_spike_share: float = 0.25  # how much a spike too many also raises the power
    power_skew: float = 0.5  # exponent of the power: its tail is longer above

    # speaking modes
    silent_gain: float = 0.75  # of the tuning in silent blocks against vocalised ones
    silent_turn: float = 0.5  # sine of the angle by which silent speech leaves the vocalised subspace

    # drift
    tuning_days: float = 250.0  # time constant of the rotation of tuning, and of gains and offsets
    rotating_share: float = 0.8  # share of the tuning's variance that rotates; the rest stays for life
    gain_drift: float = 0.2  # spread of an electrode's log gain over its life
    offset_drift: float = 0.3  # spread of an electrode's log resting rate over its life
    electrode_life_days: float = 2500.0  # mean life; a dead electrode keeps only `dead_rate`
    dead_rate: float = 0.05
    wander: float = 0.15  # spread of the log rate's slow movement within a block
    wander_bins: int = 1500  # bins between the knots of that movement: 30 s


# Attempted speech as the real participant's: about 30 words a minute. Slow because the movements are slow, so that the
# smoothing grows with the durations.
ATTEMPTED_SPEECH = SimulatorConstants(
    slowness=2.2,
    pause=1.5,
    coarticulation=5.0,
    tuning=0.65,
    rest_before=(30, 70),
    rest_after=(20, 50),
)
