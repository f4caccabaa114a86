"""What the disk refuses: files that may not be read, folders that may not be written, no room."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import pytest
from broken_recordings import FILE, SESSION, assert_one_line, snapshot, write_recordings

from mode_ssm.compose import run_main
from scripts import prepare_data


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
    assert f"error: permission denied: {root / FILE}" in said.splitlines()
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
    assert f"error: permission denied: {output}" in said.splitlines()
    assert list(output.parent.iterdir()) == []


def test_an_output_that_is_a_file_is_named_and_kept(
    root: Path, tmp_path: Path, prepare_error: Callable[..., str]
) -> None:
    (tmp_path / "processed").write_text("mine")
    said = prepare_error(root, tmp_path / "processed")
    assert f"error: file exists: {tmp_path / 'processed'}" in said.splitlines()
    assert (tmp_path / "processed").read_text() == "mine"


def test_a_disk_that_fills_up_leaves_no_half_shard_and_the_next_call_finishes(
    root: Path, tmp_path: Path, prepare_error: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "processed"
    prepare_data.main(["--root", str(root), "--output", str(tmp_path / "whole"), "--processes", "1"])
    create = h5py.Group.create_dataset

    def full(group: h5py.Group, name: str, *args: object, **kwargs: object) -> object:
        if group.file.filename.endswith(".partial") and "val" in group.file.filename:
            raise OSError(errno.ENOSPC, "No space left on device", group.file.filename)
        return create(group, name, *args, **kwargs)

    with monkeypatch.context() as small:
        small.setattr(h5py.Group, "create_dataset", full)
        said = prepare_error(root, output)
    assert re.search(rf"^error: cannot write {output}/val_00.h5: .*No space left on device", said, re.MULTILINE)
    left = snapshot(output)
    whole = snapshot(tmp_path / "whole")
    assert "manifest.json" not in left
    assert {name: content for name, content in whole.items() if name in left} == left
    prepare_data.main(["--root", str(root), "--output", str(output), "--processes", "1"])
    assert snapshot(output) == whole
