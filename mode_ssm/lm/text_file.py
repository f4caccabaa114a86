"""Sentences of a text file, one a line, plain or compressed by gzip."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from mode_ssm.vocab import normalise_sentence


def read_sentences(path: str | Path) -> Iterator[str]:
    """The sentences of a file, normalised; lines that hold no word are skipped.

    Raises a one-line `ValueError` for a folder, for what is not UTF-8 text or not a whole gzip file, and, after the
    last line, for a file without any sentence.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: a folder, not a text file")
    empty = True
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for line in file:
                if sentence := normalise_sentence(line):
                    empty = False
                    yield sentence
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason}); convert it, e.g. iconv -f latin1") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error})") from None
    if empty:
        raise ValueError(f"{path}: no sentences; expected one a line")
