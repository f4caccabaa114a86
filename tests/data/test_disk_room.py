"""Room is counted by disk, and on the disks of folders that do not exist yet."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from mode_ssm.data.disk_room import check_room


class Usage(NamedTuple):
    free: int


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Paths that were asked about; each disk has 5 GB free."""
    paths: list[Path] = []

    def usage(path: Path) -> Usage:
        paths.append(path)
        return Usage(free=5_000_000_000)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return paths


def test_the_disk_of_a_folder_that_does_not_exist_yet_is_asked(tmp_path: Path, asked: list[Path]) -> None:
    check_room({tmp_path / "a" / "b": 5_000_000_000})
    assert asked == [tmp_path]
    with pytest.raises(ValueError, match=r"/a/b needs 5.12 GB, but the disk has 5.00 GB free$"):
        check_room({tmp_path / "a" / "b": 5_123_000_000})


def test_folders_of_one_disk_share_its_room(tmp_path: Path, asked: list[Path]) -> None:
    check_room({tmp_path / "a": 2_000_000_000, tmp_path / "b": 3_000_000_000})
    with pytest.raises(ValueError, match=r"/a and .*/b need 6.00 GB, but the disk has 5.00 GB free$"):
        check_room({tmp_path / "a": 3_000_000_000, tmp_path / "b": 3_000_000_000})
