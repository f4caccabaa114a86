"""Files of a dataset on a server with Dryad's API: what there is, and downloads that go on where they stopped.

A file arrives as `<name>.part` and takes its name once size and checksum are those of the listing; `<name>.md5` (or
.sha256 ...) beside it remembers that. The API is described at https://datadryad.org/api; Dryad lists files to everybody
and gives them to those who send the access token of a free account.
"""

import errno
import hashlib
import http.client
import json
import logging
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

DRYAD = "https://datadryad.org"
T15_DOI = "10.5061/dryad.dncjsxm85"
TOKEN_VARIABLE = "DRYAD_TOKEN"

TIMEOUT_SECONDS = 60.0
CHUNK_BYTES = 1 << 20
LISTING_TRIES = 3
TRIES = 6  # of a download: in a row without one more byte
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 600.0
_PASSING_STATUS = frozenset((408, 429, 500, 502, 503, 504))
_KEPT = "what has arrived stays, the same call goes on"
_DIGESTS = frozenset(("md5", "sha1", "sha256", "sha384", "sha512"))

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """One file of a dataset. size in bytes; digest in hexadecimal, None where the listing has none of a known type."""

    name: str
    size: int
    url: str
    digest_type: str | None
    digest: str | None


class UnreachableError(Exception):
    """No connection to the server: offline, most likely."""


class _PassingError(Exception):
    """A fault that another try may not meet. pause: seconds that the server asks for."""

    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


class _NoConnectionError(_PassingError):
    pass


