"""Sentences of a text file, one a line, plain or compressed by gzip."""

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mode_ssm.vocab import normalise_sentence


def read_lines(path: str | Path) -> Iterator[str]:
    """The lines of a file as they are; a one-line `ValueError` for a folder, for what is not UTF-8 text or not a whole
    gzip file."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: a folder, not a text file")
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason}); convert it, e.g. iconv -f latin1") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error})") from None


def read_sentences(path: str | Path, progress: Callable[[int], None] | None = None) -> Iterator[str]:
    """The sentences of a file, normalised; lines that hold no word are skipped.

    `progress(characters)` is called for every line. Raises what `read_lines` raises and, after the last line,
    `ValueError` for a file without any sentence.
    """
    empty = True
    for line in read_lines(path):
        if progress is not None:
            progress(len(line))
        if sentence := normalise_sentence(line):
            empty = False
            yield sentence
    if empty:
        raise ValueError(f"{path}: no sentences; expected one a line")


def read_texts(paths: Iterable[str | Path]) -> Iterator[str]:
    """The sentences of several files, one after the other; see `read_sentences`."""
    for path in paths:
        yield from read_sentences(path)
