"""Mean error rates over seeds and their intervals against slow draws, and the case of one seed."""

import numpy as np
import pytest

from mode_ssm.metrics import bootstrap_interval, paired_bootstrap_difference
from mode_ssm.metrics_seeds import Resampling

RNG = np.random.default_rng(5)
LENGTHS = RNG.integers(1, 9, 12)
EDITS = RNG.binomial(LENGTHS, 0.4, (3, 12))  # (S, N)
OTHER = RNG.binomial(LENGTHS, 0.3, (2, 12))


def slow_rate(edits: np.ndarray, trials: list[int], seeds: list[int]) -> float:
    """Mean over drawn seeds of the rate over drawn trials."""
    rates = []
    for seed in seeds:
        wrong = total = 0
        for trial in trials:
            wrong += edits[seed, trial]
            total += LENGTHS[trial]
        rates.append(wrong / total)
    return sum(rates) / len(rates)


def test_the_mean_over_seeds_is_that_of_their_rates():
    resampling = Resampling(LENGTHS.tolist(), 10)
    assert resampling.mean(EDITS) == pytest.approx(np.mean(EDITS.sum(1) / LENGTHS.sum()), abs=1e-15)


def test_intervals_and_paired_differences_are_those_of_slow_draws_of_trials_and_seeds():
    samples = 4000
    resampling = Resampling(LENGTHS.tolist(), samples, seed=1)
    rates, other = resampling.rates(EDITS), resampling.rates(OTHER)
    found = [*resampling.interval(rates), *resampling.difference(EDITS, rates, OTHER, other)[1:]]

    draws = np.random.default_rng(2)
    first, change = [], []
    for _ in range(samples):
        trials = draws.integers(0, 12, 12).tolist()
        one = slow_rate(EDITS, trials, draws.integers(0, 3, 3).tolist())
        first.append(one)
        change.append(slow_rate(OTHER, trials, draws.integers(0, 2, 2).tolist()) - one)
    slow = [*np.quantile(first, [0.025, 0.975]), *np.quantile(change, [0.025, 0.975])]
    np.testing.assert_allclose(found, slow, atol=0.012)  # 4,000 draws; widths are 0.2
    assert resampling.difference(EDITS, rates, OTHER, other).value == pytest.approx(
        np.mean(OTHER.sum(1) / LENGTHS.sum()) - np.mean(EDITS.sum(1) / LENGTHS.sum())
    )


def test_one_seed_has_the_intervals_of_trials_alone():
    resampling = Resampling(LENGTHS.tolist(), 500, seed=3)
    rates, other = resampling.rates(EDITS[:1]), resampling.rates(OTHER[:1])
    assert resampling.interval(rates) == pytest.approx(bootstrap_interval(EDITS[0], LENGTHS, 500, seed=3))
    assert resampling.difference(EDITS[:1], rates, OTHER[:1], other) == pytest.approx(
        paired_bootstrap_difference(EDITS[0], OTHER[0], LENGTHS, 500, seed=3)
    )


def test_what_both_models_find_hard_cancels_and_what_seeds_do_does_not():
    hard = np.array([[0, 5, 1, 7, 0, 5], [0, 5, 1, 7, 0, 5]])
    resampling = Resampling([8] * 6, 300)
    rates, other = resampling.rates(hard), resampling.rates(hard + 1)
    low, high = resampling.interval(rates)
    assert high - low > 0.2
    assert resampling.difference(hard, rates, hard + 1, other) == pytest.approx((1 / 8, 1 / 8, 1 / 8))
    spread = hard + np.array([[0], [2]])
    change = resampling.difference(hard, rates, spread, resampling.rates(spread))
    assert (change.low, change.high) == pytest.approx((0, 2 / 8))


def test_no_reference_symbols_are_refused():
    with pytest.raises(ValueError, match="no reference symbols"):
        Resampling([0, 0], 10)
