"""From phonemes to smooth articulator trajectories.

Shapes: N bins (20 ms) of one block, A articulators, U phonemes of a trial.
Place, manner and vowel targets follow the usual articulatory descriptions of American English phonemes; the numbers
between -1 and 1 are this project's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

from mode_ssm.vocab import CLASS_ID, NUM_CLASSES, PHONEMES, SIL

# Name and smoothing (standard deviation in bins): heavy, slow articulators blend more neighbours than the quick tip of
# the tongue.
ARTICULATORS = {
    "lips": 2.0, "labiodental": 2.0, "dental": 1.7, "alveolar": 1.7, "postalveolar": 2.2, "palatal": 2.5,
    "velar": 2.5, "glottal": 2.0, "closure": 1.5, "frication": 1.7, "velum": 3.5, "lateral": 2.2, "rhotic": 3.0,
    "voicing": 1.6, "breath": 1.8, "jaw": 3.2, "height": 2.8, "front": 3.2, "rounding": 3.6, "tense": 2.2,
    "speech": 3.0,
}  # fmt: skip
NUM_ARTICULATORS = len(ARTICULATORS)
VOICING = list(ARTICULATORS).index("voicing")

_STOP_RELEASE = "closure 0, frication .4"
# Targets of the first half of a phoneme; after ">" what changes in its second half. `speech` is 1 for all of them.
_TARGETS = {
    "AA": "voicing 1, jaw 1, height -1, front -.6, tense .6",
    "AE": "voicing 1, jaw .9, height -.8, front .9, tense -.2",
    "AH": "voicing 1, jaw .3, height -.1, front -.1, tense -.8",
    "AO": "voicing 1, jaw .6, height -.5, front -.9, rounding .7, tense .5",
    "AW": "voicing 1, jaw 1, height -1, front -.1 > jaw .2, height .6, front -.8, rounding .9",
    "AY": "voicing 1, jaw 1, height -1, front -.3 > jaw .1, height .7, front .8",
    "EH": "voicing 1, jaw .5, height -.3, front .7, tense -.6",
    "ER": "voicing 1, jaw .2, height .2, rounding .3, rhotic 1",
    "EY": "voicing 1, jaw .3, height .2, front .8, tense .6 > jaw .1, height .8, front 1",
    "IH": "voicing 1, jaw .1, height .6, front .7, tense -.7",
    "IY": "voicing 1, height 1, front 1, palatal .3, tense 1",
    "OW": "voicing 1, jaw .4, front -.8, rounding .7, tense .5 > jaw .1, height .7, rounding 1",
    "OY": "voicing 1, jaw .5, height -.3, front -.8, rounding .9 > jaw .1, height .7, front .8, rounding 0",
    "UH": "voicing 1, jaw .1, height .6, front -.6, rounding .5, tense -.7",
    "UW": "voicing 1, height 1, front -.8, rounding 1, tense 1",
    "P": f"lips 1, closure 1, breath 1 > {_STOP_RELEASE}",
    "B": f"lips 1, closure 1, voicing 1 > {_STOP_RELEASE}",
    "T": f"alveolar 1, closure 1, breath 1 > {_STOP_RELEASE}",
    "D": f"alveolar 1, closure 1, voicing 1 > {_STOP_RELEASE}",
    "K": f"velar 1, closure 1, breath 1, height .5 > {_STOP_RELEASE}",
    "G": f"velar 1, closure 1, voicing 1, height .5 > {_STOP_RELEASE}",
    "CH": "postalveolar 1, closure 1, breath 1, rounding .3 > closure 0, frication 1",
    "JH": "postalveolar 1, closure 1, voicing 1, rounding .3 > closure 0, frication 1",
    "F": "labiodental 1, frication 1, breath .8",
    "V": "labiodental 1, frication .8, voicing 1",
    "TH": "dental 1, frication .8, breath .8",
    "DH": "dental 1, frication .6, voicing 1",
    "S": "alveolar 1, frication 1, breath .8, tense .5",
    "Z": "alveolar 1, frication 1, voicing 1, tense .3",
    "SH": "postalveolar 1, frication 1, breath .8, rounding .4",
    "ZH": "postalveolar 1, frication 1, voicing 1, rounding .4",
    "HH": "glottal 1, frication .5, breath 1",
    "M": "lips 1, closure .8, velum 1, voicing 1",
    "N": "alveolar 1, closure .8, velum 1, voicing 1",
    "NG": "velar 1, closure .8, velum 1, voicing 1, height .5",
    "L": "alveolar .7, lateral 1, voicing 1",
    "R": "postalveolar .3, rhotic 1, voicing 1, rounding .4",
    "W": "lips .4, velar .5, voicing 1, height .7, front -.7, rounding 1",
    "Y": "palatal 1, voicing 1, height .9, front .9",
}
_LONG, _SHORT = 11.5, 7.0  # mean bins of a diphthong or tense vowel, and of a stop or flap-like consonant
_MEAN_BINS = {
    **dict.fromkeys(PHONEMES, 8.5),
    **dict.fromkeys(["AA", "AE", "AO", "AW", "AY", "ER", "EY", "IY", "OW", "OY", "UW"], _LONG),
    **dict.fromkeys(["B", "D", "G", "P", "T", "K", "DH", "HH", "Y"], _SHORT),
    **dict.fromkeys(["S", "SH", "CH", "JH"], 10.0),
    "SIL": 7.0,
}


def _half_targets() -> np.ndarray:
    """(2, NUM_CLASSES, A): targets of both halves; blank and SIL rest at zero.

    Columns are divided by the square root of their spread, so that a gesture few phonemes use still counts.
    """
    columns = {name: index for index, name in enumerate(ARTICULATORS)}
    table = np.zeros((2, NUM_CLASSES, NUM_ARTICULATORS), np.float32)
    for phoneme, halves in _TARGETS.items():
        row = CLASS_ID[phoneme]
        table[:, row, columns["speech"]] = 1
        for half, part in enumerate(halves.split(">")):
            for assignment in part.split(","):
                name, value = assignment.split()
                table[half:, row, columns[name]] = float(value)
    return table / np.sqrt(table.std(axis=(0, 1)))


HALF_TARGETS = _half_targets()
MEAN_BINS = np.array([_MEAN_BINS.get(name, 0.0) for name in CLASS_ID], np.float64)
_SMOOTHING = np.array(list(ARTICULATORS.values()))


@dataclass(frozen=True, slots=True)
class SpokenTrial:
    """When a trial's phonemes are spoken. starts (U,): first bin of each phoneme; the last one ends at `end`."""

    phonemes: np.ndarray
    starts: np.ndarray
    end: int
    num_bins: int


