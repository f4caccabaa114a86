"""What lies where a file is to come, and a disk that does not take it."""

import errno
import hashlib
import io
from pathlib import Path

import pytest
from dryad_server import CONTENT, Server

from mode_ssm.data import download
from mode_ssm.data.download import DryadClient, RemoteFile, is_complete


def test_a_file_put_there_by_hand_is_checked_once(
    server: Server, client: DryadClient, file: RemoteFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.bin").write_bytes(CONTENT)
    assert is_complete(file, tmp_path)
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: pytest.fail("it was read again"))
    client.fetch(file, tmp_path)
    assert server.downloads() == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [(CONTENT[:-1], "has 102399 bytes, expected 102400"), (CONTENT[::-1], r"md5 is \w+, expected \w+")],
)
def test_another_file_of_the_same_name_is_kept_and_named(
    client: DryadClient, file: RemoteFile, tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "one.bin").write_bytes(content)
    with pytest.raises(ValueError, match=rf"one.bin:? {reason}; remove it to download it again$"):
        client.fetch(file, tmp_path)
    assert (tmp_path / "one.bin").read_bytes() == content


def test_a_disk_that_fills_up_ends_in_one_line_and_the_next_call_goes_on(
    server: Server, client: DryadClient, file: RemoteFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    class FullAfter(io.FileIO):
        def write(self, data: object) -> int:
            if self.tell() >= 10_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)  # type: ignore[arg-type]

    def open_small(path: Path, mode: str = "r", **kwargs: object) -> object:
        return FullAfter(str(path), mode) if mode in ("ab", "wb") else opened(path, mode, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(download, "CHUNK_BYTES", 5000)
    with monkeypatch.context() as full:
        full.setattr(Path, "open", open_small)
        with pytest.raises(ValueError, match=r"one.bin.part: no space left on device; what has arrived stays") as error:
            client.fetch(file, tmp_path)
    assert "\n" not in str(error.value)
    assert (tmp_path / "one.bin.part").stat().st_size == 10_000
    assert client.fetch(file, tmp_path).read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written_is_named(client: DryadClient, file: RemoteFile, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ValueError, match=r"taken/folder: not a directory$"):
        client.fetch(file, tmp_path / "taken" / "folder")
