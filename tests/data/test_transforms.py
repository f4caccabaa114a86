from collections.abc import Callable

import numpy as np
import pytest

from mode_ssm.config import Smoothing
from mode_ssm.data.batch import Trial, TrialInfo
from mode_ssm.data.smoothing import smooth
from mode_ssm.data.transforms import SignalTransform


@pytest.fixture
def trial(make_info: Callable[..., TrialInfo]) -> Trial:
    features = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    return Trial(info=make_info(num_bins=50), features=features, phonemes=None)


def test_a_recording_is_normalised_first_and_smoothed_then(trial: Trial) -> None:
    """A maximum is not linear, so that the order can be told."""
    transform = SignalTransform(Smoothing.symmetric, 2.0, lambda info, features: np.maximum(features, 0))
    before = trial.features.copy()
    np.testing.assert_array_equal(transform(trial), smooth(np.maximum(trial.features, 0), Smoothing.symmetric, 2.0))
    np.testing.assert_array_equal(trial.features, before)


def test_without_smoothing_and_normalisation_nothing_is_copied(trial: Trial) -> None:
    assert SignalTransform(Smoothing.none, 2.0)(trial) is trial.features


def test_impossible_smoothing_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        SignalTransform(Smoothing.causal, 0.0)
