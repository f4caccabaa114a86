"""Broken recordings, as a user meets them: each ends in one line that names file and trial, and nothing is left behind.

`test_checks` has what a single check says; here are the ways from a damaged folder to the exit code.
"""

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scipy.io import savemat

from mode_ssm.compose import load_train_config, run_main
from mode_ssm.data.brain2text import build_index
from mode_ssm.data.t15_format import RecordedTrial, session_file, write_session_file
from mode_ssm.tasks.transcription import TranscriptionTask
from mode_ssm.vocab import SIL
from scripts import prepare_data

FEATURE_DIM = 512
SESSION, OTHER = "t15.2023.08.11", "t15.2023.08.13"
FILE = f"{SESSION}/data_train.hdf5"
Damage = Callable[[Path], None]
Change = Callable[[h5py.Group], None]


def write_recordings(root: Path) -> Path:
    """Two sessions, three trials in each of train and val; the third has 42 bins, 5 phonemes, and says "cab."."""
    for s, session in enumerate((SESSION, OTHER)):
        for p, split in enumerate(("train", "val")):
            rng = np.random.default_rng((s, p))
            trials = [
                RecordedTrial(
                    session=session,
                    block=p,
                    trial=i,
                    features=rng.standard_normal((40 + i, FEATURE_DIM)).astype(np.float32),
                    phonemes=np.array([1, 2, 3, 4, SIL]),
                    sentence=f"{'abc'[i]}ab.",
                )
                for i in range(3)
            ]
            write_session_file(session_file(root, session, split), trials, with_labels=True)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_recordings(tmp_path / "data")


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
        lambda root: write_text(root / FILE),
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


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_one_line(said: str, line: str, root: Path) -> None:
    """One line of what was said is `line`, in which * stands for anything; others only frame it."""
    listing = line.startswith("  ")
    pattern = re.escape(line.replace("{root}", str(root))).replace(r"\*", ".*")
    named = re.findall(rf"^{'' if listing else '(?:error|prepare_data): '}{pattern}$", said, re.MULTILINE)
    assert len(named) == 1, said
    assert "Traceback" not in said
    if listing:
        assert re.search(
            rf"^(?:error|prepare_data): \d bad recordings? under {re.escape(str(root))}:$", said, re.MULTILINE
        )
        assert said.count(" trial_0002: ") == ("trial_0002" in line)


@pytest.fixture
def index_error(capsys: pytest.CaptureFixture[str]) -> Callable[[Path], str]:
    """What an entry script says of a folder whose index cannot be built; exit code 2."""

    def call(root: Path) -> str:
        with pytest.raises(SystemExit) as stop:
            run_main(lambda: build_index(root, feature_dim=FEATURE_DIM, progress=False))
        assert stop.value.code == 2
        return capsys.readouterr().err

    return call


@pytest.fixture
def prepare_error(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What the preparation says of a folder that it refuses; exit code 1."""

    def call(root: Path, output: Path, *more: str) -> str:
        assert prepare_data.main(["--root", str(root), "--output", str(output), "--processes", "1", *more]) == 1
        return capsys.readouterr().err

    return call


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
    script = Path(__file__).resolve().parents[2] / "train.py"
    command = [sys.executable, str(script), f"data.root={root}", f"data.feature_dim={FEATURE_DIM}"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert_one_line(ended.stderr, line, root)
    assert [path.name for path in (tmp_path / "runs").rglob("*") if path.is_file()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "runs/mine"), "error: permission denied: runs/mine\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a.h5"), "error: no space left on device: a.h5\n"),
        (OSError(errno.EROFS, "Read-only file system", "runs"), "error: read-only file system: runs\n"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "runs/mine"), "error: not a directory: runs/mine\n"),
    ],
)
def test_what_the_disk_refuses_is_one_line(capsys: pytest.CaptureFixture[str], error: OSError, said: str) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        run_main(fail)
    assert (stop.value.code, capsys.readouterr().err) == (2, said)


@pytest.fixture
def public_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that belongs to an ordinary user, who this process is meanwhile: nothing is forbidden to root."""
    folder = Path(tempfile.mkdtemp())
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    write_recordings(folder / "data")
    if os.geteuid() != 0:
        yield folder
    else:
        nobody = 65534
        for path in (folder, *folder.rglob("*")):
            os.chown(path, nobody, nobody)
        try:
            os.seteuid(nobody)
        except PermissionError:
            pytest.skip("this process may not become an ordinary user")
        try:
            yield folder
        finally:
            os.seteuid(0)
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o700)
    shutil.rmtree(folder)


def test_an_unreadable_file_is_named(
    public_folder: Path, index_error: Callable[[Path], str], prepare_error: Callable[..., str]
) -> None:
    root = public_folder / "data"
    (root / FILE).chmod(0)
    line = f"  {FILE}: cannot be read as HDF5 (*ermission denied*)"
    assert_one_line(index_error(root), line, root)
    said = prepare_error(root, public_folder / "processed")
    assert re.search(rf"{FILE}.*ermission denied", said)
    assert snapshot(public_folder / "processed") == {}


def test_an_unreadable_session_is_named(
    public_folder: Path, index_error: Callable[[Path], str], prepare_error: Callable[..., str]
) -> None:
    root = public_folder / "data"
    (root / SESSION).chmod(0)
    line = f"{{root}}/{SESSION} cannot be read: permission denied"
    assert_one_line(index_error(root), line, root)
    assert_one_line(prepare_error(root, public_folder / "processed"), line, root)


def test_an_output_that_cannot_be_written_is_named(public_folder: Path, prepare_error: Callable[..., str]) -> None:
    output = public_folder / "locked" / "processed"
    output.parent.mkdir(mode=0o500)
    said = prepare_error(public_folder / "data", output)
    assert f"prepare_data: {output}: Permission denied" in said.splitlines()
    assert list(output.parent.iterdir()) == []


def test_an_output_that_is_a_file_is_named_and_kept(
    root: Path, tmp_path: Path, prepare_error: Callable[..., str]
) -> None:
    (tmp_path / "processed").write_text("mine")
    said = prepare_error(root, tmp_path / "processed")
    assert f"prepare_data: {tmp_path / 'processed'}: " in said
    assert (tmp_path / "processed").read_text() == "mine"


def test_a_disk_that_fills_up_leaves_no_half_shard_and_the_next_call_finishes(
    root: Path, tmp_path: Path, prepare_error: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "processed"
    assert prepare_data.main(["--root", str(root), "--output", str(tmp_path / "whole"), "--processes", "1"]) == 0
    create = h5py.Group.create_dataset

    def full(group: h5py.Group, name: str, *args: object, **kwargs: object) -> object:
        if group.file.filename.endswith(".partial") and "val" in group.file.filename:
            raise OSError(errno.ENOSPC, "No space left on device", group.file.filename)
        return create(group, name, *args, **kwargs)

    with monkeypatch.context() as small:
        small.setattr(h5py.Group, "create_dataset", full)
        said = prepare_error(root, output)
    assert re.search(rf"^prepare_data: cannot write {output}/val_00.h5: .*No space left on device", said, re.MULTILINE)
    left = snapshot(output)
    whole = snapshot(tmp_path / "whole")
    assert "manifest.json" not in left
    assert {name: content for name, content in whole.items() if name in left} == left
    assert prepare_data.main(["--root", str(root), "--output", str(output), "--processes", "1"]) == 0
    assert snapshot(output) == whole


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


MAT = "train/t12.2022.04.28.mat"


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