class DryadClient:
    """Talks to one server. token: sent to that server only, never to where its downloads are redirected."""

    def __init__(
        self, server: str = DRYAD, token: str | None = None, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.server = server.rstrip("/")
        self._token = token
        self._sleep = sleep

    def list_files(self, doi: str) -> list[RemoteFile]:
        """Files of the newest version. Raises `UnreachableError` offline, `ValueError` in one line for other faults."""
        versions_url = f"{self.server}/api/v2/datasets/{urllib.parse.quote(f'doi:{doi}', safe='')}/versions"
        try:
            version = self._json(versions_url)["_embedded"]["stash:versions"][-1]
            url: str | None = self._link(version, "stash:files")
            files: list[RemoteFile] = []
            while url is not None:
                page = self._json(url)
                files += [self._remote_file(entry) for entry in page["_embedded"]["stash:files"]]
                url = self._link(page, "next") if "next" in page.get("_links", {}) else None
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{self.server} lists doi:{doi} in a form that is not understood ({error!r})") from None
        return files

    def fetch(self, file: RemoteFile, folder: Path, on_progress: Callable[[int], None] = lambda done: None) -> Path:
        """Bring `file` into `folder`, going on behind what is there, and return its path; a checked file is left alone.

        on_progress: called with the bytes that are there so far. Raises `ValueError` in one line: refused, not found,
        another checksum (what came is removed then), disk full (what came stays).
        """
        target, part = folder / file.name, part_of(file, folder)
        try:
            if is_complete(file, folder):
                on_progress(file.size)
                return target
            folder.mkdir(parents=True, exist_ok=True)
            self._complete_part(file, part, on_progress)
            if file.digest is not None:
                found = _digest(part, file)
                if found != file.digest:
                    part.unlink()
                    raise ValueError(
                        f"{file.name}: {file.digest_type} is {found}, expected {file.digest}; it was removed, try again"
                    )
                _checked_mark(file, folder).write_text(_mark(file), encoding="utf-8")
            os.replace(part, target)
        except OSError as error:
            kept = f"; {_KEPT}" if error.errno == errno.ENOSPC else ""
            raise ValueError(f"{error.filename or part}: {str(error.strerror).lower()}{kept}") from None
        except UnreachableError as error:
            raise ValueError(f"{file.name}: {error}; {_KEPT}") from None
        return target

    def _complete_part(self, file: RemoteFile, part: Path, on_progress: Callable[[int], None]) -> None:
        if part.exists() and part.stat().st_size > file.size:  # left over from another version of the file
            part.unlink()
        part.touch()

        def more() -> None:
            self._append(file, part, on_progress)
            if (size := part.stat().st_size) < file.size:
                raise _PassingError(f"{file.name}: the connection ended after {size:,} of {file.size:,} bytes")

        self._persist(more, TRIES, lambda: part.stat().st_size)

    def _append(self, file: RemoteFile, part: Path, on_progress: Callable[[int], None]) -> None:
        done = part.stat().st_size
        on_progress(done)
        if done == file.size:
            return
        with self._open(file.url, start=done) as response:
            resumed = response.status == http.client.PARTIAL_CONTENT
            if not resumed:  # the server starts from the beginning
                done = 0
            length = response.headers.get("Content-Length")
            if length is not None and done + int(length) != file.size:
                raise ValueError(f"{file.name}: the server sends {length} bytes, expected {file.size - done}")
            with part.open("ab" if resumed else "wb") as out:
                for chunk in _chunks(response, file.name):
                    done += len(chunk)
                    if done > file.size:
                        raise ValueError(f"{file.name}: the server sends more than the {file.size} bytes listed")
                    out.write(chunk)
                    on_progress(done)

    def _json(self, url: str) -> Any:
        def ask() -> Any:
            with self._open(url) as response:
                content = b"".join(_chunks(response, url))
            try:
                return json.loads(content)
            except ValueError:
                raise ValueError(f"{url} does not answer in JSON; does {self.server} have Dryad's API?") from None

        return self._persist(ask, LISTING_TRIES)

    def _persist(self, attempt: Callable[[], Result], tries: int, progress: Callable[[], int] = lambda: 0) -> Result:
        """Try again after passing faults, with growing pauses; whoever makes progress begins to count anew."""
        failures = 0
        while True:
            before = progress()
            try:
                return attempt()
            except _PassingError as fault:
                failures = 1 if progress() > before else failures + 1
                pause = FIRST_PAUSE_SECONDS * 2 ** (failures - 1) if fault.pause is None else fault.pause
                if failures == tries or pause > LONGEST_PAUSE_SECONDS:
                    message = f"{fault}; tried {failures} times" if failures > 1 else str(fault)
                    message += f"; it asks for a pause of {pause:.0f} s" if pause > LONGEST_PAUSE_SECONDS else ""
                    if isinstance(fault, _NoConnectionError):
                        raise UnreachableError(message) from None
                    raise ValueError(message) from None
                logger.warning("%s; next try in %.0f s", fault, pause)
                self._sleep(pause)

    def _open(self, url: str, start: int = 0) -> http.client.HTTPResponse:
        request = urllib.request.Request(url, headers={"User-Agent": "mode-ssm"})
        if start:
            request.add_header("Range", f"bytes={start}-")
        if self._token is not None:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            with error:
                if error.code in _PASSING_STATUS:
                    raise _PassingError(_answer(url, error), _asked_pause(error.headers.get("Retry-After"))) from None
                hint = ""
                if error.code in (401, 403):
                    hint = f"; put the access token of a free account ({self.server}/api) into {TOKEN_VARIABLE}"
                raise ValueError(_answer(url, error) + hint) from None
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise _NoConnectionError(f"{self.server} cannot be reached ({reason})") from None
        return response

    def _link(self, entry: dict[str, Any], name: str) -> str:
        url = str(urllib.parse.urljoin(f"{self.server}/", entry["_links"][name]["href"]))
        if urllib.parse.urlsplit(url)[:2] != urllib.parse.urlsplit(self.server)[:2]:
            raise ValueError(f"{self.server} names {url}, which is another server")
        return url

    def _remote_file(self, entry: dict[str, Any]) -> RemoteFile:
        name = entry["path"]
        if name != Path(name).name or name in ("", ".", ".."):
            raise ValueError(f"{self.server} lists a file {name!r}, which is no plain file name")
        kind = str(entry.get("digestType") or "").lower().replace("-", "")
        checkable = kind in _DIGESTS and bool(entry.get("digest"))
        return RemoteFile(
            name=name,
            size=int(entry["size"]),
            url=self._link(entry, "stash:download"),
            digest_type=kind if checkable else None,
            digest=str(entry["digest"]).lower() if checkable else None,
        )


def part_of(file: RemoteFile, folder: Path) -> Path:
    """Where the bytes of an unfinished download lie."""
    return folder / f"{file.name}.part"


def is_complete(file: RemoteFile, folder: Path) -> bool:
    """Whether `file` lies in `folder`. One that was put there by hand is read and checked once.

    Raises `ValueError` in one line for a file of that name with other content.
    """
    target = folder / file.name
    if not target.is_file():
        return False
    if (size := target.stat().st_size) != file.size:
        raise ValueError(f"{target} has {size} bytes, expected {file.size}; remove it to download it again")
    if file.digest is None:
        return True
    mark = _checked_mark(file, folder)
    if not mark.is_file() or mark.read_text(encoding="utf-8") != _mark(file):
        if (found := _digest(target, file)) != file.digest:
            raise ValueError(
                f"{target}: {file.digest_type} is {found}, expected {file.digest}; remove it to download it again"
            )
        mark.write_text(_mark(file), encoding="utf-8")
    return True


def bytes_to_come(file: RemoteFile, folder: Path) -> int:
    """What a download still has to bring."""
    if (folder / file.name).is_file():
        return 0
    part = part_of(file, folder)
    return max(0, file.size - (part.stat().st_size if part.exists() else 0))


def _checked_mark(file: RemoteFile, folder: Path) -> Path:
    return folder / f"{file.name}.{file.digest_type}"


def _mark(file: RemoteFile) -> str:
    return f"{file.digest}  {file.name}\n"  # as md5sum and its kin write and check it


def _digest(path: Path, file: RemoteFile) -> str:
    assert file.digest_type is not None
    with path.open("rb") as content:
        digest: str = hashlib.file_digest(content, file.digest_type).hexdigest()
    return digest


def _chunks(response: http.client.HTTPResponse, what: str) -> Iterator[bytes]:
    try:
        while chunk := response.read(CHUNK_BYTES):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _PassingError(f"{what}: the connection broke ({error})") from None


def _answer(url: str, error: urllib.error.HTTPError) -> str:
    return f"{url} answers {error.code} {error.reason}"


def _asked_pause(header: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date."""
    if header is None:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
