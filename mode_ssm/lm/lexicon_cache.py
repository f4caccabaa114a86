"""Arrays that are slow to make and quick to read, kept in the user's cache folder by what they were made from.

A file's name carries a hash of all that its content depends on, so that nothing ever has to be invalidated. It is
written under a name of its own and renamed: processes that make the same one at once do not see each other.
"""

import hashlib
import logging
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from mode_ssm.lm.lexicon_file import Pronunciation
from mode_ssm.ops.cpu.build import cache_folder

Arrays = dict[str, np.ndarray]

log = logging.getLogger(__name__)


def fingerprint(*parts: bytes | str | Path) -> str:
    """Hash of bytes, texts and the contents of files, in this order."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:20]


def cached(name: str, build: Callable[[], Arrays]) -> Arrays:
    """The arrays kept as `name`, made by `build` and kept where they are not there or cannot be read.

    Where the cache folder cannot be written they are made anew in every process, with a warning.
    """
    path = cache_folder() / f"{name}.npz"
    try:
        with np.load(path) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s cannot be read and is made anew: %s", path, error)
    arrays = build()
    try:
        _write(path, arrays)
    except OSError as error:
        log.warning("cache folder %s: %s; %s is made anew in every process", path.parent, error.strerror, name)
    return arrays


def _write(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def pack_entries(entries: Iterable[tuple[str, Sequence[Pronunciation]]]) -> Arrays:
    """words uint8: the words in UTF-8, each followed by a line feed; pronunciations (W,): how many each has;
    lengths (P,): phones in each; phones uint8: class ids of all, one after the other."""
    words: list[str] = []
    counts: list[int] = []
    pronunciations: list[Pronunciation] = []
    for word, own in entries:
        words.append(word)
        counts.append(len(own))
        pronunciations += own
    return {
        "words": np.frombuffer("".join(f"{word}\n" for word in words).encode(), np.uint8),
        "pronunciations": np.array(counts, np.int32),
        "lengths": np.array([len(phones) for phones in pronunciations], np.int32),
        "phones": np.frombuffer(b"".join(map(bytes, pronunciations)), np.uint8),
    }


def unpack_entries(arrays: Arrays) -> dict[str, tuple[Pronunciation, ...]]:
    """What `pack_entries` was given."""
    words = arrays["words"].tobytes().decode().split("\n")[:-1]
    phones = arrays["phones"].tobytes()
    ends = np.cumsum(arrays["lengths"]).tolist()
    pronunciations = [tuple(phones[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    lasts = np.cumsum(arrays["pronunciations"]).tolist()
    rows = zip(words, [0, *lasts], lasts, strict=False)
    return {word: tuple(pronunciations[first:last]) for word, first, last in rows}
