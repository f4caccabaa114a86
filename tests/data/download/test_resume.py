"""A transfer that breaks off, or is stopped, goes on where it was."""

from pathlib import Path

import pytest
from dryad_server import CONTENT, Handler, Server, break_off_after

from mode_ssm.data import download
from mode_ssm.data.download import DryadClient, RemoteFile, bytes_to_come


def test_a_connection_that_breaks_is_taken_up_where_it_broke(
    server: Server, client: DryadClient, file: RemoteFile, tmp_path: Path, pauses: list[float]
) -> None:
    server.replies = [break_off_after(1000), break_off_after(2000)]
    assert client.fetch(file, tmp_path).read_bytes() == CONTENT
    assert [headers.get("Range") for headers in server.downloads()] == [None, "bytes=1000-", "bytes=3000-"]
    assert pauses == [1.0, 1.0]  # it went on in between


def test_many_breaks_are_no_failure_while_bytes_arrive(
    server: Server, client: DryadClient, file: RemoteFile, tmp_path: Path
) -> None:
    server.replies = [break_off_after(1000)] * 20
    assert client.fetch(file, tmp_path).read_bytes() == CONTENT


def test_a_transfer_that_never_gets_further_ends_in_one_line_and_keeps_what_came(
    server: Server, client: DryadClient, file: RemoteFile, tmp_path: Path, pauses: list[float]
) -> None:
    server.replies = [break_off_after(1000)] + [break_off_after(0)] * 10
    with pytest.raises(
        ValueError, match=r"^one.bin: the connection ended after 1,000 of 102,400 bytes; tried 6 times$"
    ):
        client.fetch(file, tmp_path)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("one.bin.part", CONTENT[:1000])]
    assert bytes_to_come(file, tmp_path) == len(CONTENT) - 1000
    server.replies = []
    assert client.fetch(file, tmp_path).read_bytes() == CONTENT
    assert server.downloads()[-1]["Range"] == "bytes=1000-"


def test_a_call_that_is_interrupted_goes_on_in_the_next(
    server: Server, client: DryadClient, file: RemoteFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "CHUNK_BYTES", 5000)

    def interrupt(done: int) -> None:
        if done >= 20_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.fetch(file, tmp_path, interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["one.bin.part"]
    assert client.fetch(file, tmp_path).read_bytes() == CONTENT
    assert server.downloads()[1]["Range"] == "bytes=20000-"


def test_a_server_that_cannot_resume_starts_again(
    server: Server, client: DryadClient, file: RemoteFile, tmp_path: Path
) -> None:
    def whole(handler: Handler, content: bytes) -> bool:
        handler.send_bytes(200, content)
        return True

    (tmp_path / "one.bin.part").write_bytes(b"x" * 500)
    server.replies = [whole]
    assert client.fetch(file, tmp_path).read_bytes() == CONTENT


def test_a_whole_part_is_checked_without_a_request(
    server: Server, client: DryadClient, file: RemoteFile, tmp_path: Path
) -> None:
    (tmp_path / "one.bin.part").write_bytes(CONTENT)
    assert client.fetch(file, tmp_path).read_bytes() == CONTENT
    assert server.downloads() == []


def test_a_part_of_a_larger_version_is_begun_anew(client: DryadClient, file: RemoteFile, tmp_path: Path) -> None:
    (tmp_path / "one.bin.part").write_bytes(CONTENT + b"more")
    assert client.fetch(file, tmp_path).read_bytes() == CONTENT
