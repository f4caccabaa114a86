from collections.abc import Callable

import numpy as np
import pytest

from mode_ssm.data.batch import TrialInfo
from mode_ssm.data.normalisation import RollingNormalisation, SessionNormalisation
from mode_ssm.data.rolling_normaliser import RollingNormaliser
from mode_ssm.data.statistics import FeatureStatistics, merge

C = 3
Recordings = dict[str, np.ndarray]


@pytest.fixture
def block(make_info: Callable[..., TrialInfo]) -> tuple[list[TrialInfo], Recordings]:
    """Seven trials of one block, dealt over splits and listed in another order than recorded; one of another block."""
    rng = np.random.default_rng(0)
    trials = [
        make_info(number, split="val" if number in (2, 5) else "train", num_bins=int(rng.integers(20, 60)))
        for number in range(7)
    ]
    trials.append(make_info(0, block=2, key="other_block", num_bins=40))
    features = {t.name: rng.standard_normal((t.num_bins, C)).astype(np.float32) * 2 + t.trial for t in trials}
    return [trials[i] for i in (4, 7, 0, 6, 2, 1, 5, 3)], features


def rolling(trials: list[TrialInfo], features: Recordings, window: int = 100) -> RollingNormalisation:
    training = FeatureStatistics(count=1, mean=np.ones(C), std=np.full(C, 2.0))
    return RollingNormalisation(trials, lambda info: features[info.name], training, window)


def in_order(trials: list[TrialInfo]) -> list[TrialInfo]:
    return sorted((t for t in trials if t.block == 1), key=lambda t: t.trial)


@pytest.mark.parametrize("window", [1, 10, 100, 1000])
def test_a_dataset_gives_what_a_live_session_gives(block: tuple[list[TrialInfo], Recordings], window: int) -> None:
    trials, features = block
    offline = rolling(trials, features, window)
    live = RollingNormaliser(np.ones(C), np.full(C, 2.0), window)
    for info in in_order(trials):
        portions = [live.step(portion) for portion in np.array_split(features[info.name], 9)]
        np.testing.assert_allclose(offline(info, features[info.name]), np.concatenate(portions), rtol=1e-5, atol=1e-5)


def test_the_future_of_a_block_and_other_blocks_change_nothing(block: tuple[list[TrialInfo], Recordings]) -> None:
    trials, features = block
    ordered = in_order(trials)
    changed = {name: values.copy() for name, values in features.items()}
    for info in (*ordered[4:], *(t for t in trials if t.block == 2)):
        changed[info.name] += 50
    changed[ordered[3].name][10:] -= 70
    before, after = rolling(trials, features, 1000), rolling(trials, changed, 1000)
    for info in ordered[:3]:
        np.testing.assert_array_equal(before(info, features[info.name]), after(info, changed[info.name]))
    third = ordered[3]
    one, other = before(third, features[third.name]), after(third, changed[third.name])
    np.testing.assert_array_equal(one[:10], other[:10])
    assert (one[10:] != other[10:]).any(1).all()


def test_no_more_is_read_than_the_window_needs(block: tuple[list[TrialInfo], Recordings]) -> None:
    trials, features = block
    ordered = in_order(trials)
    assert rolling(trials, features, 1).earlier(ordered[5]) == [ordered[4]]
    assert rolling(trials, features, 10_000).earlier(ordered[5]) == ordered[:5]
    assert rolling(trials, features).earlier(ordered[0]) == []


def test_a_session_is_normalised_by_its_own_statistics_and_an_unknown_one_by_all(
    make_info: Callable[..., TrialInfo],
) -> None:
    rng = np.random.default_rng(0)
    recorded = {
        name: rng.standard_normal((500, C)).astype(np.float32) * scale + 3 for name, scale in (("a", 2), ("b", 9))
    }
    recorded["a"][:, 2] = 4.0  # never varies
    by_session = {name: FeatureStatistics.of(values) for name, values in recorded.items()}
    normalise = SessionNormalisation(by_session, merge(by_session.values()))
    own = normalise(make_info(session="a"), recorded["a"])
    assert own.dtype == np.float32
    np.testing.assert_allclose(own.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(own.std(0), [1, 1, 0], atol=1e-5)
    both = np.concatenate([normalise(make_info(session="new"), recorded[name]) for name in "ab"])
    np.testing.assert_allclose(both.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(both.std(0), 1.0, atol=1e-5)


def test_statistics_follow_the_features(make_info: Callable[..., TrialInfo]) -> None:
    rng = np.random.default_rng(0)
    training, later = (rng.standard_normal((300, C)).astype(np.float32) * 3 + shift for shift in (1, 2))
    statistics = FeatureStatistics.of(training)
    normalise = SessionNormalisation({"a": statistics}, statistics)
    expected = FeatureStatistics.of(normalise(make_info(session="a"), later))
    found = normalise.of("a", FeatureStatistics.of(later))
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-5)
    np.testing.assert_allclose(found.std, expected.std, atol=1e-5)
