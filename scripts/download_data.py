"""Download the Brain-to-Text '25 recordings from Dryad, check them, and unpack them into one folder a session.

    DRYAD_TOKEN=... uv run scripts/download_data.py
    uv run scripts/download_data.py --list
    uv run scripts/download_data.py --only '*neuralData*' --root /disk/t15
    uv run scripts/download_data.py --unpack t15_copyTask_neuralData.zip      # one that was downloaded by hand

An interrupted call goes on where it stopped; a call after a finished one does nothing. Dryad gives files to those who
have a free account: its access token, from the account's page on datadryad.org, is read from DRYAD_TOKEN.
"""

import argparse
import fnmatch
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from mode_ssm.compose import run_main
from mode_ssm.data.disk_room import check_room
from mode_ssm.data.download import (
    DRYAD,
    T15_DOI,
    TOKEN_VARIABLE,
    DryadClient,
    RemoteFile,
    UnreachableError,
    bytes_to_come,
    part_of,
)
from mode_ssm.data.unpacking import recordings, unpack

RECORDINGS_ARCHIVE = "t15_copyTask_neuralData.zip"


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = _parser().parse_args(arguments)
    if parsed.unpack is not None:
        _unpack(parsed.unpack, parsed.root)
        return
    client = DryadClient(parsed.server, os.environ.get(TOKEN_VARIABLE) or None)
    try:
        files = _chosen(client.list_files(parsed.doi), parsed.only)
        if parsed.list:
            Console().print(_table(files, parsed.downloads))
            return
        _check_room(files, parsed.downloads, parsed.root)
        archives = _download(client, files, parsed.downloads)
    except UnreachableError as error:
        print(f"error: {error}\n{_by_hand(parsed)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"stopped; what has arrived stays in {parsed.downloads}, the same call goes on", file=sys.stderr)
        raise SystemExit(130) from None
    for archive in archives:
        if recordings(archive):
            _unpack(archive, parsed.root)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/t15"), help="folder of the sessions (default data/t15)")
    parser.add_argument(
        "--downloads", type=Path, default=Path("data/downloads"), help="folder of the archives (default data/downloads)"
    )
    parser.add_argument("--list", action="store_true", help="show what there is, and what of it is here")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="take files with such names, as a shell would")
    parser.add_argument("--unpack", type=Path, metavar="ARCHIVE", help="unpack an archive that is here; no network")
    parser.add_argument("--doi", default=T15_DOI, help=f"of another dataset (default {T15_DOI})")
    parser.add_argument("--server", default=DRYAD, help=f"with Dryad's API (default {DRYAD})")
    return parser


def _chosen(files: list[RemoteFile], pattern: str) -> list[RemoteFile]:
    chosen = [file for file in files if fnmatch.fnmatch(file.name, pattern)]
    if not chosen:
        raise ValueError(f"no file is named like --only {pattern}; there are {', '.join(file.name for file in files)}")
    return chosen


def _table(files: list[RemoteFile], downloads: Path) -> Table:
    table = Table(caption=f"in {downloads}")
    table.add_column("file")
    table.add_column("MB", justify="right")
    table.add_column("checksum")
    table.add_column("here", justify="right")
    for file in files:
        part = part_of(file, downloads)
        if (downloads / file.name).is_file():
            here = "yes"
        else:
            here = f"{100 * part.stat().st_size // max(file.size, 1)} %" if part.exists() else "no"
        table.add_row(file.name, f"{file.size / 1e6:,.1f}", file.digest_type or "none", here)
    return table


def _check_room(files: list[RemoteFile], downloads: Path, root: Path) -> None:
    to_come = sum(bytes_to_come(file, downloads) for file in files)
    # How much an archive holds is not known before it is here, but recordings hardly become smaller in one.
    to_unpack = 0 if root.exists() else sum(file.size for file in files if file.name.endswith(".zip"))
    check_room({downloads: to_come, root: to_unpack})


def _download(client: DryadClient, files: list[RemoteFile], downloads: Path) -> list[Path]:
    """Fetch one after the other; returns the zip archives among them."""
    archives: list[Path] = []
    with _progress() as progress:
        task = progress.add_task("", total=sum(file.size for file in files))
        before = 0
        for file in files:
            progress.update(task, description=file.name)
            path = client.fetch(file, downloads, partial(_show, progress, task, before))
            before += file.size
            if file.digest is None:
                progress.console.print(f"{file.name}: the listing has no checksum; its size was checked")
            if path.suffix == ".zip":
                archives.append(path)
    print(f"{len(files)} file{'s' if len(files) > 1 else ''} in {downloads}, complete")
    return archives


def _show(progress: Progress, task: TaskID, before: int, done: int) -> None:
    progress.update(task, completed=before + done)


def _unpack(archive: Path, root: Path) -> None:
    members = recordings(archive)
    with _progress() as progress:
        task = progress.add_task(f"unpacking {archive.name}", total=sum(m.file_size for m in members.values()))
        written = unpack(archive, root, partial(_show, progress, task, 0))
        progress.update(task, completed=progress.tasks[0].total)
    sessions = len({Path(name).parent for name in members})
    done = "unpacked" if written else "unchanged"
    print(f"{root}: {sessions} sessions, {len(members)} files, {done}\nnext: uv run scripts/prepare_data.py --help")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
        console=Console(stderr=True),
    )  # fmt: skip


def _by_hand(parsed: argparse.Namespace) -> str:
    name = RECORDINGS_ARCHIVE if parsed.doi == T15_DOI else "the archive"
    archive = parsed.downloads / (RECORDINGS_ARCHIVE if parsed.doi == T15_DOI else "ARCHIVE.zip")
    return (
        "by hand, on a machine with a browser:\n"
        f"  1. open {parsed.server}/dataset/doi:{parsed.doi}\n"
        f"  2. download {name} and put it here as {archive}\n"
        f"  3. uv run scripts/download_data.py --unpack {archive} --root {parsed.root}"
    )


if __name__ == "__main__":
    run_main(main)
