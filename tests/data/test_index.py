"""The index of a dataset: what it lists, what it refuses, and when it opens a file again."""

import json
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from mode_ssm.data import index as index_module
from mode_ssm.data.batch import TrialInfo
from mode_ssm.data.brain2text import load_trial
from mode_ssm.data.index import build_index, submission_order

EARLY, LATE = "t15.2023.08.11", "t15.2023.08.13"


@pytest.fixture
def root(tmp_path: Path, write_dataset: Callable[..., Path]) -> Path:
    counts = {EARLY: {"train": 12, "val": 3}, LATE: {"train": 5, "val": 2, "test": 4}}
    return write_dataset(tmp_path / "data", counts)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that a scan opened."""
    paths: list[Path] = []
    scan = index_module.scan_file

    def counting(path: Path, *args: object, **kwargs: object) -> object:
        paths.append(path)
        return scan(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(index_module, "scan_file", counting)
    return paths


def test_index_lists_every_trial_in_order_of_session_and_file(root: Path) -> None:
    index = build_index(root, feature_dim=4, progress=False)
    assert {split: len(trials) for split, trials in index.trials.items()} == {"train": 17, "val": 5, "test": 4}
    assert index.sessions == [EARLY, LATE]
    assert index.skipped == []
    names = [trial.name for trial in index.trials["train"]]
    assert names == [f"{EARLY}/train/trial_{i:04d}" for i in range(12)] + [
        f"{LATE}/train/trial_{i:04d}" for i in range(5)
    ]


def test_trials_past_the_padding_of_their_names_keep_their_order(
    tmp_path: Path, write_dataset: Callable[..., Path]
) -> None:
    root = write_dataset(tmp_path / "data", {EARLY: {"train": 3}})
    with h5py.File(root / EARLY / "data_train.hdf5", "r+") as file:
        file.move("trial_0000", "trial_10000")
        file.move("trial_0001", "trial_9999")
    keys = [trial.key for trial in build_index(root, feature_dim=4, progress=False).trials["train"]]
    assert keys == ["trial_0002", "trial_9999", "trial_10000"]


def test_statistics_are_those_of_the_raw_features(root: Path) -> None:
    index = build_index(root, feature_dim=4, progress=False)
    for split in ("train", "val", "test"):
        for session, statistics in index.statistics[split].items():
            features = [load_trial(t).features for t in index.trials[split] if t.session == session]
            whole = np.concatenate(features).astype(np.float64)
            assert statistics.count == len(whole)
            np.testing.assert_allclose(statistics.mean, whole.mean(axis=0), atol=1e-12)
            np.testing.assert_allclose(statistics.std, whole.std(axis=0), rtol=1e-10)
    assert set(index.statistics["test"]) == {LATE}


def test_splits_and_sessions_can_be_chosen_and_any_folder_name_works(
    tmp_path: Path, write_dataset: Callable[..., Path]
) -> None:
    root = write_dataset(tmp_path / "data", {"speaker_jackson": {"train": 2, "val": 1}, "speaker_theo": {"train": 2}})
    (root / "truth.json").write_text("{}")
    (root / "notes").mkdir()
    index = build_index(root, splits=("train",), sessions=["speaker_theo"], feature_dim=4, progress=False)
    assert {trial.name for trial in index.trials["train"]} == {
        "speaker_theo/train/trial_0000",
        "speaker_theo/train/trial_0001",
    }
    assert set(index.trials) == {"train"}
    assert index.sessions == ["speaker_theo"]
    assert build_index(root, feature_dim=4, progress=False).sessions == ["speaker_jackson", "speaker_theo"]


def test_what_is_not_there_is_named_in_one_line(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for call, message in (
        (lambda: build_index(tmp_path / "none"), r"data.root=.*none is not a folder"),
        (lambda: build_index(tmp_path / "empty"), r"holds no <session>/data_\{train,val,test\}.hdf5"),
        (lambda: build_index(root, splits=("dev",)), "unknown split 'dev'; the splits are train, val, test"),
        (
            lambda: build_index(root, sessions=["t15.2023.08.12x"]),
            "no session 't15.2023.08.12x' .* nearest name is 't15",
        ),
    ):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_files_are_opened_once_and_not_again_while_they_stay_the_same(root: Path, opened: list[Path]) -> None:
    first = build_index(root, feature_dim=4, progress=False)
    assert len(opened) == len(set(opened)) == 5
    second = build_index(root, feature_dim=4, progress=False)
    assert len(opened) == 5
    assert second.trials == first.trials
    for split, sessions in first.statistics.items():
        for session, statistics in sessions.items():
            np.testing.assert_array_equal(second.statistics[split][session].mean, statistics.mean)
            np.testing.assert_array_equal(second.statistics[split][session].std, statistics.std)


def test_a_changed_file_is_scanned_again_and_no_other(root: Path, opened: list[Path]) -> None:
    build_index(root, feature_dim=4, progress=False)
    opened.clear()
    changed = root / LATE / "data_val.hdf5"
    with h5py.File(changed, "r+") as file:
        file["trial_0001"].attrs["block_num"] = 99
    index = build_index(root, feature_dim=4, progress=False)
    assert opened == [changed]
    assert index.trials["val"][-1].block == 99


def test_another_width_or_other_checks_scan_again(
    root: Path, opened: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(root, feature_dim=4, progress=False)
    with pytest.raises(ValueError, match=r"expected \(T, data.feature_dim=5\)"):
        build_index(root, feature_dim=5, progress=False)
    assert len(opened) == 10
    monkeypatch.setattr("mode_ssm.data.scan_cache.CHECKS_VERSION", 999)
    build_index(root, feature_dim=4, progress=False)
    assert len(opened) == 15


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"made_for": 1, "scan": 3}', "\x00\xff"])
def test_a_corrupt_cache_is_made_again(root: Path, cache_folder: Path, opened: list[Path], content: str) -> None:
    first = build_index(root, feature_dim=4, progress=False)
    entries = list(cache_folder.rglob("*.json"))
    assert len(entries) == 5
    for entry in entries:
        entry.write_text(content)
    assert build_index(root, feature_dim=4, progress=False).trials == first.trials
    assert len(opened) == 10
    build_index(root, feature_dim=4, progress=False)
    assert len(opened) == 10


def test_a_cache_entry_whose_scan_is_damaged_is_made_again(root: Path, cache_folder: Path, opened: list[Path]) -> None:
    first = build_index(root, feature_dim=4, progress=False)
    for entry in cache_folder.rglob("*.json"):
        record = json.loads(entry.read_text())
        del record["scan"]["trials"][0]["key"]
        entry.write_text(json.dumps(record))
    assert build_index(root, feature_dim=4, progress=False).trials == first.trials
    assert len(opened) == 10


def test_an_unreadable_file_is_not_remembered_as_broken(root: Path, opened: list[Path]) -> None:
    path = root / EARLY / "data_val.hdf5"
    content, status = path.read_bytes(), path.stat()
    path.write_bytes(b"\0" * len(content))
    with pytest.raises(ValueError, match="cannot be read as HDF5"):
        build_index(root, feature_dim=4, progress=False)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(build_index(root, feature_dim=4, progress=False).trials["val"]) == 5


def test_the_data_folder_is_never_written_to(root: Path) -> None:
    before = sorted(root.rglob("*"))
    for folder in (root, root / EARLY, root / LATE):
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        build_index(root, feature_dim=4, progress=False)
        assert sorted(root.rglob("*")) == before
    finally:
        for folder in (root, root / EARLY, root / LATE):
            folder.chmod(stat.S_IRWXU)


def test_without_a_place_for_the_cache_the_index_is_built_all_the_same(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with caplog.at_level(logging.WARNING):
        index = build_index(root, feature_dim=4, cache_dir=blocked / "below", progress=False)
    assert len(index.trials["train"]) == 17
    assert "cannot store the scan of" in caplog.text


def test_submission_order_is_session_date_then_block_then_trial(make_info: Callable[..., TrialInfo]) -> None:
    wanted = [
        make_info(0, session="t15.2023.09.30", block=9, trial=7),
        make_info(1, session="t15.2023.10.01", block=2, trial=10),
        make_info(2, session="t15.2023.10.01", block=10, trial=2),
        make_info(3, session="t15.2023.10.01", block=10, trial=11),
        make_info(4, session="t15.2024.01.02", block=1, trial=0),
    ]
    for seed in range(5):
        shuffled = [wanted[i] for i in np.random.default_rng(seed).permutation(5)]
        assert submission_order(shuffled) == wanted
