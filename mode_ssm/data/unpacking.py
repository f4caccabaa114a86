"""The recordings of a zip archive as a dataset folder, which appears whole or not at all."""

import errno
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from mode_ssm.data.disk_room import check_room
from mode_ssm.data.t15_format import SPLITS

CHUNK_BYTES = 1 << 20
_RECORDING = re.compile(rf"(?:.+/)?([^/]+/data_(?:{'|'.join(SPLITS)})\.hdf5)")


def recordings(archive: Path) -> dict[str, zipfile.ZipInfo]:
    """{`<session>/data_<split>.hdf5`: member}, whatever folders of the archive lie above; empty where it holds none.

    Raises `ValueError` in one line for a file that is no zip archive and for names that lead out of a folder.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{archive} cannot be read as a zip archive ({_reason(error)})") from None
    found: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(f"{archive} holds the unsafe name {member.filename!r}; nothing was unpacked")
        match = _RECORDING.fullmatch(member.filename)
        if match is None or "__MACOSX" in name.parts:
            continue
        if match[1] in found:
            raise ValueError(f"{archive} holds {match[1]} twice; nothing was unpacked")
        found[match[1]] = member
    return found


def unpack(archive: Path, root: Path, on_progress: Callable[[int], None] = lambda done: None) -> bool:
    """Write the recordings of `archive` to `root`. False where they are there already.

    on_progress: called with the bytes written so far. Raises `ValueError` in one line, leaving nothing behind: an
    archive without recordings or with broken ones, a folder that holds something else, a full disk.
    """
    members = recordings(archive)
    if not members:
        raise ValueError(f"{archive} holds no <session>/data_{{{','.join(SPLITS)}}}.hdf5")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        for name, member in members.items():
            path = root / name
            if not path.is_file() or path.stat().st_size != member.file_size:
                raise ValueError(f"{root} exists, but its {name} is not that of {archive}; remove or rename {root}")
        return False
    partial = root.with_name(f".{root.name}.unpacking")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a call that was killed
        check_room({root: sum(member.file_size for member in members.values())})
        _write(archive, members, partial, on_progress)
        os.rename(partial, root)  # an empty folder there is replaced
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{archive} is damaged ({_reason(error)}); nothing was unpacked") from None
    except OSError as error:
        full = "; nothing was unpacked" if error.errno == errno.ENOSPC else ""
        raise ValueError(f"{error.filename or root}: {_reason(error)}{full}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _write(
    archive: Path, members: dict[str, zipfile.ZipInfo], folder: Path, on_progress: Callable[[int], None]
) -> None:
    done = 0
    with zipfile.ZipFile(archive) as opened:
        for name, member in members.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(member) as source, path.open("wb") as target:
                while chunk := source.read(CHUNK_BYTES):  # the last one checks the member's CRC
                    target.write(chunk)
                    done += len(chunk)
                    on_progress(done)


def _reason(error: Exception) -> str:
    return str(error.strerror).lower() if isinstance(error, OSError) and error.strerror else str(error)
