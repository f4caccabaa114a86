"""scripts/download_data.py as a user calls it."""

import io
import shutil
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
from dryad_server import TOKEN, Server, closed_port

from mode_ssm.data import download
from scripts import download_data

Disk = namedtuple("Disk", "free")


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
