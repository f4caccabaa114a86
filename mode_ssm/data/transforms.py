"""What a loader does with each recording that it reads: normalisation, then smoothing."""

import numpy as np

from mode_ssm.config import Smoothing
from mode_ssm.data.batch import Trial
from mode_ssm.data.normalisation import Normalise, as_released
from mode_ssm.data.smoothing import gaussian_kernel, smooth


class SignalTransform:
    """A trial's features (T, C) float32 as a model sees them. They are never changed in place: they may be shared."""

    def __init__(self, smoothing: Smoothing, std: float, normalise: Normalise = as_released) -> None:
        gaussian_kernel(std, smoothing)
        self.smoothing, self.std, self.normalise = smoothing, std, normalise

    def __call__(self, trial: Trial, epoch: int = 0) -> np.ndarray:
        features = self.normalise(trial.info, trial.features)
        return features if self.smoothing is Smoothing.none else smooth(features, self.smoothing, self.std)
