import subprocess
import sys

import numpy as np
import pytest

from mode_ssm.data.rolling_normaliser import LEAST_STD, RollingNormaliser

MEAN, STD = np.array([1.0, -2.0, 100.0]), np.array([0.5, 3.0, 20.0])


def block(bins: int, seed: int = 0) -> np.ndarray:
    """Features whose mean and spread differ from those of training, and drift."""
    drift = np.linspace(0, 2, bins)[:, None]
    noise = np.random.default_rng(seed).standard_normal((bins, 3))
    return ((noise * 1.5 + 0.7 + drift) * STD + MEAN).astype(np.float32)


def by_hand(bins: np.ndarray, window: int) -> np.ndarray:
    """Every bin by the last `window` bins; where there are fewer, training's mean and spread stand for the rest."""
    rows = []
    for t in range(len(bins)):
        recent = bins[max(0, t + 1 - window) : t + 1].astype(np.float64)
        missing = window - len(recent)
        mean = (recent.sum(0) + missing * MEAN) / window
        squares = ((recent - mean) ** 2).sum(0) + missing * (STD**2 + (MEAN - mean) ** 2)
        rows.append((bins[t] - mean) / np.sqrt(squares / window))
    return np.array(rows)


@pytest.mark.parametrize("window", [1, 7, 40, 500])
def test_every_bin_is_normalised_by_its_own_past(window: int) -> None:
    if window == 1:
        np.testing.assert_allclose(RollingNormaliser(MEAN, STD, 1).step(block(20)), 0.0)  # it is its own mean
        return
    found = RollingNormaliser(MEAN, STD, window).step(block(120))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand(block(120), window), atol=1e-5)


@pytest.mark.parametrize("portion", [1, 3, 40, 41, 119])
def test_portions_do_not_matter_to_the_bit(portion: int) -> None:
    bins = block(120)
    whole = RollingNormaliser(MEAN, STD, 40).step(bins)
    live = RollingNormaliser(MEAN, STD, 40)
    parts = [live.step(bins[begin : begin + portion]) for begin in range(0, 120, portion)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_the_future_changes_nothing() -> None:
    bins = block(120)
    changed = bins.copy()
    changed[70:] = 1e4
    one, other = (RollingNormaliser(MEAN, STD, 40).step(x) for x in (bins, changed))
    np.testing.assert_array_equal(one[:70], other[:70])
    assert (one[70:] != other[70:]).any(1).all()


def test_the_first_bins_of_a_block_are_normalised_by_training() -> None:
    first = RollingNormaliser(MEAN, STD, 5000).step(block(3))
    np.testing.assert_allclose(first, (block(3) - MEAN) / STD, rtol=1e-2)


def test_a_long_block_ends_at_its_own_mean_and_spread() -> None:
    bins = (np.random.default_rng(1).standard_normal((6000, 3)) * 7 + 30).astype(np.float32)
    found = RollingNormaliser(MEAN, STD, 1000).step(bins)[2000:]
    np.testing.assert_allclose(found.mean(0), 0.0, atol=0.1)
    np.testing.assert_allclose(found.std(0), 1.0, atol=0.05)


def test_what_only_passes_counts_as_what_is_normalised() -> None:
    bins = block(200)
    whole = RollingNormaliser(MEAN, STD, 40).step(bins)
    late = RollingNormaliser(MEAN, STD, 40)
    late.observe(bins[:130])
    np.testing.assert_allclose(late.step(bins[130:]), whole[130:], rtol=1e-5, atol=1e-6)


def test_reset_begins_a_block() -> None:
    normaliser = RollingNormaliser(MEAN, STD, 40)
    fresh = normaliser.step(block(60))
    normaliser.step(block(60, seed=2))
    normaliser.reset()
    np.testing.assert_array_equal(normaliser.step(block(60)), fresh)


def test_a_channel_that_dies_is_not_blown_up() -> None:
    bins = np.full((300, 3), 5.0, np.float32)
    bins[-1] += STD.astype(np.float32)
    found = RollingNormaliser(MEAN, STD, 100).step(bins)
    assert np.isfinite(found).all()
    assert np.abs(found[250:-1]).max() < 1e-3
    assert np.abs(found[-1]).max() <= 1 / LEAST_STD


def test_no_bins_in_no_bins_out_and_a_window_of_none_is_refused() -> None:
    assert RollingNormaliser(MEAN, STD, 4).step(block(0)).shape == (0, 3)
    with pytest.raises(ValueError, match="at least 1"):
        RollingNormaliser(MEAN, STD, 0)


def test_it_needs_no_torch() -> None:
    code = "import sys, mode_ssm.data.rolling_normaliser; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
