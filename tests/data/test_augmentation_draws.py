"""What is drawn for a trial: bounds, statistics, and that it depends on (seed, epoch, trial) alone."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mode_ssm.config import AugmentConfig
from mode_ssm.data.augmentation_draws import (
    Stream,
    TrialDraws,
    TrialGenerator,
    draw_gain,
    draw_positions,
    draw_silent,
    draw_stretches,
    draw_trial,
    draw_warp,
)

FULL = AugmentConfig(
    random_cut_bins=3,
    time_shift_bins=5,
    time_warp=0.2,
    static_gain=0.1,
    constant_offset_std=0.2,
    white_noise_std=0.5,
    random_walk_std=0.1,
    electrode_dropout=0.1,
    array_dropout=0.3,
    feature_masks=2,
    time_masks=4,
)


def trial(number: int = 0, seed: int = 3, epoch: int = 7) -> TrialGenerator:
    return TrialGenerator(seed, epoch, f"t15.2023.08.11/train/trial_{number:04d}")


def same(one: TrialDraws, other: TrialDraws, name: str) -> bool:
    return np.array_equal(getattr(one, name), getattr(other, name))


FIELDS = tuple(TrialDraws.__slots__)


def test_draws_are_a_pure_function_of_seed_epoch_and_name() -> None:
    first = draw_trial(FULL, trial(), 300, 5, 512)
    draw_trial(FULL, trial(), 200, 5, 512)  # what was drawn before does not matter
    again = draw_trial(FULL, trial(), 300, 5, 512)
    assert all(same(first, again, name) for name in FIELDS)
    for changed in (trial(number=1), trial(seed=4), trial(epoch=8)):
        other = draw_trial(FULL, changed, 300, 5, 512)
        assert not any(same(first, other, name) for name in set(FIELDS) - {"num_bins"})


def test_a_fresh_process_draws_the_same() -> None:
    """Nothing hangs on Python's randomised hashes."""
    code = (
        "from mode_ssm.data.augmentation_draws import *\n"
        "print(TrialGenerator(3, 7, 'a').stream(Stream.time_masks).integers(10**9, size=3).tolist())"
    )
    printed = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    here = TrialGenerator(3, 7, "a").stream(Stream.time_masks).integers(10**9, size=3).tolist()
    assert printed == {f"{here}\n"}


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"static_gain": 0.0}, {"gain"}),
        ({"white_noise_std": 0.0}, {"noise_seed"}),
        ({"random_walk_std": 0.0}, {"walk_seed"}),
        ({"electrode_dropout": 0.0}, {"silent"}),
        ({"constant_offset_std": 0.0}, {"offset"}),
        ({"time_masks": 0}, {"masked"}),
        ({"time_warp": 0.0}, {"positions", "num_bins", "masked"}),
    ],
)
def test_switching_one_kind_off_leaves_the_draws_of_the_others(changes: dict[str, float], moved: set[str]) -> None:
    full, without = (draw_trial(a, trial(), 300, 5, 512) for a in (FULL, replace(FULL, **changes)))
    assert {name for name in FIELDS if not same(full, without, name)} == moved


def test_streams_and_trials_do_not_repeat_each_other() -> None:
    draws = {
        TrialGenerator(seed, epoch, name).stream(stream).random()
        for seed in range(2)
        for epoch in range(2)
        for name in ("a", "b", "1/a")
        for stream in Stream
    }
    assert len(draws) == 2 * 2 * 3 * len(Stream)


def test_random_cut_drops_every_number_of_bins_up_to_the_limit() -> None:
    augment, cuts = AugmentConfig(random_cut_bins=3), set()
    for number in range(100):
        positions = draw_positions(augment, trial(number), 50, 8)
        kept = np.arange(50) if positions is None else positions
        np.testing.assert_array_equal(kept, np.arange(50 - len(kept), 50))
        cuts.add(50 - len(kept))
    assert cuts == {0, 1, 2, 3}


def test_time_shift_begins_up_to_its_bins_later_or_earlier_equally_often() -> None:
    augment, firsts = AugmentConfig(time_shift_bins=5), []
    for number in range(1100):
        positions = draw_positions(augment, trial(number), 50, 8)
        kept = np.arange(50) if positions is None else positions
        np.testing.assert_array_equal(kept, np.arange(kept[0], 50))  # negative ones lie before the recording
        firsts.append(int(kept[0]))
    counts = np.bincount(np.array(firsts) + 5, minlength=11)
    assert len(counts) == 11
    assert counts.min() > 70  # 100 each, a deviation of 9.5
    assert counts.max() < 130


@settings(max_examples=80, deadline=None)
@given(
    bins=st.integers(1, 120),
    cut=st.integers(0, 80),
    shift=st.integers(0, 80),
    warp=st.sampled_from([0.0, 0.4]),
    least=st.integers(0, 120),
    number=st.integers(0, 99),
)
def test_cut_shift_and_warp_together_leave_enough_bins(
    bins: int, cut: int, shift: int, warp: float, least: int, number: int
) -> None:
    augment = AugmentConfig(random_cut_bins=cut, time_shift_bins=shift, time_warp=warp)
    positions = draw_positions(augment, trial(number), bins, least)
    if positions is not None:
        assert len(positions) >= min(bins, max(least, 1))
        assert positions[0] >= -shift
        assert positions[-1] <= bins - 1


