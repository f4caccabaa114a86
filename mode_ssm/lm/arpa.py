"""The ARPA text format of back-off models; its base-10 logarithms become natural ones at this door."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mode_ssm.lm.kneser_ney import NGramTable

_LN10 = math.log(10.0)
_LOG10_ZERO = -99.0  # the format's way to write a probability of zero


def write_arpa_tables(path: str | Path, words: Sequence[str], tables: Sequence[NGramTable]) -> None:
    """Write `tables`; back-off weights of all orders but the highest."""
    with Path(path).open("w", encoding="utf-8") as file:
        file.write("\\data\\\n")
        file.writelines(f"ngram {k}={len(table.ids)}\n" for k, table in enumerate(tables, start=1))
        for k, table in enumerate(tables, start=1):
            file.write(f"\n\\{k}-grams:\n")
            highest = k == len(tables)
            log10_probs = np.maximum(table.log_prob / _LN10, _LOG10_ZERO).tolist()
            backoffs = (table.backoff / _LN10).tolist()
            for ids, log10_prob, backoff in zip(table.ids.tolist(), log10_probs, backoffs, strict=True):
                tail = "" if highest else f"\t{backoff:.9g}"
                file.write(f"{log10_prob:.9g}\t{' '.join(words[i] for i in ids)}{tail}\n")
        file.write("\n\\end\\\n")


def read_arpa_tables(path: str | Path) -> tuple[tuple[str, ...], list[NGramTable]]:
    """Words and tables, sorted by word ids. Raises a one-line `ValueError` naming file and line."""
    lines = _Lines(path)
    while (line := lines.next()) != "\\data\\":
        continue
    expected: list[int] = []
    while match := re.fullmatch(r"ngram\s+(\d+)\s*=\s*(\d+)", line := lines.next()):
        if int(match.group(1)) != len(expected) + 1:
            raise lines.error("orders are not listed one after the other")
        expected.append(int(match.group(2)))
    word_ids: dict[str, int] = {}
    tables: list[NGramTable] = []
    for k, count in enumerate(expected, start=1):
        if line != f"\\{k}-grams:":
            raise lines.error(f"expected \\{k}-grams: after {expected[: k - 1]} n-grams, found {line!r}")
        ids = np.empty((count, k), np.int64)
        values = np.zeros((count, 2))
        row = 0
        while not (line := lines.next()).startswith("\\"):
            fields = line.split()
            if len(fields) not in (k + 1, k + 2) or row == count:
                raise lines.error(f"not one of the {count} {k}-grams that the header announces: {line!r}")
            ngram = fields[1 : k + 1]
            if k == 1 and word_ids.setdefault(ngram[0], row) != row:
                raise lines.error(f"{ngram[0]!r} occurs twice")
            try:
                ids[row] = [word_ids[word] for word in ngram]
                values[row, : len(fields) - k] = [float(field) for field in (fields[0], *fields[k + 1 :])]
            except KeyError as error:
                raise lines.error(f"{error} has no unigram") from None
            except ValueError:
                raise lines.error(f"not a number in {line!r}") from None
            row += 1
        if row != count:
            raise lines.error(f"{row} {k}-grams where the header announces {count}")
        values[values[:, 0] <= _LOG10_ZERO, 0] = -np.inf
        order = np.lexsort(ids.T[::-1])
        ids, values = ids[order], values[order] * _LN10
        if k > 1 and (repeated := np.flatnonzero((ids[1:] == ids[:-1]).all(axis=1))).size:
            words = list(word_ids)
            raise lines.error(f"'{' '.join(words[i] for i in ids[repeated[0]])}' occurs twice among the {k}-grams")
        tables.append(NGramTable(ids=ids, log_prob=values[:, 0], backoff=values[:, 1]))
    if not tables or line != "\\end\\":
        raise lines.error(f"expected \\end\\ after the {len(expected)}-grams, found {line!r}")
    while len(tables) > 1 and len(tables[-1].ids) == 0:
        tables.pop()
    return tuple(word_ids), tables


class _Lines:
    """Non-empty lines of a file that know their number."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._lines = iter(Path(path).read_text(encoding="utf-8").split("\n"))
        self._number = 0

    def next(self) -> str:
        for line in self._lines:
            self._number += 1
            if line := line.strip():
                return line
        raise self.error("ends before \\end\\; not a whole ARPA file")

    def error(self, problem: str) -> ValueError:
        return ValueError(f"{self._path}, line {self._number}: {problem}")
