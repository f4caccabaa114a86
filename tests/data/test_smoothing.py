"""Smoothing against scipy and the published kernel; a batch against single recordings."""

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve1d, gaussian_filter1d

from mode_ssm.config import Smoothing
from mode_ssm.data.smoothing import gaussian_kernel, lookahead_bins, smooth, smooth_batch


def signal(bins: int, features: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((bins, features)).astype(np.float32)


def official_kernel(std: float, size: int = 100) -> np.ndarray:
    """By the route of the published baseline: the response of scipy's filter to an impulse, small taps dropped."""
    impulse = np.zeros(size, np.float32)
    impulse[size // 2] = 1.0
    response = gaussian_filter1d(impulse, std)
    kept = response[response > 0.01]
    return kept / kept.sum()


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
        gaussian_kernel(std, Smoothing.symmetric)


@pytest.mark.parametrize("kind", list(Smoothing))
@pytest.mark.parametrize("std", [1.0, 2.0, 3.5])
def test_a_batch_is_smoothed_as_its_trials_are(kind: Smoothing, std: float) -> None:
    trials = [signal(bins, seed=bins) for bins in (1, 4, 9, 40)]
    padded = torch.zeros(len(trials), 40, 3)
    for row, trial in zip(padded, trials, strict=True):
        row[: len(trial)] = torch.from_numpy(trial)
    smoothed = smooth_batch(padded, kind, std)
    for row, trial in zip(smoothed, trials, strict=True):
        np.testing.assert_allclose(row[: len(trial)].numpy(), smooth(trial, kind, std), atol=2e-6)
