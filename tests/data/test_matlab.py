from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from mode_ssm.data.brain2text import close_files, load_trial
from mode_ssm.data.index import build_index
from mode_ssm.data.matlab import convert_session, read_session
from mode_ssm.data.prepare import Settings, prepare
from mode_ssm.data.t15_format import write_session_file
from mode_ssm.vocab import SIL

SESSION = "t12.2022.04.28"
SETTINGS = Settings(feature_dim=256, train_shards=2)


def pronounce(sentence: str) -> list[int]:
    """A phoneme for every letter, SIL after every word."""
    if "xyz" in sentence:
        raise ValueError("no pronunciation for 'xyz'")
    return [phone for word in sentence.lower().split() for phone in [*(ord(c) - ord("a") + 1 for c in word), SIL]]


def write_matlab(path: Path, sentences: list[str], seed: int = 0, **changes: object) -> dict[str, np.ndarray]:
    """A file as the benchmark's: two blocks, raw counts and powers of 256 electrodes."""
    rng = np.random.default_rng(seed)
    count = len(sentences)
    variables: dict[str, object] = {
        "sentenceText": np.array(sentences),
        "blockIdx": np.array([[5 if i < count // 2 else 9] for i in range(count)], np.uint8),
        "tx1": np.empty((1, count), object),
        "spikePow": np.empty((1, count), object),
    }
    for index in range(count):
        bins = int(rng.integers(20, 40))
        variables["tx1"][0, index] = rng.poisson(3.0, (bins, 256)).astype(np.uint8)  # type: ignore[index]
        variables["spikePow"][0, index] = rng.gamma(2.0, 50.0, (bins, 256)).astype(np.float32)  # type: ignore[index]
    variables.update(changes)
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {name: value for name, value in variables.items() if value is not None})
    return variables  # type: ignore[return-value]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "t12"
    write_matlab(root / "train" / f"{SESSION}.mat", ["a bad cab", "a cab", "add a cab ", "fade", "a face"])
    write_matlab(root / "test" / f"{SESSION}.mat", ["a fed bee", "a bead"], seed=1)
    write_matlab(root / "competitionHoldOut" / f"{SESSION}.mat", ["", "", ""], seed=2, sentenceText=None)
    return root


def test_features_are_the_first_128_columns_of_both_z_scored_within_blocks(tmp_path: Path) -> None:
    path = tmp_path / f"{SESSION}.mat"
    written = write_matlab(path, ["a bad cab", "a cab", "fade", "a face"])
    trials = read_session(path, SESSION, pronounce)
    assert [(t.block, t.trial) for t in trials] == [(5, 0), (5, 1), (9, 0), (9, 1)]
    assert trials[1].sentence == "a cab"
    assert trials[1].phonemes.tolist() == [1, SIL, 3, 1, 2, SIL]
    for block in ((0, 1), (2, 3)):
        whole = np.concatenate(
            [np.hstack([written["tx1"][0, i][:, :128], written["spikePow"][0, i][:, :128]]) for i in block]
        ).astype(np.float64)
        expected = (whole - whole.mean(axis=0)) / whole.std(axis=0)
        found = np.concatenate([trials[i].features for i in block])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_folder_of_matlab_files_is_prepared_like_any_other(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "processed"
    assert prepare(root, output, SETTINGS, pronounce=pronounce, progress=False)
    assert not prepare(root, output, SETTINGS, pronounce=pronounce, progress=False)
    assert not (output / ".converted").exists()
    index = build_index(output, feature_dim=256)
    assert {split: len(trials) for split, trials in index.trials.items()} == {"train": 5, "val": 2, "test": 3}
    first = index.trials["train"][0]
    assert (first.name, first.sentence, first.block) == (f"{SESSION}/train/trial_0000", "a bad cab", 5)
    expected = read_session(root / "train" / f"{SESSION}.mat", SESSION, pronounce)
    for info, trial in zip(index.trials["train"], expected, strict=True):
        loaded = load_trial(info)
        np.testing.assert_array_equal(loaded.features, trial.features)
        np.testing.assert_array_equal(loaded.phonemes, trial.phonemes)  # type: ignore[arg-type]
    assert load_trial(index.trials["test"][0]).phonemes is None
    close_files()


def test_without_a_lexicon_the_labels_are_asked_for(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.mat has sentences without phonemes; name a lexicon with --lexicon"):
        prepare(root, tmp_path / "processed", SETTINGS, progress=False)


def write_v73(path: Path) -> None:
    with h5py.File(path, "w", userblock_size=512) as file:
        file["tx1"] = np.zeros(3)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_v73, "is a MATLAB v7.3 file; the benchmark's are v5: save it again with -v7"),
        (lambda path: path.write_bytes(b"no matlab file at all" * 40), r"cannot be read as a MATLAB v5 file \("),
        (lambda path: path.write_bytes(b""), r"cannot be read as a MATLAB v5 file \("),
        (lambda path: write_matlab(path, ["a", "b"], spikePow=None), "has no variable spikePow$"),
        (lambda path: write_matlab(path, ["a", "xyz"]), r"trial 1: no pronunciation for 'xyz'"),
        (lambda path: write_matlab(path, ["a", "b"], blockIdx=np.ones((3, 1))), "tx1 has 2 trials, but blockIdx has 3"),
        (
            lambda path: write_matlab(path, ["a"], tx1=np.zeros((1, 4))),
            r"trial 0: tx1 has no cell for it",
        ),
        (lambda path: write_matlab(path, ["a"], tx1=cells(np.zeros((9, 64)))), r"tx1 has shape \(9, 64\), expected"),
        (lambda path: write_matlab(path, ["a"], tx1=cells(np.zeros((9, 256)))), r"tx1 has 9 bins, spikePow \d\d"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_in_one_line(
    tmp_path: Path, write: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / f"{SESSION}.mat"
    write(path)
    with pytest.raises(ValueError, match=message) as error:
        convert_session(path, tmp_path / "out" / "data_train.hdf5", SESSION, "train", pronounce)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def cells(*values: np.ndarray) -> np.ndarray:
    array = np.empty((1, len(values)), object)
    for index, value in enumerate(values):
        array[0, index] = value
    return array


def test_a_converted_file_is_in_the_official_layout(root: Path, tmp_path: Path) -> None:
    source = root / "test" / f"{SESSION}.mat"
    target, copy = tmp_path / "data_val.hdf5", tmp_path / "copy.hdf5"
    convert_session(source, target, SESSION, "val", pronounce)
    write_session_file(copy, read_session(source, SESSION, pronounce), with_labels=True)
    assert target.read_bytes() == copy.read_bytes()
    assert target.stat().st_mtime_ns == source.stat().st_mtime_ns
