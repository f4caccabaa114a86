"""What the report says about the signal's path."""

import pytest

from mode_ssm.config import DataConfig, Normalisation, Smoothing
from mode_ssm.inference import signal_path


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (DataConfig(), "features as the files hold them, symmetric smoothing, which sees 80 ms ahead"),
        (
            DataConfig(normalisation=Normalisation.session, smoothing=Smoothing.none),
            "features normalised by each session's training data, no smoothing",
        ),
        (
            DataConfig(normalisation=Normalisation.rolling, rolling_seconds=30.0, smoothing=Smoothing.causal),
            "features normalised by the past 30 s of their block, causal smoothing",
        ),
    ],
)
def test_normalisation_and_smoothing_are_named(data: DataConfig, words: str) -> None:
    assert words in signal_path(data, causal=True)


def test_only_a_path_that_is_causal_throughout_is_called_so() -> None:
    causal = {"normalisation": Normalisation.rolling, "smoothing": Smoothing.causal}
    assert signal_path(DataConfig(**causal), causal=True).startswith("Causal from the files on: ")
    assert "z-scored by whole blocks before" in signal_path(DataConfig(**causal), causal=True)
    for changes, model in (
        ({"normalisation": Normalisation.session}, True),
        ({"normalisation": Normalisation.released}, True),
        ({"smoothing": Smoothing.symmetric}, True),
        ({}, False),
    ):
        assert signal_path(DataConfig(**(causal | changes)), causal=model).startswith("Offline figures: ")
