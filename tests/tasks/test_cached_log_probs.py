"""Log-probabilities that are kept beside a run: computed once, and again when what made them has changed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mode_ssm.config import DataConfig, Smoothing
from mode_ssm.data.batch import TrialInfo
from mode_ssm.tasks.cached_log_probs import kept_log_probs, made_for
from mode_ssm.vocab import NUM_CLASSES

ARRAYS = [np.random.default_rng(0).normal(size=(frames, NUM_CLASSES)).astype(np.float32) for frames in (3, 1, 5)]


class Model:
    def __init__(self) -> None:
        self.runs = 0

    def __call__(self) -> list[np.ndarray]:
        self.runs += 1
        return ARRAYS


def test_they_are_computed_once(tmp_path, caplog):
    model, file = Model(), tmp_path / "run" / "log_probs.npz"
    for _ in range(3):
        kept = kept_log_probs(file, {"checkpoint": "x", "data": "y"}, model)
        assert all(np.array_equal(found, given) for found, given in zip(kept, ARRAYS, strict=True))
    assert model.runs == 1
    assert caplog.text == ""
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("needed", "what"),
    [({"checkpoint": "z", "data": "y"}, "checkpoint"), ({"checkpoint": "z", "data": "z"}, "checkpoint and data")],
)
def test_stale_ones_are_noticed_and_replaced(tmp_path, caplog, needed, what):
    model, file = Model(), tmp_path / "log_probs.npz"
    for key in ({"checkpoint": "x", "data": "y"}, needed, needed):
        kept_log_probs(file, key, model)
    assert model.runs == 2
    assert f"was made for another {what}; log-probabilities are computed again" in caplog.text


def test_a_damaged_file_is_made_anew(tmp_path, caplog):
    model, file = Model(), tmp_path / "log_probs.npz"
    file.write_bytes(b"PK\x03\x04 half of it")
    for _ in range(2):
        kept_log_probs(file, {"checkpoint": "x"}, model)
    assert model.runs == 1
    assert "cannot be read and is made anew" in caplog.text


def test_weights_recordings_and_smoothing_count(tmp_path):
    weights, recording = tmp_path / "model.safetensors", tmp_path / "data_val.hdf5"
    weights.write_bytes(b"1")
    recording.write_bytes(b"1")
    trial = TrialInfo(
        session="s", split="val", block=1, trial=0, path=str(recording), key="trial_0000", num_bins=5, num_phonemes=1,
        sentence="a",
    )  # fmt: skip
    config = DataConfig(root=str(tmp_path))

    def changed(act) -> list[str]:
        before = made_for(weights, config, [trial])
        after = act()
        return [key for key in before if before[key] != after[key]]

    def other_weights() -> dict[str, str]:
        weights.write_bytes(b"2")
        return made_for(weights, config, [trial])

    def other_recording() -> dict[str, str]:
        Path(recording).write_bytes(b"22")
        return made_for(weights, config, [trial])

    assert changed(lambda: made_for(weights, replace(config, batch_size=3), [trial])) == []
    assert changed(other_weights) == ["checkpoint"]
    assert changed(other_recording) == ["data"]
    assert changed(lambda: made_for(weights, replace(config, smoothing=Smoothing.causal), [trial])) == ["data"]
    assert changed(lambda: made_for(weights, config, [trial, trial])) == ["data"]
