"""An archive of recordings becomes a dataset folder, whole or not at all."""

import errno
import io
import shutil
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from mode_ssm.data.unpacking import recordings, unpack

Disk = namedtuple("Disk", "free")


def zip_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


SESSIONS = {
    "hdf5_data_final/": b"",
    "hdf5_data_final/t15.2023.08.11/data_train.hdf5": b"first" * 1000,
    "hdf5_data_final/t15.2023.08.13/data_train.hdf5": b"second",
    "hdf5_data_final/t15.2023.08.13/data_val.hdf5": b"third",
    "hdf5_data_final/.DS_Store": b"junk",
    "__MACOSX/hdf5_data_final/t15.2023.08.11/data_train.hdf5": b"junk",
}
UNPACKED = {
    "t15.2023.08.11/data_train.hdf5": b"first" * 1000,
    "t15.2023.08.13/data_train.hdf5": b"second",
    "t15.2023.08.13/data_val.hdf5": b"third",
}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "recordings.zip"
    path.write_bytes(zip_of(SESSIONS))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_recordings_are_unpacked_a_folder_a_session_and_only_once(archive: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    assert unpack(archive, tmp_path / "data" / "t15", seen.append)
    assert tree(tmp_path / "data") == {f"t15/{name}": content for name, content in UNPACKED.items()}
    assert seen[-1] == sum(map(len, UNPACKED.values()))
    assert not unpack(archive, tmp_path / "data" / "t15")


def test_an_empty_folder_is_filled_and_a_full_one_is_left_alone(archive: Path, tmp_path: Path) -> None:
    root = tmp_path / "t15"
    root.mkdir()
    assert unpack(archive, root)
    (root / "t15.2023.08.13" / "data_val.hdf5").write_bytes(b"mine")
    with pytest.raises(
        ValueError, match=r"t15 exists, but its t15.2023.08.13/data_val.hdf5 is not that of .*recordings.zip"
    ):
        unpack(archive, root)
    assert (root / "t15.2023.08.13" / "data_val.hdf5").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["../t15.1/data_train.hdf5", "/t15.1/data_val.hdf5", "a\\..\\..\\data_val.hdf5"])
def test_an_archive_that_would_write_elsewhere_is_refused_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / "evil.zip"
    path.write_bytes(zip_of({**SESSIONS, name: b"evil"}))
    with pytest.raises(ValueError, match=r"holds the unsafe name .*; nothing was unpacked"):
        unpack(path, tmp_path / "data" / "t15")
    assert [entry.name for entry in tmp_path.iterdir()] == ["evil.zip"]


def test_one_recording_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.zip"
    path.write_bytes(zip_of({**SESSIONS, "copy/t15.2023.08.13/data_val.hdf5": b"other"}))
    with pytest.raises(ValueError, match=r"holds t15\.2023.08.13/data_val.hdf5 twice"):
        unpack(path, tmp_path / "t15")


def test_a_damaged_archive_leaves_nothing(archive: Path, tmp_path: Path) -> None:
    content = bytearray(archive.read_bytes())
    place = content.index(b"data_val.hdf5") + len("data_val.hdf5")
    content[place + 2] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"recordings.zip is damaged \(.*\); nothing was unpacked$"):
        unpack(archive, tmp_path / "data" / "t15")
    assert tree(tmp_path) == {"recordings.zip": bytes(content)}
    archive.write_bytes(content[:300])
    with pytest.raises(ValueError, match=r"recordings.zip cannot be read as a zip archive \(File is not a zip file\)$"):
        recordings(archive)


def test_unpacking_needs_room_and_leaves_nothing_where_there_is_none(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as small:
        small.setattr(shutil, "disk_usage", lambda path: Disk(free=100))
        with pytest.raises(ValueError, match=r"t15 needs 0.00 GB, but the disk has 0.00 GB free"):
            unpack(archive, tmp_path / "t15")

    def full(done: int) -> None:
        if done > 5000:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ValueError, match=r"t15: no space left on device; nothing was unpacked$"):
        unpack(archive, tmp_path / "t15", full)
    assert [entry.name for entry in tmp_path.iterdir()] == ["recordings.zip"]
