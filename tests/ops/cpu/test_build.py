"""Compiling at first use: once, cached, safe against a second process, and where nothing can be written."""

import ctypes
import logging
import multiprocessing
import os
from pathlib import Path

import pytest

from mode_ssm.ops.cpu.build import BuildError, build, cache_folder, find_compiler


def has_compiler() -> bool:
    try:
        find_compiler()
    except BuildError:
        return False
    return True


pytestmark = pytest.mark.skipif(not has_compiler(), reason="no C compiler here")


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("MODE_SSM_CACHE", str(folder))
    return folder


def test_the_second_call_takes_what_the_first_has_built(cache: Path) -> None:
    path = build("portable")
    written = path.stat().st_mtime_ns
    assert path.parent == cache
    assert build("portable") == path
    assert path.stat().st_mtime_ns == written
    assert [file.name for file in cache.iterdir()] == [path.name]  # nothing temporary stays
    assert ctypes.CDLL(str(path)).ssd_forward


def test_other_flags_or_another_compiler_build_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build("portable")
    monkeypatch.setenv("CC", " ".join([*find_compiler(), "-g0"]))
    assert build("portable") != first


def build_here(folder: str) -> str:
    os.environ["MODE_SSM_CACHE"] = folder
    path = build("portable")
    return f"{path.name} {len(path.read_bytes())} {bool(ctypes.CDLL(str(path)).ssd_forward)}"


def test_processes_that_build_at_once_do_not_disturb_each_other(cache: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        results = pool.map(build_here, [str(cache)] * 3)
    assert len(set(results)) == 1
    assert len(list(cache.iterdir())) == 1


def test_a_cache_folder_that_cannot_be_written_costs_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MODE_SSM_CACHE", str(tmp_path / "file" / "cache"))  # also root cannot write there
    with caplog.at_level(logging.WARNING):
        path = build("portable")
    assert ctypes.CDLL(str(path)).ssd_forward
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(tmp_path / "file" / "cache") in line
    assert "compiled anew in every process" in line


def test_the_cache_stands_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODE_SSM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("MODE_SSM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_folder() == tmp_path / "xdg" / "mode_ssm"


def test_a_compiler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(BuildError, match=r"no C compiler \(no-such-compiler\)"):
        build("portable")
