"""Every way in which a file can break the format, and the one line that names it."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from mode_ssm.config import OnBadTrial
from mode_ssm.data.checks import scan_file
from mode_ssm.data.index import build_index

SESSION = "t15.2023.08.11"
Damage = Callable[[h5py.Group], None]


@pytest.fixture
def root(tmp_path: Path, write_dataset: Callable[..., Path]) -> Path:
    return write_dataset(
        tmp_path / "data", {SESSION: {"train": 4, "test": 2}, "t15.2023.08.13": {"train": 3, "val": 2}}
    )


@pytest.fixture
def train_file(root: Path) -> Path:
    return root / SESSION / "data_train.hdf5"


def set_attribute(name: str, value: object) -> Damage:
    def damage(group: h5py.Group) -> None:
        group.attrs[name] = value

    return damage


def drop_attribute(name: str) -> Damage:
    def damage(group: h5py.Group) -> None:
        del group.attrs[name]

    return damage


def replace_dataset(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    def damage(group: h5py.Group) -> None:
        values = change(group[name][()])
        del group[name]
        group.create_dataset(name, data=values)

    return damage


def drop_dataset(name: str) -> Damage:
    def damage(group: h5py.Group) -> None:
        del group[name]

    return damage


def put(position: int | tuple[int, ...], value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values[position] = value
        return values

    return change


def empty_the_trial(group: h5py.Group) -> None:
    replace_dataset("input_features", lambda features: features[:0])(group)
    group.attrs["n_time_steps"] = 0


def leave_a_hole_in_the_labels(group: h5py.Group) -> None:
    replace_dataset("seq_class_ids", put(1, 0))(group)
    group.attrs["seq_len"] = 4


def drop_all_labels(group: h5py.Group) -> None:
    replace_dataset("seq_class_ids", np.zeros_like)(group)
    group.attrs["seq_len"] = 0


# The third trial of the fixture has 104 bins and 5 phonemes; its sentence is "add bone abab cat."
CASES: dict[str, tuple[Damage, str]] = {
    "missing n_time_steps": (drop_attribute("n_time_steps"), "attribute n_time_steps is missing"),
    "missing seq_len": (drop_attribute("seq_len"), "attribute seq_len is missing"),
    "missing session": (drop_attribute("session"), "attribute session is missing"),
    "missing block": (drop_attribute("block_num"), "attribute block_num is missing"),
    "missing trial": (drop_attribute("trial_num"), "attribute trial_num is missing"),
    "missing sentence": (drop_attribute("sentence_label"), "attribute sentence_label is missing"),
    "missing features": (drop_dataset("input_features"), "dataset input_features is missing"),
    "missing class ids": (drop_dataset("seq_class_ids"), "dataset seq_class_ids is missing"),
    "missing transcription": (drop_dataset("transcription"), "dataset transcription is missing"),
    "attribute of another type": (
        set_attribute("block_num", 2.5),
        "attribute block_num is 2.5, expected an integer",
    ),
    "sentence that is no text": (
        set_attribute("sentence_label", 7),
        "attribute sentence_label is 7, expected text",
    ),
    "wrong width": (
        replace_dataset("input_features", lambda features: features[:, :3]),
        "input_features has shape (104, 3), expected (T, data.feature_dim=4)",
    ),
    "wrong dimensions": (
        replace_dataset("input_features", lambda features: features[:, 0]),
        "input_features has shape (104,), expected (T, data.feature_dim=4)",
    ),
    "wrong dtype": (
        replace_dataset("input_features", lambda features: features.astype(np.float64)),
        "input_features is float64, expected float32",
    ),
    "nan": (
        replace_dataset("input_features", put((5, 2), np.nan)),
        "values of input_features that are not finite: 1, the first (nan) at bin 5, feature 2",
    ),
    "infinity": (
        replace_dataset("input_features", put((slice(7, 9), 1), -np.inf)),
        "values of input_features that are not finite: 2, the first (-inf) at bin 7, feature 1",
    ),
    "n_time_steps disagrees": (
        set_attribute("n_time_steps", 105),
        "attribute n_time_steps is 105, but input_features has 104 bins",
    ),
    "seq_len disagrees": (set_attribute("seq_len", 3), "attribute seq_len is 3, but seq_class_ids holds 5 phonemes"),
    "hole in the labels": (
        leave_a_hole_in_the_labels,
        "attribute seq_len is 4, but seq_class_ids holds 4 phonemes with zeros among them",
    ),
    "unknown class": (
        replace_dataset("seq_class_ids", put(2, 41)),
        "seq_class_ids holds the unknown class 41 at position 2; classes are 1 to 40, 0 is padding",
    ),
    "negative class": (
        replace_dataset("seq_class_ids", put(0, -1)),
        "seq_class_ids holds the unknown class -1 at position 0; classes are 1 to 40, 0 is padding",
    ),
    "class ids of another type": (
        replace_dataset("seq_class_ids", lambda ids: ids.astype(np.float32)),
        "seq_class_ids is float32 of shape (500,), expected integers in one dimension",
    ),
    "empty trial": (empty_the_trial, "input_features is empty"),
    "no labels": (drop_all_labels, "seq_class_ids holds no phoneme"),
    "another sentence": (
        set_attribute("sentence_label", "Go on!"),
        "transcription says 'add bone abab cat.', but attribute sentence_label says 'Go on!'",
    ),
    "codes of no character": (
        replace_dataset("transcription", put(0, -5)),
        "transcription holds values that are no character codes",
    ),
    "another session": (
        set_attribute("session", "t15.2024.01.01"),
        "attribute session is 't15.2024.01.01', but the folder is 't15.2023.08.11'",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_trial_is_named_with_its_file_in_one_line(root: Path, train_file: Path, case: str) -> None:
    damage, reason = CASES[case]
    with h5py.File(train_file, "r+") as file:
        damage(file["trial_0002"])
    with pytest.raises(ValueError, match="1 bad recording") as error:
        build_index(root, feature_dim=4, progress=False)
    assert str(error.value).splitlines() == [
        f"1 bad recording under {root}:",
        f"  t15.2023.08.11/data_train.hdf5 trial_0002: {reason}",
        "repair them, or leave them out with data.on_bad_trial=skip",
    ]


@pytest.mark.parametrize("case", ["nan", "wrong width", "missing seq_len"])
def test_skipping_leaves_out_the_broken_trial_alone(
    root: Path, train_file: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage, reason = CASES[case]
    whole = build_index(root, feature_dim=4, progress=False)
    with h5py.File(train_file, "r+") as file:
        damage(file["trial_0002"])
    index = build_index(root, feature_dim=4, on_bad_trial=OnBadTrial.skip, progress=False)
    assert index.skipped == [("t15.2023.08.11/data_train.hdf5 trial_0002", reason)]
    assert index.trials["train"] == [t for t in whole.trials["train"] if t.name != f"{SESSION}/train/trial_0002"]
    assert index.trials["val"] == whole.trials["val"]
    kept = [t.num_bins for t in index.trials["train"] if t.session == SESSION]
    assert index.statistics["train"][SESSION].count == sum(kept)
    assert reason in caplog.text


def test_case_and_punctuation_of_the_sentence_may_differ(root: Path, train_file: Path) -> None:
    with h5py.File(train_file, "r+") as file:
        file["trial_0002"].attrs["sentence_label"] = "Add bone, abab cat"
    assert len(build_index(root, feature_dim=4, progress=False).trials["train"]) == 7


def test_several_faults_of_a_trial_stand_in_its_line(train_file: Path) -> None:
    with h5py.File(train_file, "r+") as file:
        file["trial_0001"].attrs["n_time_steps"] = 1
        del file["trial_0001"].attrs["block_num"]
    scan = scan_file(train_file, SESSION, with_labels=True, feature_dim=4)
    assert [(p.key, p.reason.count(";")) for p in scan.problems] == [("trial_0001", 1)]
    assert "n_time_steps is 1" in scan.problems[0].reason
    assert "block_num is missing" in scan.problems[0].reason


def test_a_truncated_file_is_named_and_the_rest_still_read(root: Path, train_file: Path) -> None:
    content = train_file.read_bytes()
    train_file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"t15.2023.08.11/data_train.hdf5: cannot be read as HDF5 \(.*truncated file"):
        build_index(root, feature_dim=4, progress=False)
    index = build_index(root, feature_dim=4, on_bad_trial=OnBadTrial.skip, progress=False)
    assert [name for name, _ in index.skipped] == ["t15.2023.08.11/data_train.hdf5"]
    assert {t.session for t in index.trials["train"]} == {"t15.2023.08.13"}
    assert len(index.trials["test"]) == 2


def test_a_file_that_is_not_hdf5_is_named(root: Path, train_file: Path) -> None:
    train_file.write_text("id,text\n")
    with pytest.raises(ValueError, match=r"data_train.hdf5: cannot be read as HDF5 \(.*file signature not found"):
        build_index(root, feature_dim=4, progress=False)


def test_a_file_without_trials_and_a_foreign_group_are_named(root: Path, train_file: Path) -> None:
    with h5py.File(train_file, "w") as file:
        file.create_group("notes")
    with h5py.File(root / "t15.2023.08.13" / "data_val.hdf5", "w"):
        pass
    with pytest.raises(ValueError, match="2 bad recordings") as error:
        build_index(root, feature_dim=4, progress=False)
    assert str(error.value).splitlines()[1:3] == [
        "  t15.2023.08.11/data_train.hdf5 notes: is not a trial: groups are named trial_0000, trial_0001, ...",
        "  t15.2023.08.13/data_val.hdf5: holds no trial",
    ]


def test_corrupt_bytes_inside_a_trial_name_the_trial(train_file: Path) -> None:
    with h5py.File(train_file, "r+") as file:
        features = file["trial_0003"]["input_features"][()]
        del file["trial_0003"]["input_features"]
        file["trial_0003"].create_dataset("input_features", data=features, chunks=features.shape, fletcher32=True)
        place = file["trial_0003"]["input_features"].id.get_chunk_info(0).byte_offset
    with train_file.open("r+b") as raw:
        raw.seek(place + 10)
        raw.write(b"\xff\xff\xff")
    scan = scan_file(train_file, SESSION, with_labels=True, feature_dim=4)
    assert [p.key for p in scan.problems] == ["trial_0003"]
    assert scan.problems[0].reason.startswith("cannot be read (")
    assert "\n" not in scan.problems[0].reason
    assert len(scan.trials) == 3


def test_the_test_split_needs_no_labels_but_all_the_rest(root: Path) -> None:
    path = root / SESSION / "data_test.hdf5"
    with h5py.File(path, "r+") as file:
        assert "seq_class_ids" not in file["trial_0000"]
        file["trial_0000"].attrs["n_time_steps"] = 3
        del file["trial_0001"].attrs["trial_num"]
    reasons = [p.reason for p in scan_file(path, SESSION, with_labels=False, feature_dim=4).problems]
    assert reasons[0].startswith("attribute n_time_steps is 3, but")
    assert reasons[1] == "attribute trial_num is missing"


def test_all_problems_are_counted_and_the_first_twenty_listed(
    tmp_path: Path, write_dataset: Callable[..., Path]
) -> None:
    root = write_dataset(tmp_path / "many", {SESSION: {"train": 23}, "t15.2023.08.13": {"train": 2}})
    for path in root.glob("*/data_train.hdf5"):
        with h5py.File(path, "r+") as file:
            for group in file.values():
                group.attrs["n_time_steps"] = 0
    with pytest.raises(ValueError, match=r"^25 bad recordings") as error:
        build_index(root, feature_dim=4, progress=False)
    lines = str(error.value).splitlines()
    assert len(lines) == 1 + 20 + 1 + 1
    assert lines[21] == "  ... and 5 more"
