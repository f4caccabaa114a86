"""Does a folder of sessions keep to the layout? What no single file can tell: names of folders, links, odd entries."""

import os
import re
from collections.abc import Iterable
from datetime import date
from pathlib import Path

from mode_ssm.data.t15_format import SPLITS, session_file

_DATE = re.compile(r"(.*\.)?(\d{4})\.(\d{1,2})\.(\d{1,2})")


def check_session_names(root: Path, names: Iterable[str]) -> None:
    """Sessions are ordered by name, so a date in a name has to be one, with its zeros; names without are free.

    Raises `ValueError` in one line, also for two names that differ in case only: on many disks they are one folder.
    """
    by_lower: dict[str, str] = {}
    for name in sorted(set(names)):
        match = _DATE.fullmatch(name)
        if match is not None:
            year, month, day = (int(number) for number in match.groups()[1:])
            try:
                expected = f"{match[1] or ''}{date(year, month, day):%Y.%m.%d}"
            except ValueError as error:
                raise ValueError(f"{root / name}: the session's name holds no date, YYYY.MM.DD ({error})") from None
            if name != expected:
                raise ValueError(f"{root / name}: sessions are ordered by name; rename it to {expected}")
        other = by_lower.setdefault(name.lower(), name)
        if other != name:
            raise ValueError(f"{root} holds the sessions {other} and {name}, which differ in case only; rename one")


def check_entries(root: Path) -> None:
    """Raises `ValueError` in one line for a link to nowhere, and for what has a recording's name but is no file."""
    for folder in sorted(root.iterdir()):
        if folder.name.startswith("."):
            continue
        for path in (folder, *(session_file(root, folder.name, split) for split in SPLITS)):
            try:
                exists = path.exists()
            except PermissionError:
                raise ValueError(f"{folder} cannot be read: permission denied") from None
            if path.is_symlink() and not exists:
                raise ValueError(f"{path} is a link to {os.readlink(path)}, which does not exist")
            if path != folder and exists and not path.is_file():
                raise ValueError(f"{path} is not a file")
