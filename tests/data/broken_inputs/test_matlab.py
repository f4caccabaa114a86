"""Broken MATLAB files of Brain-to-Text '24, from the file to the exit code."""

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from broken_recordings import Damage, assert_one_line, snapshot
from scipy.io import savemat

MAT = "train/t12.2022.04.28.mat"


def matlab(**changes: object) -> dict[str, object]:
    """Two trials of one session of Brain-to-Text '24; a change to None takes the variable away."""
    rng = np.random.default_rng(0)
    cells = {name: np.empty((1, 2), object) for name in ("tx1", "spikePow")}
    for values in cells.values():
        values[0, :] = [rng.standard_normal((30, 256)), rng.standard_normal((31, 256))]
    variables = {"sentenceText": np.array(["a cab.", "a bus."], object), "blockIdx": np.array([[1], [1]]), **cells}
    return {name: value for name, value in {**variables, **changes}.items() if value is not None}


def one_cell(index: int, values: np.ndarray) -> np.ndarray:
    cells = matlab()["tx1"]
    assert isinstance(cells, np.ndarray)
    cells[0, index] = values
    return cells


def write_v73(path: Path) -> None:
    with h5py.File(path, "w", userblock_size=512) as file:
        file["blockIdx"] = [1, 1]


def write_mat(**changes: object) -> Damage:
    return lambda path: savemat(path, matlab(**changes))


def write_text(path: Path) -> None:
    path.write_text("id,text\n" * 50)


def write_half(path: Path) -> None:
    savemat(path, matlab())
    os.truncate(path, path.stat().st_size // 2)


MATLAB_CASES: dict[str, tuple[Damage, str]] = {
    "another version": (write_v73, "{file} is a MATLAB v7.3 file; *"),
    "missing variable": (write_mat(spikePow=None), "{file} has no variable spikePow"),
    "truncated": (write_half, "{file} cannot be read as a MATLAB v5 file (*)"),
    "no MATLAB file": (
        write_text,
        "{file} cannot be read as a MATLAB v5 file (*)",
    ),
    "empty": (lambda path: path.touch(), "{file} cannot be read as a MATLAB v5 file (*)"),
    "too few electrodes": (
        write_mat(tx1=one_cell(1, np.zeros((31, 100)))),
        "{file} trial 1: tx1 has shape (31, 100), expected (T, >= 128)",
    ),
    "bins that disagree": (
        write_mat(tx1=one_cell(0, np.zeros((29, 256)))),
        "{file} trial 0: tx1 has 29 bins, spikePow 30",
    ),
    "no bins": (write_mat(tx1=one_cell(1, np.zeros((0, 256)))), "{file} trial 1: tx1 has shape (0, 256), *"),
    "blocks that disagree": (
        write_mat(blockIdx=np.array([[1]])),
        "{file}: tx1 has 2 trials, but blockIdx has 1",
    ),
    "no lexicon for its sentences": (
        write_mat(),
        "{file} has sentences without phonemes; name a lexicon with --lexicon",
    ),
}


@pytest.mark.parametrize("case", MATLAB_CASES)
def test_a_broken_matlab_file_is_named_and_nothing_is_written(
    tmp_path: Path, prepare_error: Callable[..., str], case: str
) -> None:
    write, line = MATLAB_CASES[case]
    file = tmp_path / "t12" / MAT
    file.parent.mkdir(parents=True)
    write(file)
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("A AH\nBUS B AH S\nCAB K AE B\n")
    more = () if case.startswith("no lexicon") else ("--lexicon", str(lexicon))
    said = prepare_error(file.parents[1], tmp_path / "processed", *more)
    assert_one_line(said, line.replace("{file}", str(file)), tmp_path)
    assert snapshot(tmp_path / "processed") == {}
