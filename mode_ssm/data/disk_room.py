"""Is there room on the disks before hours of writing begin?"""

import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path


def check_room(needs: Mapping[Path, int]) -> None:
    """needs: {folder: bytes to be written there}; folders need not exist, and those of one disk share its room.

    Raises `ValueError` in one line for the first disk with less.
    """
    by_disk: dict[int, list[Path]] = defaultdict(list)
    for folder in needs:
        by_disk[_existing(folder).stat().st_dev].append(folder)
    for folders in by_disk.values():
        needed, free = sum(needs[folder] for folder in folders), shutil.disk_usage(_existing(folders[0])).free
        if free < needed:
            names = " and ".join(str(folder) for folder in folders)
            verb = "needs" if len(folders) == 1 else "need"
            raise ValueError(f"{names} {verb} {needed / 1e9:.2f} GB, but the disk has {free / 1e9:.2f} GB free")


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
