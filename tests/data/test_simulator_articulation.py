from itertools import combinations

import numpy as np
import pytest

from mode_ssm.data.simulator_articulation import (
    ARTICULATORS,
    HALF_TARGETS,
    SpokenTrial,
    time_phonemes,
    trajectories,
)
from mode_ssm.vocab import BLANK, CLASS_ID, PHONEMES, SIL, phonemes_to_ids

COLUMN = {name: index for index, name in enumerate(ARTICULATORS)}


def test_no_two_phonemes_have_the_same_gestures_and_rest_has_none() -> None:
    for first, second in combinations(PHONEMES, 2):
        assert np.abs(HALF_TARGETS[:, CLASS_ID[first]] - HALF_TARGETS[:, CLASS_ID[second]]).max() > 0.1
    assert not HALF_TARGETS[:, [BLANK, SIL]].any()


@pytest.mark.parametrize(("voiced", "voiceless"), [("B", "P"), ("D", "T"), ("G", "K"), ("Z", "S"), ("V", "F")])
def test_voiced_and_voiceless_partners_share_their_place(voiced: str, voiceless: str) -> None:
    difference = np.abs(HALF_TARGETS[0, CLASS_ID[voiced]] - HALF_TARGETS[0, CLASS_ID[voiceless]])
    places = [COLUMN[name] for name in ("lips", "labiodental", "dental", "alveolar", "postalveolar", "velar")]
    assert not difference[places].any()
    assert difference[COLUMN["voicing"]] > 0.5


def test_diphthongs_move_and_plain_vowels_hold() -> None:
    start, end = HALF_TARGETS[:, CLASS_ID["AY"]]
    assert end[COLUMN["front"]] > start[COLUMN["front"]] + 0.5
    assert np.array_equal(*HALF_TARGETS[:, CLASS_ID["IY"]])


def test_drawn_times_are_contiguous_and_of_the_stated_mean() -> None:
    rng = np.random.default_rng(0)
    trial = time_phonemes(phonemes_to_ids(["M"]) * 2000, pace=1.2, pause=9.0, spread=0.3, lead=10, trail=5, rng=rng)
    assert trial.starts[0] == 10
    assert trial.num_bins == trial.end + 5
    durations = np.diff(np.append(trial.starts, trial.end))
    assert durations.mean() == pytest.approx(8.5 * 1.2, rel=0.03)
    assert durations.std() / durations.mean() == pytest.approx(0.3, rel=0.15)


def test_pauses_grow_by_their_own_factor_and_phonemes_do_not() -> None:
    plain, paused = (
        time_phonemes([CLASS_ID["M"], SIL] * 500, pace=1, pause=pause, spread=0.1, lead=0, trail=0,
                      rng=np.random.default_rng(0))
        for pause in (1.0, 3.0)
    )  # fmt: skip
    (_, plain_pauses), (_, long_pauses) = (
        (bins[::2], bins[1::2]) for bins in (np.diff(np.append(t.starts, t.end)) for t in (plain, paused))
    )
    assert plain_pauses.mean() == pytest.approx(7, rel=0.02)
    assert long_pauses.mean() == pytest.approx(21, rel=0.02)
    assert np.array_equal(np.diff(plain.starts)[::2], np.diff(paused.starts)[::2])


def trial_of(phonemes: list[str], bins: int) -> SpokenTrial:
    ids = np.array(phonemes_to_ids(phonemes))
    starts = 10 + bins * np.arange(len(ids))
    return SpokenTrial(ids, starts, int(starts[-1]) + bins, int(starts[-1]) + bins + 10)


def test_a_long_phoneme_reaches_its_target_and_rest_is_zero() -> None:
    positions = trajectories(
        [trial_of(["M"], 60)], gap=20, token_spread=0.0, coarticulation=1.0, rng=np.random.default_rng(0)
    )
    assert positions.shape == (20 + 80 + 20, len(ARTICULATORS))
    np.testing.assert_allclose(positions[20 + 10 + 30], HALF_TARGETS[1, CLASS_ID["M"]], atol=1e-4)
    np.testing.assert_allclose(positions[[0, -1]], 0, atol=1e-4)


def test_neighbours_colour_a_short_phoneme_and_more_so_with_more_coarticulation() -> None:
    def front_of_k(vowel: str, coarticulation: float) -> float:
        positions = trajectories(
            [trial_of([vowel, "K", vowel], 8)],
            gap=20,
            token_spread=0.0,
            coarticulation=coarticulation,
            rng=np.random.default_rng(0),
        )
        return float(positions[20 + 10 + 12, COLUMN["front"]])

    assert front_of_k("IY", 1.0) > 0.1 > -0.1 > front_of_k("UW", 1.0)
    assert front_of_k("IY", 1.5) > front_of_k("IY", 1.0)


def test_one_trial_does_not_reach_into_the_next() -> None:
    short = trial_of(["M"], 20)
    both = trajectories(
        [short, trial_of(["IY"], 20)], gap=20, token_spread=0.0, coarticulation=1.0, rng=np.random.default_rng(0)
    )
    alone = trajectories([short], gap=20, token_spread=0.0, coarticulation=1.0, rng=np.random.default_rng(0))
    np.testing.assert_allclose(both[: 20 + short.num_bins], alone[: 20 + short.num_bins], atol=1e-6)
