import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mode_ssm.data.statistics import FeatureStatistics, RunningCovariance, merge, merge_blocks


def test_statistics_of_a_hand_worked_case() -> None:
    statistics = FeatureStatistics.of(np.array([[0.0, 10.0], [2.0, 10.0], [4.0, 13.0]], np.float32))
    assert statistics.count == 3
    np.testing.assert_allclose(statistics.mean, [2.0, 11.0])
    np.testing.assert_allclose(statistics.std, [np.sqrt(8 / 3), np.sqrt(2.0)])


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_merging_parts_equals_the_statistics_of_the_whole(lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.normal(rng.normal() * 100, 3.0, size=(n, 3)).astype(np.float32) for n in lengths]
    merged = merge(FeatureStatistics.of(part) for part in parts)
    whole = np.concatenate(parts).astype(np.float64)
    assert merged.count == len(whole)
    np.testing.assert_allclose(merged.mean, whole.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(merged.std, whole.std(axis=0), rtol=1e-9, atol=1e-9)


def test_a_large_offset_does_not_swallow_the_spread() -> None:
    features = (1e4 + np.tile([[-0.5], [0.5]], (500, 1))).astype(np.float32)
    merged = merge([FeatureStatistics.of(features), FeatureStatistics.of(features)])
    np.testing.assert_allclose(merged.std, [0.5], rtol=1e-9)


def test_merging_leaves_its_parts_alone() -> None:
    first = FeatureStatistics.of(np.array([[1.0], [3.0]], np.float32))
    merge([first, FeatureStatistics.of(np.array([[10.0]], np.float32))])
    assert (first.count, first.mean.tolist(), first.std.tolist()) == (2, [2.0], [1.0])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "cannot merge an empty list of feature statistics"),
        ([np.ones((2, 3)), np.ones((2, 4))], "cannot merge statistics of 4 features with those of 3"),
    ],
)
def test_what_cannot_be_merged_says_so(parts: list[np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge([FeatureStatistics.of(part) for part in parts])


def test_statistics_of_no_bins_are_refused() -> None:
    with pytest.raises(ValueError, match=r"T > 0, got \(0, 5\)"):
        FeatureStatistics.of(np.zeros((0, 5), np.float32))


def test_a_session_merged_from_blocks_is_that_merged_from_trials_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    trials = [(int(block), FeatureStatistics.of(rng.normal(3.0, 2.0, (7, 4)))) for block in [5, 2, 5, 9, 2, 5]]
    blocks = [(block, merge(part for other, part in trials if other == block)) for block in (9, 5, 2)]
    by_trial, by_block = merge_blocks(trials), merge_blocks(blocks)
    np.testing.assert_array_equal(by_trial.mean, by_block.mean)
    np.testing.assert_array_equal(by_trial.std, by_block.std)
    assert by_trial.count == by_block.count == 42


def test_the_covariance_of_trials_is_that_of_the_whole_also_far_from_zero() -> None:
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(5, 5))
    parts = [(50.0 * k + rng.normal(size=(n, 5)) @ mixing).astype(np.float32) for k, n in enumerate((1, 30, 12))]
    running = RunningCovariance()
    for part in parts:
        running.add(part)
    whole = np.concatenate(parts).astype(np.float64)
    np.testing.assert_allclose(running.covariance(), np.cov(whole, rowvar=False, bias=True), rtol=1e-5)
