"""Broken recordings, as a user meets them: each ends in one line that names file and trial, and nothing is left behind.

`test_checks` has what a single check says; here are the ways from a damaged folder to the exit code.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from broken_recordings import FEATURE_DIM, FILE, OTHER, SESSION, Damage, assert_one_line, snapshot

from mode_ssm.compose import load_train_config, run_main
from mode_ssm.data.t15_format import session_file
from mode_ssm.tasks.transcription import TranscriptionTask

Change = Callable[[h5py.Group], None]


def in_trial(change: Change) -> Damage:
    """Damage to the third trial of the first training file."""

    def damage(root: Path) -> None:
        with h5py.File(root / FILE, "r+") as file:
            change(file["trial_0002"])

    return damage


def replaced(name: str, values: Callable[[np.ndarray], np.ndarray]) -> Damage:
    def change(group: h5py.Group) -> None:
        changed = values(group[name][()])
        del group[name]
        group.create_dataset(name, data=changed)

    return in_trial(change)


def put(value: float, *place: int | slice) -> Callable[[np.ndarray], np.ndarray]:
    def values(array: np.ndarray) -> np.ndarray:
        array[place] = value
        return array

    return values


def attribute(name: str, value: object) -> Damage:
    return in_trial(lambda group: group.attrs.__setitem__(name, value))


def drop_block_number(group: h5py.Group) -> None:
    del group.attrs["block_num"]


def drop_features(group: h5py.Group) -> None:
    del group["input_features"]


def leave_no_bins(group: h5py.Group) -> None:
    del group["input_features"]
    group.create_dataset("input_features", data=np.zeros((0, FEATURE_DIM), np.float32))
    group.attrs["n_time_steps"] = 0


def truncate(root: Path) -> None:
    os.truncate(root / FILE, (root / FILE).stat().st_size // 2)


def rename(name: str) -> Damage:
    def damage(root: Path) -> None:
        (root / SESSION).rename(root / name)

    return damage


def copy_in_capitals(root: Path) -> None:
    shutil.copytree(root / SESSION, root / SESSION.upper())


def link_to_nowhere(root: Path) -> None:
    (root / FILE).unlink()
    (root / FILE).symlink_to("/mnt/gone/data_train.hdf5")


def link_folder_to_nowhere(root: Path) -> None:
    (root / "t15.2023.08.18").symlink_to("gone")


def folder_instead(root: Path) -> None:
    (root / FILE).unlink()
    (root / FILE).mkdir()


def without_trials(root: Path) -> None:
    h5py.File(root / FILE, "w").close()


def remove_all(root: Path) -> None:
    for session in (SESSION, OTHER):
        shutil.rmtree(root / session)


TRIAL = f"  {FILE} trial_0002: "

# What is done to the folder, and the line that names it; {root} stands for the folder.
CASES: dict[str, tuple[Damage, str]] = {
    "truncated file": (truncate, f"  {FILE}: cannot be read as HDF5 (*truncated file*)"),
    "empty file": (lambda root: os.truncate(root / FILE, 0), f"  {FILE}: cannot be read as HDF5 (*)"),
    "no HDF5 file": (
        lambda root: (root / FILE).write_text("id,text\n" * 50),
        f"  {FILE}: cannot be read as HDF5 (*file signature not found*)",
    ),
    "file without trials": (without_trials, f"  {FILE}: holds no trial"),
    "folder in place of a file": (folder_instead, f"{{root}}/{FILE} is not a file"),
    "link to nowhere": (
        link_to_nowhere,
        f"{{root}}/{FILE} is a link to /mnt/gone/data_train.hdf5, which does not exist",
    ),
    "session that is a link to nowhere": (
        link_folder_to_nowhere,
        "{root}/t15.2023.08.18 is a link to gone, which does not exist",
    ),
    "session of no date": (
        rename("t15.2023.13.41"),
        "{root}/t15.2023.13.41: the session's name holds no date, YYYY.MM.DD (month must be in 1..12)",
    ),
    "session of a date without zeros": (
        rename("t15.2023.8.11"),
        "{root}/t15.2023.8.11: sessions are ordered by name; rename it to t15.2023.08.11",
    ),
    "sessions that differ in case": (
        copy_in_capitals,
        "{root} holds the sessions T15.2023.08.11 and t15.2023.08.11, which differ in case only; rename one",
    ),
    "session under another name": (
        rename("t15.2023.08.12"),
        "  t15.2023.08.12/data_train.hdf5 trial_0002: attribute session is 't15.2023.08.11', "
        "but the folder is 't15.2023.08.12'",
    ),
    "no session at all": (remove_all, "data.root={root} holds no <session>/data_{train,val,test}.hdf5"),
    "missing attribute": (
        in_trial(drop_block_number),
        f"{TRIAL}attribute block_num is missing",
    ),
    "missing features": (
        in_trial(drop_features),
        f"{TRIAL}dataset input_features is missing",
    ),
    "wrong dtype": (
        replaced("input_features", lambda features: features.astype(np.float16)),
        f"{TRIAL}input_features is float16, expected float32",
    ),
    "width 511": (
        replaced("input_features", lambda features: features[:, :511]),
        f"{TRIAL}input_features has shape (42, 511), expected (T, data.feature_dim=512)",
    ),
    "block of NaN": (
        replaced("input_features", put(np.nan, slice(10, 20), slice(64, 128))),
        f"{TRIAL}values of input_features that are not finite: 640, the first (nan) at bin 10, feature 64",
    ),
    "infinity": (
        replaced("input_features", put(np.inf, 41, 511)),
        f"{TRIAL}values of input_features that are not finite: 1, the first (inf) at bin 41, feature 511",
    ),
    "no bins": (in_trial(leave_no_bins), f"{TRIAL}input_features is empty"),
    "other number of bins": (
        attribute("n_time_steps", 43),
        f"{TRIAL}attribute n_time_steps is 43, but input_features has 42 bins",
    ),
    "label without SIL at its end": (
        replaced("seq_class_ids", put(7, 4)),
        f"{TRIAL}seq_class_ids ends in B, expected SIL (40) after the last word",
    ),
    "label longer than seq_len": (
        replaced("seq_class_ids", put(9, 5)),
        f"{TRIAL}attribute seq_len is 5, but seq_class_ids holds 6 phonemes",
    ),
    "unknown phoneme": (
        replaced("seq_class_ids", put(41, 1)),
        f"{TRIAL}seq_class_ids holds the unknown class 41 at position 1; classes are 1 to 40, 0 is padding",
    ),
    "another sentence": (
        attribute("sentence_label", "Cub."),
        f"{TRIAL}transcription says 'cab.', but attribute sentence_label says 'Cub.'",
    ),
    "trial twice": (attribute("trial_num", 1), f"{TRIAL}is block 0 trial 1 once more, after trial_0001"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_index_names_what_is_broken_and_touches_nothing(
    root: Path, index_error: Callable[[Path], str], case: str
) -> None:
    damage, line = CASES[case]
    damage(root)
    before = snapshot(root)
    said = index_error(root)
    if case == "session under another name":  # all trials are, so one line each
        assert [part.split()[1] for part in said.splitlines() if "attribute session" in part][:3] == [
            "trial_0000:", "trial_0001:", "trial_0002:",
        ]  # fmt: skip
        assert line in said.splitlines()
    else:
        assert_one_line(said, line, root)
    assert snapshot(root) == before


@pytest.mark.parametrize("case", CASES)
def test_the_preparation_names_what_is_broken_and_writes_nothing(
    root: Path, tmp_path: Path, prepare_error: Callable[..., str], case: str
) -> None:
    damage, line = CASES[case]
    damage(root)
    before = snapshot(root)
    said = prepare_error(root, tmp_path / "processed")
    if case == "session under another name":
        assert line in said.splitlines()
    else:
        assert_one_line(said, line, root)
    assert snapshot(root) == before
    assert snapshot(tmp_path / "processed") == {}


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_that_is_missing_everywhere_stops_training_before_it_begins(
    root: Path, capsys: pytest.CaptureFixture[str], split: str
) -> None:
    for session in (SESSION, OTHER):
        session_file(root, session, split).unlink()
    config = load_train_config([f"data.root={root}", f"data.feature_dim={FEATURE_DIM}"])
    with pytest.raises(SystemExit) as stop:
        run_main(TranscriptionTask(config, torch.device("cpu"), progress=False).setup)
    assert stop.value.code == 2
    left = "val" if split == "train" else "train"
    assert capsys.readouterr().err == (
        f"error: split={split} holds no trials under data.root={root}; there are ['{left}']\n"
    )


@pytest.mark.slow
def test_training_ends_with_exit_code_2_and_leaves_no_checkpoint(root: Path, tmp_path: Path) -> None:
    damage, line = CASES["block of NaN"]
    damage(root)
    script = Path(__file__).resolve().parents[3] / "train.py"
    command = [sys.executable, str(script), f"data.root={root}", f"data.feature_dim={FEATURE_DIM}"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert_one_line(ended.stderr, line, root)
    assert [path.name for path in (tmp_path / "runs").rglob("*") if path.is_file()] == ["config.yaml"]
