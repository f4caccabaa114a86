"""Trials as they are read from session files, and the handles that this takes."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from mode_ssm.data import brain2text
from mode_ssm.data.batch import TrialInfo
from mode_ssm.data.brain2text import close_files, load_phonemes, load_trial
from mode_ssm.data.index import build_index

EARLY, LATE = "t15.2023.08.11", "t15.2023.08.13"


@pytest.fixture
def root(tmp_path: Path, write_dataset: Callable[..., Path]) -> Path:
    counts = {EARLY: {"train": 12, "val": 3}, LATE: {"train": 5, "val": 2, "test": 4}}
    return write_dataset(tmp_path / "data", counts)


def test_trials_hold_what_the_file_says(root: Path) -> None:
    for trial in build_index(root, feature_dim=4, progress=False).trials["val"]:
        with h5py.File(trial.path, "r") as file:
            group = file[trial.key]
            assert trial.num_bins == group.attrs["n_time_steps"] == len(group["input_features"])
            assert trial.num_phonemes == group.attrs["seq_len"]
            assert trial.sentence == group.attrs["sentence_label"]
            assert (trial.block, trial.trial) == (group.attrs["block_num"], group.attrs["trial_num"])
            loaded = load_trial(trial)
            np.testing.assert_array_equal(loaded.features, group["input_features"][()])
            assert loaded.phonemes is not None
            np.testing.assert_array_equal(loaded.phonemes, group["seq_class_ids"][: trial.num_phonemes])
            assert (loaded.features.dtype, loaded.phonemes.dtype) == (np.float32, np.int64)


def test_test_trials_carry_no_labels_even_where_the_file_does(root: Path) -> None:
    path = root / LATE / "data_test.hdf5"
    with h5py.File(path, "r+") as file:
        file["trial_0000"].create_dataset("seq_class_ids", data=np.ones(500, np.int32))
        file["trial_0000"].attrs["seq_len"] = 500
    for trial in build_index(root, feature_dim=4, progress=False).trials["test"]:
        assert (trial.num_phonemes, trial.sentence) == (None, None)
        assert load_trial(trial).phonemes is None
        assert load_phonemes(trial) is None


def test_handles_stay_open_between_reads_and_close_on_request(root: Path) -> None:
    trials = build_index(root, feature_dim=4, progress=False).trials["train"]
    close_files()
    for trial in trials:
        load_trial(trial)
    handles = dict(brain2text._open_files.files)
    assert len(handles) == 2
    load_trial(trials[0])
    assert brain2text._open_files.files[trials[0].path] is handles[trials[0].path]
    close_files()
    assert not any(bool(handle) for handle in handles.values())
    np.testing.assert_array_equal(load_trial(trials[0]).features.shape, (trials[0].num_bins, 4))


def test_no_more_handles_stay_open_than_allowed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = build_index(root, feature_dim=4, progress=False)
    close_files()
    monkeypatch.setattr(brain2text, "MAX_OPEN_FILES", 2)
    one_of_each = {trial.path: trial for trials in index.trials.values() for trial in trials}
    for _ in range(2):
        for trial in one_of_each.values():
            assert len(load_trial(trial).features) == trial.num_bins
            assert len(brain2text._open_files.files) <= 2
    close_files()


def _sum_in_child(trial: TrialInfo, inherited: int, answers: "multiprocessing.Queue[tuple[bool, float]]") -> None:
    fresh = id(brain2text._open_files) != inherited and not brain2text._open_files.files
    answers.put((fresh, float(load_trial(trial).features.sum())))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_opens_its_own_handles_even_while_the_parent_reads(root: Path) -> None:
    trial = build_index(root, feature_dim=4, progress=False).trials["train"][0]
    expected = float(load_trial(trial).features.sum())
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.Queue[tuple[bool, float]] = context.Queue()
    with brain2text._open_files.lock:  # a lock held at the fork would never be released in the child
        child = context.Process(target=_sum_in_child, args=(trial, id(brain2text._open_files), answers))
        child.start()
        assert answers.get(timeout=30) == (True, expected)
        child.join()
    assert float(load_trial(trial).features.sum()) == expected
