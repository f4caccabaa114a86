"""The ARPA text format of back-off models; its base-10 logarithms become natural ones at this door."""

import gzip
import math
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import IO

import numpy as np

from mode_ssm.lm.ngram_automaton import UNK, NGramTable

KENLM_MAGIC = b"mmap lm http://kheafield.com/code"
_LN10 = math.log(10.0)
_LOG10_ZERO = -99.0  # the format's way to write a probability of zero
_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 15


def write_arpa_tables(path: str | Path, words: Sequence[str], tables: Sequence[NGramTable]) -> None:
    """Write `tables`; back-off weights of all orders but the highest. Compressed where the name ends in `.gz`."""
    path = Path(path)
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        with (
            gzip.open(partial, "wt", 6, encoding="utf-8")
            if path.suffix == ".gz"
            else open(partial, "w", encoding="utf-8") as file
        ):
            file.write("\\data\\\n")
            file.writelines(f"ngram {k}={len(table.ids)}\n" for k, table in enumerate(tables, start=1))
            for k, table in enumerate(tables, start=1):
                file.write(f"\n\\{k}-grams:\n")
                for first in range(0, len(table.ids), _CHUNK):
                    _write_rows(file, words, table, slice(first, first + _CHUNK), highest=k == len(tables))
            file.write("\n\\end\\\n")
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


def _write_rows(file: IO[str], words: Sequence[str], table: NGramTable, rows: slice, *, highest: bool) -> None:
    log10_probs = np.maximum(table.log_prob[rows].astype(np.float64) / _LN10, _LOG10_ZERO).tolist()
    backoffs = (table.backoff[rows].astype(np.float64) / _LN10).tolist()
    for ids, log10_prob, backoff in zip(table.ids[rows].tolist(), log10_probs, backoffs, strict=True):
        tail = "" if highest else f"\t{backoff:.9g}"
        file.write(f"{log10_prob:.9g}\t{' '.join([words[i] for i in ids])}{tail}\n")


def read_arpa_tables(path: str | Path) -> tuple[tuple[str, ...], list[NGramTable]]:
    """Words and tables, sorted by word ids, of a file that is plain or compressed by gzip; read in pieces.

    Raises a one-line `ValueError` naming file and line.
    """
    with Path(path).open("rb") as raw:
        start = raw.read(len(KENLM_MAGIC))
        raw.seek(0)
        if start == KENLM_MAGIC:
            raise ValueError(f"{path}: a KenLM binary, not an ARPA file; mode_ssm.lm.kenlm_scorer.KenLMScorer opens it")
        with gzip.open(raw, "rb") if start.startswith(_GZIP) else raw as file:
            try:
                return _Reader(path, file).tables()
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise ValueError(f"{path}: not a whole gzip file ({error})") from None


