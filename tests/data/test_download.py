"""Downloads against a server on this machine that behaves, breaks off, refuses, lies, or is not there."""

import errno
import hashlib
import io
import json
import shutil
import socket
import threading
import urllib.parse
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mode_ssm.data import download
from mode_ssm.data.download import DryadClient, RemoteFile, UnreachableError, bytes_to_come, is_complete
from scripts import download_data

CONTENT = bytes(range(256)) * 400  # 102,400 bytes
TOKEN = "one-token"
Disk = namedtuple("Disk", "free")
Reply = Callable[["Handler", bytes], bool]  # whether it has answered instead of the usual way


class Handler(BaseHTTPRequestHandler):
    server: "Server"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = urllib.parse.unquote(self.path)
        self.server.requests.append((path, dict(self.headers)))
        if path.startswith("/api/v2/datasets/"):
            self.send_json(
                {"_embedded": {"stash:versions": [{"_links": {}}, self.server.links("stash:files", "/files")]}}
            )
        elif path.startswith("/files"):
            self.send_json(self.server.listing(second_page="page=2" in path))
        else:
            content = self.server.files[path.removeprefix("/download/")]
            replies = self.server.replies
            if not (replies and replies.pop(0)(self, content)):
                self.send_content(content)

    def send_json(self, value: object) -> None:
        self.send_bytes(200, json.dumps(value).encode())

    def send_bytes(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def send_content(self, content: bytes) -> None:
        asked = self.headers.get("Range")
        if asked is None:
            self.send_bytes(200, content)
        else:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_bytes(206, content[start:], Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}")


class Server(ThreadingHTTPServer):
    """`files` by name; `replies`: what the next downloads meet, one each; `requests`: (path, headers) of all."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"one.bin": CONTENT}
        self.digest_type = "md5"
        self.digests: dict[str, str] = {}
        self.replies: list[Reply] = []
        self.requests: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def links(self, name: str, href: str) -> dict[str, object]:
        return {"_links": {name: {"href": href}}}

    def listing(self, second_page: bool) -> dict[str, object]:
        entries = [
            {
                "path": name,
                "size": len(content),
                "digestType": self.digest_type,
                "digest": self.digests.get(name) or hashlib.new(self.digest_type.replace("-", ""), content).hexdigest(),
                **self.links("stash:download", f"/download/{name}"),
            }
            for name, content in self.files.items()
        ]
        pages = self.links("next", "/files?page=2") if len(entries) > 1 and not second_page else {"_links": {}}
        return {"_embedded": {"stash:files": entries[1:] if second_page else entries[:1]}, **pages}

    def downloads(self) -> list[dict[str, str]]:
        return [headers for path, headers in self.requests if path.startswith("/download/")]


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def client(server: Server, pauses: list[float]) -> DryadClient:
    return DryadClient(server.url, TOKEN, sleep=pauses.append)


@pytest.fixture
def file(client: DryadClient) -> RemoteFile:
    return client.list_files("10.1/x")[0]


def answer(status: int, **headers: str) -> Reply:
    def reply(handler: Handler, content: bytes) -> bool:
        handler.send_bytes(status, b"no", **headers)
        return True

    return reply


def break_off_after(number: int) -> Reply:
    """Promises all that was asked for, sends `number` bytes, and hangs up."""

    def reply(handler: Handler, content: bytes) -> bool:
        start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        handler.wfile.write(content[start : start + number])
        return True

    return reply


def test_the_newest_version_is_listed_over_all_pages(server: Server, client: DryadClient) -> None:
    server.files = {"a.zip": b"aa", "b.pkl": b"bbb"}
    server.digest_type = "sha-256"
    files = client.list_files("10.5061/dryad.x")
    assert [(file.name, file.size, file.digest_type) for file in files] == [
        ("a.zip", 2, "sha256"),
        ("b.pkl", 3, "sha256"),
    ]
    assert files[1].digest == hashlib.sha256(b"bbb").hexdigest()
    assert files[1].url == f"{server.url}/download/b.pkl"
    assert server.requests[0][0] == "/api/v2/datasets/doi:10.5061/dryad.x/versions"


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


@pytest.mark.parametrize("name", ["../one.bin", "/etc/one.bin", "..", "a/b.bin"])
def test_names_that_lead_elsewhere_are_refused(server: Server, client: DryadClient, name: str) -> None:
    server.files = {name: CONTENT}
    with pytest.raises(ValueError, match="which is no plain file name"):
        client.list_files("10.1/x")


def test_answers_that_are_no_listing_end_in_one_line(
    server: Server, client: DryadClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "listing", lambda second_page: {"error": "what?"})
    with pytest.raises(ValueError, match=r"lists doi:10.1/x in a form that is not understood \(KeyError") as error:
        client.list_files("10.1/x")
    assert "\n" not in str(error.value)
    monkeypatch.setattr(
        Handler, "send_json", lambda self, value: self.send_bytes(200, b"<html>are you a robot?</html>")
    )
    with pytest.raises(ValueError, match=r"does not answer in JSON; does http://127.0.0.1:\d+ have Dryad's API\?$"):
        client.list_files("10.1/x")


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_offline_is_said_after_three_tries(pauses: list[float]) -> None:
    with pytest.raises(UnreachableError, match=r"cannot be reached \(.*refused\); tried 3 times$"):
        DryadClient(f"http://127.0.0.1:{closed_port()}", sleep=pauses.append).list_files("10.1/x")
    assert pauses == [1.0, 2.0]


def zip_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


UNPACKED = {"t15.2023.08.11/data_train.hdf5": b"first", "t15.2023.08.13/data_val.hdf5": b"second"}
RECORDINGS = zip_of({f"hdf5_data_final/{name}": content for name, content in UNPACKED.items()})


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def arguments(server: str, folder: Path) -> list[str]:
    return ["--server", server, "--root", str(folder / "t15"), "--downloads", str(folder / "downloads")]


def test_the_script_downloads_unpacks_and_does_nothing_the_second_time(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRYAD_TOKEN", TOKEN)
    server.files = {"recordings.zip": RECORDINGS, "weights.zip": zip_of({"weights/args.yaml": b"a: 1"})}
    download_data.main(arguments(server.url, tmp_path))
    said = capsys.readouterr().out
    assert f"2 files in {tmp_path / 'downloads'}, complete" in said
    assert f"{tmp_path / 't15'}: 2 sessions, 2 files, unpacked" in said
    assert tree(tmp_path / "t15") == UNPACKED
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    asked = len(server.downloads())
    download_data.main(arguments(server.url, tmp_path))
    assert "2 sessions, 2 files, unchanged" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert len(server.downloads()) == asked


def test_the_script_lists_and_chooses(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    server.files = {"a.zip": b"z" * 2_500_000, "b.pkl": b"p", "c.pkl": b"cc"}
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "a.zip.part").write_bytes(b"z" * 500_000)
    (tmp_path / "downloads" / "b.pkl").write_bytes(b"p")
    download_data.main([*arguments(server.url, tmp_path), "--list"])
    rows = [
        line.strip("│ ").split() for line in capsys.readouterr().out.splitlines() if ".zip" in line or ".pkl" in line
    ]
    assert [[cell for cell in row if cell != "│"] for row in rows] == [
        ["a.zip", "2.5", "md5", "20", "%"],
        ["b.pkl", "0.0", "md5", "yes"],
        ["c.pkl", "0.0", "md5", "no"],
    ]
    assert server.downloads() == []
    download_data.main([*arguments(server.url, tmp_path), "--only", "c*"])
    assert (tmp_path / "downloads" / "c.pkl").read_bytes() == b"cc"
    assert len(server.downloads()) == 1
    with pytest.raises(ValueError, match=r"^no file is named like --only d\*; there are a.zip, b.pkl, c.pkl$"):
        download_data.main([*arguments(server.url, tmp_path), "--only", "d*"])


def test_the_script_does_not_start_without_room_for_archive_and_recordings(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files = {"recordings.zip": b"z" * 12_000_000, "b.pkl": b"p" * 6_000_000}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(free=29_000_000))
    with pytest.raises(ValueError, match=r"downloads and .*t15 need 0.03 GB, but the disk has 0.03 GB free$"):
        download_data.main(arguments(server.url, tmp_path))
    assert server.downloads() == []
    assert list(tmp_path.iterdir()) == []


def test_offline_the_script_says_what_to_do_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "FIRST_PAUSE_SECONDS", 0.0)
    with pytest.raises(SystemExit) as stop:
        download_data.main(arguments(f"http://127.0.0.1:{closed_port()}", tmp_path))
    assert stop.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "next try" not in line]
    assert said[0].startswith("error: http://127.0.0.1:")
    assert "cannot be reached" in said[0]
    assert said[2].endswith("/dataset/doi:10.5061/dryad.dncjsxm85")
    archive = tmp_path / "downloads" / "t15_copyTask_neuralData.zip"
    assert said[3] == f"  2. download t15_copyTask_neuralData.zip and put it here as {archive}"
    assert said[4] == f"  3. uv run scripts/download_data.py --unpack {archive} --root {tmp_path / 't15'}"
    assert len(said) == 5
    archive.parent.mkdir()
    archive.write_bytes(RECORDINGS)
    download_data.main(said[4].removeprefix("  3. uv run scripts/download_data.py ").split())
    assert tree(tmp_path / "t15") == UNPACKED