@pytest.mark.parametrize("strength", [0.05, 0.2, 0.5])
def test_time_warp_is_monotone_and_keeps_local_speed_in_bounds(strength: float) -> None:
    lengths = set()
    for seed in range(50):
        warped = draw_warp(300, strength, 0, np.random.default_rng(seed))
        assert warped is not None
        speed = np.diff(warped)
        assert warped[0] == 0.0
        assert speed.min() >= 1 - strength - 1e-9
        assert speed.max() <= 1 + strength + 1e-9
        assert np.abs(np.diff(speed)).max() < 0.2 * strength  # smooth
        assert 299 - (1 + strength) <= warped[-1] <= 299.0
        lengths.add(len(warped))
    assert min(lengths) < 300 < max(lengths)


def test_a_trial_that_is_short_for_its_labels_loses_no_bin() -> None:
    shortening = AugmentConfig(random_cut_bins=10, time_shift_bins=10, time_warp=0.3)
    dense = [draw_trial(shortening, trial(n), 80, 10, 4).num_bins for n in range(30)]
    roomy = [draw_trial(shortening, trial(n), 100, 10, 4).num_bins for n in range(30)]
    free = [draw_trial(shortening, trial(n), 100, 0, 4).num_bins for n in range(30)]
    assert min(dense) >= 80
    assert min(roomy) >= 80
    assert min(free) < 80


def test_gains_fill_their_range_evenly() -> None:
    gain = draw_gain(0.1, 20_000, np.random.default_rng(0))
    assert gain.min() >= 0.9
    assert gain.max() <= 1.1
    assert gain.mean() == pytest.approx(1.0, abs=0.002)
    assert gain.std() == pytest.approx(0.2 / np.sqrt(12), rel=0.02)


def test_offsets_have_their_spread_and_differ_between_features() -> None:
    offset = draw_trial(AugmentConfig(constant_offset_std=0.2), trial(), 20, 0, 20_000).offset
    assert offset is not None
    assert offset.std() == pytest.approx(0.2, rel=0.02)
    assert abs(offset.mean()) < 0.01
    assert abs(np.corrcoef(offset[1:], offset[:-1])[0, 1]) < 0.03


def test_stretches_are_at_most_their_fraction_and_anywhere() -> None:
    longest, covered = 0, np.zeros(100)
    for seed in range(600):
        inside = np.flatnonzero(draw_stretches(100, 1, 0.05, np.random.default_rng(seed)))
        if len(inside):
            assert np.ptp(inside) + 1 == len(inside)
        longest = max(longest, len(inside))
        covered[inside] += 1
    assert longest == 5
    assert covered[:10].any()
    assert covered[-10:].any()
    assert covered[10:90].mean() == pytest.approx(600 * 2.5 / 98, rel=0.1)


def test_many_stretches_cover_about_what_chance_says() -> None:
    covered = [draw_stretches(1000, 20, 0.05, np.random.default_rng(s)).mean() for s in range(50)]
    # 20 stretches of 25 bins on average out of 1000, overlapping at random
    assert np.mean(covered) == pytest.approx(1 - np.exp(-0.5), abs=0.03)


def silent_features(augment: AugmentConfig, trials: int) -> np.ndarray:
    drawn = [draw_silent(augment, trial(number), 512) for number in range(trials)]
    return np.stack([silent for silent in drawn if silent is not None])


def test_electrodes_fall_silent_with_both_their_features_as_often_as_asked() -> None:
    silent = silent_features(AugmentConfig(electrode_dropout=0.1), 200)
    np.testing.assert_array_equal(silent[:, :256], silent[:, 256:])
    assert silent.mean() == pytest.approx(0.1, abs=0.005)
    assert np.abs(np.corrcoef(silent[:, :8].T) - np.eye(8)).max() < 0.3


def test_whole_arrays_fall_silent_one_at_a_time_as_often_as_asked() -> None:
    silent = silent_features(AugmentConfig(array_dropout=0.3), 1000)
    by_array = silent.reshape(1000, 2, 4, 64)
    np.testing.assert_array_equal(by_array, np.broadcast_to(by_array[:, :1, :, :1], by_array.shape))
    lost = by_array[:, 0, :, 0]
    assert set(lost.sum(1)) == {0, 1}
    assert lost.any(1).mean() == pytest.approx(0.3, abs=0.05)
    np.testing.assert_allclose(lost.mean(0), 0.075, atol=0.035)


def test_feature_masks_silence_bands_of_neighbours() -> None:
    silent = silent_features(AugmentConfig(feature_masks=1, feature_mask_max_fraction=0.05), 300)
    for row in silent:
        band = np.flatnonzero(row)
        assert len(band) <= 25
        assert len(band) == 0 or np.ptp(band) + 1 == len(band)
    assert silent.sum(1).max() == 25


def test_nothing_is_drawn_for_what_is_off() -> None:
    assert draw_silent(AugmentConfig(), trial(), 512) is None
    nothing = draw_trial(AugmentConfig(), trial(), 100, 5, 512)
    assert {name for name in FIELDS if getattr(nothing, name) is not None} == {"num_bins"}