class _Reader:
    """Non-empty lines of a file that know their number, and the sections that they make."""

    def __init__(self, path: str | Path, file: Iterable[bytes]) -> None:
        self._path = path
        self._file = iter(file)
        self._number = 0
        self._word_ids: dict[bytes, int] = {}

    def tables(self) -> tuple[tuple[str, ...], list[NGramTable]]:
        self._number = next((n for n, line in enumerate(self._file, start=1) if line.strip() == b"\\data\\"), 0)
        if self._number == 0:
            raise ValueError(f"{self._path}: no \\data\\ line; not an ARPA file")
        expected: list[int] = []
        while match := re.fullmatch(rb"ngram\s+(\d+)\s*=\s*(\d+)", line := self._next()):
            if int(match.group(1)) != len(expected) + 1:
                raise self._error("orders are not listed one after the other")
            expected.append(int(match.group(2)))
        tables: list[NGramTable] = []
        for k, count in enumerate(expected, start=1):
            if line != f"\\{k}-grams:".encode():
                raise self._error(f"expected \\{k}-grams: after {expected[: k - 1]} n-grams, found {_show(line)}")
            tables.append(self._section(k, count))
            line = self._next()
            if not line.startswith(b"\\"):
                raise self._error(f"not one of the {count} {k}-grams that the header announces: {_show(line)}")
        if not tables or line != b"\\end\\":
            raise self._error(f"expected \\end\\ after the {len(expected)}-grams, found {_show(line)}")
        while len(tables) > 1 and len(tables[-1].ids) == 0:
            tables.pop()
        words = [word.decode() for word in self._word_ids]
        return tuple(UNK if word == "<UNK>" else word for word in words), tables

    def _section(self, k: int, count: int) -> NGramTable:
        ids, values = np.empty((count, k), np.int32), np.zeros((count, 2))
        row = 0
        while row < count:
            first = self._number + 1
            lines = list(islice(self._file, min(_CHUNK, count - row)))
            if not lines:
                raise self._error("ends before \\end\\; not a whole ARPA file")
            self._number += len(lines)
            try:
                rows = self._parse(lines, k, ids[row:], values[row:])
            except (KeyError, ValueError):
                self._number = first - 1
                rows = self._parse_each(lines, k, row, count, ids[row:], values[row:])
            row += rows
        values[values[:, 0] <= _LOG10_ZERO, 0] = -np.inf
        order = np.lexsort(ids.T[::-1])
        ids, values = ids[order], values[order] * _LN10
        if k > 1 and (repeated := np.flatnonzero((ids[1:] == ids[:-1]).all(axis=1))).size:
            words = list(self._word_ids)
            ngram = " ".join(words[i].decode() for i in ids[repeated[0]])
            raise self._error(f"{ngram!r} occurs twice among the {k}-grams")
        return NGramTable(ids=ids, log_prob=values[:, 0], backoff=values[:, 1])

    def _parse(self, lines: list[bytes], k: int, ids: np.ndarray, values: np.ndarray) -> int:
        """Fill the first rows from lines of k + 1 or k + 2 fields; raises `ValueError` or `KeyError` for others."""
        count = len(lines)
        num_fields = _num_fields(lines)
        if not ((num_fields == k + 1) | (num_fields == k + 2)).all():
            raise ValueError
        words: dict[bytes, int] = {}
        for width in (k + 1, k + 2):
            rows = np.flatnonzero(num_fields == width)
            if len(rows) == 0:
                continue
            fields = b"".join(lines if len(rows) == count else [lines[i] for i in rows]).split()
            if k == 1:
                words.update(zip(fields[1::width], (len(self._word_ids) + rows).tolist(), strict=True))
            else:
                for position in range(k):
                    ids[rows, position] = list(map(self._word_ids.__getitem__, fields[1 + position :: width]))
            values[rows, 0] = list(map(float, fields[::width]))
            if width == k + 2:
                values[rows, 1] = list(map(float, fields[width - 1 :: width]))
        if not (values[:count, 0] <= 0).all() or np.isnan(values[:count, 1]).any():
            raise ValueError
        if k == 1:
            if len(words) < count or not words.keys().isdisjoint(self._word_ids):
                raise ValueError
            for word in words:
                word.decode()
            ids[:count, 0] = len(self._word_ids) + np.arange(count)
            self._word_ids.update(sorted(words.items(), key=itemgetter(1)))
        return count

    def _parse_each(self, lines: list[bytes], k: int, row: int, count: int, ids: np.ndarray, values: np.ndarray) -> int:
        """As `_parse` for lines of which some are empty, or to name the one that is wrong."""
        filled = 0
        for line in lines:
            self._number += 1
            fields = line.split()
            if not fields:
                continue
            if fields[0].startswith(b"\\"):
                raise self._error(f"{row + filled} {k}-grams where the header announces {count}")
            if len(fields) not in (k + 1, k + 2):
                raise self._error(f"not one of the {count} {k}-grams that the header announces: {_show(line)}")
            if k == 1 and fields[1] in self._word_ids:
                raise self._error(f"{_show(fields[1])} occurs twice")
            try:
                self._parse([line], k, ids[filled:], values[filled:])
            except KeyError as error:
                raise self._error(f"{_show(error.args[0])} has no unigram") from None
            except UnicodeDecodeError as error:
                raise self._error(f"not UTF-8 text ({error.reason})") from None
            except ValueError:
                raise self._error(f"not a number, or a positive log-probability, in {_show(line)}") from None
            filled += 1
        return filled

    def _next(self) -> bytes:
        for line in self._file:
            self._number += 1
            if line := line.strip():
                return line
        raise self._error("ends before \\end\\; not a whole ARPA file")

    def _error(self, problem: str) -> ValueError:
        return ValueError(f"{self._path}, line {self._number}: {problem}")


def _num_fields(lines: list[bytes]) -> np.ndarray:
    """How many fields each line has, as `bytes.split` finds them."""
    text = np.frombuffer(b"\n".join([b"", *lines]), np.uint8)
    is_space = (text == ord(" ")) | ((text >= ord("\t")) & (text <= ord("\r")))
    field_starts = np.flatnonzero(is_space[:-1] & ~is_space[1:])
    line_ends = np.cumsum([1 + len(line) for line in lines])
    return np.diff(np.searchsorted(field_starts, line_ends), prepend=0)


def _show(text: bytes) -> str:
    return repr(text.strip()[:80].decode(errors="replace"))
