from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import convolve1d, gaussian_filter1d

from mode_ssm.config import AugmentConfig, Smoothing
from mode_ssm.data.batch import Trial, TrialInfo
from mode_ssm.data.transforms import (
    EvalTransform,
    TrainTransform,
    constant_offset,
    gaussian_kernel,
    lookahead_bins,
    random_cut,
    smooth,
    time_masks,
    time_warp,
    trial_generator,
    white_noise,
)

FULL = AugmentConfig(
    white_noise_std=0.5,
    constant_offset_std=0.2,
    random_cut_bins=3,
    time_masks=4,
    time_mask_max_fraction=0.1,
    time_warp=0.2,
)


def signal(bins: int, features: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((bins, features)).astype(np.float32)


def official_kernel(std: float, size: int = 100) -> np.ndarray:
    """By the route of the published baseline: the response of scipy's filter to an impulse, small taps dropped."""
    impulse = np.zeros(size, np.float32)
    impulse[size // 2] = 1.0
    response = gaussian_filter1d(impulse, std)
    kept = response[response > 0.01]
    return kept / kept.sum()


@pytest.fixture
def trial(make_info: Callable[..., TrialInfo]) -> Trial:
    return Trial(info=make_info(num_bins=200, num_phonemes=5), features=signal(200), phonemes=np.arange(1, 6))


@pytest.mark.parametrize("std", [0.7, 1.0, 2.0, 3.5, 5.0])
def test_symmetric_kernel_is_the_official_one(std: float) -> None:
    np.testing.assert_allclose(gaussian_kernel(std, Smoothing.symmetric), official_kernel(std), rtol=1e-5)


def test_kernel_of_two_bins_has_nine_taps_and_its_causal_half_five() -> None:
    symmetric, causal = gaussian_kernel(2.0, Smoothing.symmetric), gaussian_kernel(2.0, Smoothing.causal)
    assert (len(symmetric), len(causal)) == (9, 5)
    np.testing.assert_allclose(causal, symmetric[:5] / symmetric[:5].sum(), rtol=1e-6)
    assert symmetric.sum() == pytest.approx(1.0, abs=1e-6)
    assert causal.sum() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("bins", [1, 2, 4, 5, 8, 9, 10, 57])
def test_symmetric_smoothing_agrees_with_scipy_zero_padding_included(bins: int) -> None:
    features = signal(bins)
    expected = convolve1d(features.astype(np.float64), official_kernel(2.0), axis=0, mode="constant", cval=0.0)
    np.testing.assert_allclose(smooth(features, Smoothing.symmetric, 2.0), expected, atol=2e-6)


def test_causal_smoothing_of_an_impulse_falls_off_into_the_future_of_the_impulse() -> None:
    features = np.zeros((12, 1), np.float32)
    features[3] = 1.0
    smoothed = smooth(features, Smoothing.causal, 2.0)[:, 0]
    kernel = gaussian_kernel(2.0, Smoothing.causal)
    np.testing.assert_allclose(smoothed[3:8], kernel[::-1], rtol=1e-6)
    assert not smoothed[:3].any()
    assert not smoothed[8:].any()


@pytest.mark.parametrize("kind", list(Smoothing))
def test_a_change_reaches_no_further_back_than_the_lookahead(kind: Smoothing) -> None:
    features = signal(60)
    changed = features.copy()
    changed[30] += 1.0
    moved = np.flatnonzero((smooth(features, kind, 2.0) != smooth(changed, kind, 2.0)).any(axis=1))
    assert moved[0] == 30 - lookahead_bins(kind, 2.0)
    assert lookahead_bins(kind, 2.0) == {"none": 0, "symmetric": 4, "causal": 0}[kind.value]


def test_a_constant_stays_what_it_is_away_from_the_edges() -> None:
    for kind in (Smoothing.symmetric, Smoothing.causal):
        smoothed = smooth(np.full((40, 2), 3.0, np.float32), kind, 2.0)
        np.testing.assert_allclose(smoothed[8:-8], 3.0, rtol=1e-6)


@pytest.mark.parametrize(("std", "message"), [(0.0, "must be positive"), (-1.0, "must be positive"), (60.0, "no tap")])
def test_impossible_smoothing_is_refused(std: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvalTransform(Smoothing.symmetric, std)


def test_white_noise_has_its_spread_and_is_independent_over_bins_and_features() -> None:
    noise = white_noise(np.full((4000, 4), 2.0, np.float32), 0.5, np.random.default_rng(0)) - 2.0
    assert noise.dtype == np.float32
    assert noise.std() == pytest.approx(0.5, rel=0.02)
    assert abs(noise.mean()) < 0.02
    assert np.abs(np.corrcoef(noise.T) - np.eye(4)).max() < 0.06
    assert abs(np.corrcoef(noise[1:, 0], noise[:-1, 0])[0, 1]) < 0.06


def test_constant_offset_is_the_same_in_every_bin_and_differs_between_features() -> None:
    features = signal(20, 500)
    offset = constant_offset(features, 0.2, np.random.default_rng(0)) - features
    np.testing.assert_allclose(offset - offset[0], 0.0, atol=1e-6)
    assert offset[0].std() == pytest.approx(0.2, rel=0.1)


def test_random_cut_drops_every_number_of_bins_up_to_the_limit() -> None:
    features = signal(50)
    rng = np.random.default_rng(0)
    cuts = set()
    for _ in range(100):
        cut = random_cut(features, 3, 8, rng)
        np.testing.assert_array_equal(cut, features[50 - len(cut) :])
        cuts.add(50 - len(cut))
    assert cuts == {0, 1, 2, 3}


@settings(max_examples=60, deadline=None)
@given(bins=st.integers(1, 60), most=st.integers(0, 80), least=st.integers(0, 60), seed=st.integers(0, 99))
def test_random_cut_leaves_enough_bins_or_does_nothing(bins: int, most: int, least: int, seed: int) -> None:
    kept = len(random_cut(signal(bins), most, least, np.random.default_rng(seed)))
    assert kept >= min(bins, max(least, 1))
    assert kept >= bins - most


def test_time_masks_zero_stretches_of_at_most_their_fraction_and_touch_nothing_else() -> None:
    features = np.ones((100, 2), np.float32)
    longest = 0
    for seed in range(200):
        masked = time_masks(features, 1, 0.05, np.random.default_rng(seed))
        zero = np.flatnonzero((masked == 0).all(axis=1))
        assert (masked[np.setdiff1d(np.arange(100), zero)] == 1).all()
        if len(zero):
            assert np.ptp(zero) + 1 == len(zero)
        longest = max(longest, len(zero))
    assert longest == 5
    assert (features == 1).all()


def test_many_masks_cover_about_what_chance_says() -> None:
    features = np.ones((1000, 1), np.float32)
    covered = [1 - time_masks(features, 20, 0.05, np.random.default_rng(s)).mean() for s in range(50)]
    # 20 masks of 25 bins on average out of 1000, overlapping at random
    assert np.mean(covered) == pytest.approx(1 - np.exp(-0.5), abs=0.03)


@pytest.mark.parametrize("strength", [0.05, 0.2, 0.5])
def test_time_warp_is_monotone_and_keeps_local_speed_in_bounds(strength: float) -> None:
    ramp = np.arange(300, dtype=np.float32)[:, None]
    lengths = set()
    for seed in range(50):
        warped = time_warp(ramp, strength, 0, np.random.default_rng(seed))
        speed = np.diff(warped[:, 0])
        assert warped[0, 0] == 0.0
        assert speed.min() >= 1 - strength - 1e-4
        assert speed.max() <= 1 + strength + 1e-4
        assert np.abs(np.diff(speed)).max() < 0.2 * strength  # smooth
        assert 299 - (1 + strength) <= warped[-1, 0] <= 299.0
        lengths.add(len(warped))
    assert min(lengths) < 300 < max(lengths)


def test_time_warp_interpolates_linearly() -> None:
    features = signal(80, 2)
    ramp = np.arange(80, dtype=np.float32)[:, None]
    position = time_warp(ramp, 0.3, 0, np.random.default_rng(5))[:, 0]
    warped = time_warp(features, 0.3, 0, np.random.default_rng(5))
    for column in range(2):
        np.testing.assert_allclose(
            warped[:, column], np.interp(position, np.arange(80), features[:, column]), atol=1e-4
        )


@settings(max_examples=60, deadline=None)
@given(bins=st.integers(1, 120), least=st.integers(0, 120), seed=st.integers(0, 99))
def test_time_warp_leaves_enough_bins_or_does_nothing(bins: int, least: int, seed: int) -> None:
    warped = time_warp(signal(bins), 0.4, least, np.random.default_rng(seed))
    assert len(warped) >= min(bins, max(least, 1))


def test_training_features_are_a_pure_function_of_seed_epoch_and_name(
    trial: Trial, make_info: Callable[..., TrialInfo]
) -> None:
    transform = TrainTransform(FULL, Smoothing.symmetric, 2.0, seed=3)
    first = transform(trial, 7)
    transform(trial, 8)  # what was drawn before does not matter
    np.testing.assert_array_equal(first, TrainTransform(FULL, Smoothing.symmetric, 2.0, seed=3)(trial, 7))
    other_name = Trial(info=make_info(1), features=trial.features, phonemes=trial.phonemes)
    others = [
        transform(trial, 8),
        TrainTransform(FULL, Smoothing.symmetric, 2.0, seed=4)(trial, 7),
        transform(other_name, 7),
    ]
    for other in others:
        assert first.shape != other.shape or not np.allclose(first, other)


def test_random_numbers_of_trials_do_not_repeat_each_other() -> None:
    draws = {trial_generator(s, e, n).random() for s in range(3) for e in range(3) for n in ("a", "b", "1/a")}
    assert len(draws) == 27
    assert trial_generator(1, 2, "a").random() == trial_generator(1, 2, "a").random()


def test_raw_features_are_never_changed(trial: Trial) -> None:
    before = trial.features.copy()
    TrainTransform(FULL, Smoothing.causal, 2.0, seed=0)(trial, 0)
    EvalTransform(Smoothing.symmetric, 2.0)(trial, 0)
    np.testing.assert_array_equal(trial.features, before)


def test_without_augmentation_training_and_evaluation_see_the_same(trial: Trial) -> None:
    for smoothing in Smoothing:
        train = TrainTransform(AugmentConfig(), smoothing, 2.0, seed=0)(trial, 5)
        np.testing.assert_array_equal(train, EvalTransform(smoothing, 2.0)(trial))
        np.testing.assert_array_equal(train, smooth(trial.features, smoothing, 2.0))


def test_noise_is_smoothed_and_masks_are_not(trial: Trial) -> None:
    noisy = TrainTransform(AugmentConfig(white_noise_std=1.0), Smoothing.symmetric, 2.0, seed=0)(trial, 0)
    noise = noisy - smooth(trial.features, Smoothing.symmetric, 2.0)
    kernel = gaussian_kernel(2.0, Smoothing.symmetric)
    assert noise.std() == pytest.approx(np.sqrt((kernel**2).sum()), rel=0.2)
    masking = AugmentConfig(time_masks=8, time_mask_max_fraction=0.1)
    masked = TrainTransform(masking, Smoothing.symmetric, 2.0, seed=0)(trial, 0)
    zero = (masked == 0).all(axis=1)
    assert zero.any()
    np.testing.assert_array_equal(masked[~zero], smooth(trial.features, Smoothing.symmetric, 2.0)[~zero])


def test_a_trial_that_is_short_for_its_labels_loses_no_bin(make_info: Callable[..., TrialInfo]) -> None:
    shortening = AugmentConfig(random_cut_bins=10, time_warp=0.3)
    transform = TrainTransform(shortening, Smoothing.none, 2.0, seed=0)
    for number in range(30):
        dense = Trial(info=make_info(number), features=signal(80), phonemes=np.ones(10, np.int64))
        assert len(transform(dense, 0)) >= 80
        roomy = Trial(info=make_info(number), features=signal(100), phonemes=np.ones(10, np.int64))
        assert len(transform(roomy, 0)) >= 80
    lengths = [len(transform(Trial(info=make_info(n), features=signal(100), phonemes=None), 0)) for n in range(30)]
    assert min(lengths) < 80


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (AugmentConfig(time_warp=1.0), r"data.augment.time_warp=1.0 must lie in \[0, 1\)"),
        (AugmentConfig(time_mask_max_fraction=1.5), r"data.augment.time_mask_max_fraction=1.5 must lie in \[0, 1\]"),
        (AugmentConfig(white_noise_std=-1.0), "data.augment.white_noise_std=-1.0 must not be negative"),
        (AugmentConfig(random_cut_bins=-2), "data.augment.random_cut_bins=-2 must not be negative"),
    ],
)
def test_impossible_augmentation_names_its_key(augment: AugmentConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainTransform(augment, Smoothing.none, 2.0, seed=0)
