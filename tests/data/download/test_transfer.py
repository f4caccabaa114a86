"""One file from a server that behaves, refuses, asks for patience, or sends something else."""

import hashlib
from pathlib import Path

import pytest
from dryad_server import CONTENT, TOKEN, Server, answer

from mode_ssm.data.download import DryadClient, RemoteFile, bytes_to_come


def test_a_file_arrives_whole_and_a_second_call_asks_for_nothing(
    server: Server, client: DryadClient, file: RemoteFile, tmp_path: Path
) -> None:
    seen: list[int] = []
    path = client.fetch(file, tmp_path / "new" / "folder", seen.append)
    assert path.read_bytes() == CONTENT
    assert (seen[0], seen[-1]) == (0, len(CONTENT))
    assert seen == sorted(seen)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["one.bin", "one.bin.md5"]
    assert path.with_name("one.bin.md5").read_text() == f"{hashlib.md5(CONTENT).hexdigest()}  one.bin\n"
    asked, stored = len(server.requests), path.stat()
    assert client.fetch(file, path.parent) == path
    assert (len(server.requests), path.stat()) == (asked, stored)
    assert bytes_to_come(file, path.parent) == 0


@pytest.mark.parametrize("kind", ["md5", "sha-1", "sha-256", "sha-512"])
def test_wrong_content_is_refused_with_every_kind_of_checksum(
    server: Server, client: DryadClient, tmp_path: Path, kind: str
) -> None:
    server.digest_type = kind
    server.digests["one.bin"] = hashlib.new(kind.replace("-", ""), b"another file").hexdigest()
    (file,) = client.list_files("10.1/x")
    with pytest.raises(ValueError, match=rf"^one.bin: {kind.replace('-', '')} is \w+, expected \w+; it was removed"):
        client.fetch(file, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [404, 410])
def test_a_missing_file_ends_at_once(
    server: Server, client: DryadClient, file: RemoteFile, tmp_path: Path, pauses: list[float], status: int
) -> None:
    server.replies = [answer(status)]
    with pytest.raises(ValueError, match=rf"^{server.url}/download/one.bin answers {status} ") as error:
        client.fetch(file, tmp_path)
    assert "\n" not in str(error.value)
    assert pauses == []
    assert len(server.downloads()) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_names_the_token(
    server: Server, client: DryadClient, file: RemoteFile, tmp_path: Path, status: int
) -> None:
    server.replies = [answer(status)]
    with pytest.raises(
        ValueError, match=rf"answers {status} .*; put the access token of a free account .* DRYAD_TOKEN$"
    ):
        client.fetch(file, tmp_path)


def test_the_pause_that_a_server_asks_for_is_kept(
    server: Server, client: DryadClient, file: RemoteFile, tmp_path: Path, pauses: list[float]
) -> None:
    server.replies = [
        answer(429, Retry_After="37"),
        answer(503, Retry_After="Fri, 01 Jan 1999 00:00:00 GMT"),
        answer(500),
    ]
    assert client.fetch(file, tmp_path).read_bytes() == CONTENT
    assert pauses == [37.0, 0.0, 4.0]


def test_a_pause_of_hours_ends_the_call(
    server: Server, client: DryadClient, file: RemoteFile, tmp_path: Path, pauses: list[float]
) -> None:
    server.replies = [answer(429, Retry_After="7200")]
    with pytest.raises(ValueError, match=r"answers 429 Too Many Requests; it asks for a pause of 7200 s$"):
        client.fetch(file, tmp_path)
    assert pauses == []


def test_the_token_goes_to_the_server_and_not_where_it_redirects(
    server: Server, client: DryadClient, file: RemoteFile, tmp_path: Path
) -> None:
    server.files["elsewhere"] = CONTENT
    server.replies = [answer(302, Location="/download/elsewhere")]
    (tmp_path / "one.bin.part").write_bytes(CONTENT[:100])
    assert client.fetch(file, tmp_path).read_bytes() == CONTENT
    first, second = server.downloads()
    assert first["Authorization"] == f"Bearer {TOKEN}"
    assert "Authorization" not in second
    assert second["Range"] == "bytes=100-"


def test_a_page_instead_of_the_file_is_no_file(
    server: Server, client: DryadClient, file: RemoteFile, tmp_path: Path
) -> None:
    server.replies = [answer(200)]
    with pytest.raises(ValueError, match=r"^one.bin: the server sends 2 bytes, expected 102400$"):
        client.fetch(file, tmp_path)