def time_phonemes(
    phonemes: Sequence[int],
    *,
    pace: float,
    pause: float,
    spread: float,
    lead: int,
    trail: int,
    rng: np.random.Generator,
) -> SpokenTrial:
    """Draw durations. pace: multiplies the mean durations; pause: multiplies those of SIL once more; spread: their
    coefficient of variation; lead, trail: bins of rest before the first phoneme and after the last word's SIL."""
    classes = np.asarray(phonemes)
    durations = MEAN_BINS[classes] * pace * rng.gamma(spread**-2, spread**2, len(classes))
    durations[classes == SIL] *= pause
    bins = np.maximum(np.rint(durations), 3).astype(np.int64)
    ends = lead + np.cumsum(bins)
    return SpokenTrial(classes, ends - bins, int(ends[-1]), int(ends[-1]) + trail)


def trajectories(
    trials: Sequence[SpokenTrial], *, gap: int, token_spread: float, coarticulation: float, rng: np.random.Generator
) -> np.ndarray:
    """Articulator positions of trials laid end to end with `gap` bins of rest around each.

    token_spread: how far (standard deviation) each spoken phoneme misses its target, which no decoder can undo;
    coarticulation: multiplies the smoothing of all articulators.

    Returns: (N, A) float32, N = sum(num_bins) + gap * (len(trials) + 1).
    """
    rows: list[np.ndarray] = []
    rest = np.zeros(NUM_ARTICULATORS, np.float32)
    lengths: list[int] = []
    for trial in trials:
        ends = np.append(trial.starts[1:], trial.end)
        bins = ends - trial.starts
        missed = rng.normal(0, token_spread, (len(bins), NUM_ARTICULATORS)).astype(np.float32)
        missed[trial.phonemes == SIL] = 0
        halves = HALF_TARGETS[:, trial.phonemes] + missed  # (2, U, A)
        rows += [rest[None], np.stack([halves[0], halves[1]], 1).reshape(-1, NUM_ARTICULATORS), rest[None]]
        lengths += [gap + int(trial.starts[0])]
        lengths += np.stack([(bins + 1) // 2, bins // 2], 1).reshape(-1).tolist()
        lengths += [trial.num_bins - trial.end]
    rows.append(rest[None])
    lengths.append(gap)
    positions = np.repeat(np.concatenate(rows), lengths, axis=0)
    for column, width in enumerate(_SMOOTHING * coarticulation):
        positions[:, column] = gaussian_filter1d(positions[:, column], width, mode="nearest")
    return positions
