"""The benchmark's CSV: `id,text`, one row a test trial, ids 0..N-1 in order of session, block and trial."""

import csv
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from mode_ssm.vocab import normalise_sentence

HEADER = ("id", "text")
_ALLOWED = frozenset("abcdefghijklmnopqrstuvwxyz'- ")


def write_submission(path: Path, sentences: Sequence[str]) -> None:
    """Write decoded sentences, already in submission order, normalised. The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="ascii", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADER)
            writer.writerows((number, normalise_sentence(text)) for number, text in enumerate(sentences))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def validate_submission(path: Path, expected_count: int, empty_ids: Collection[int] = ()) -> list[str]:
    """Return the sentences of a submission that the benchmark will accept.

    `empty_ids` are the trials for which the decoder itself gave no word; any other row without text is a problem.
    Raises one `ValueError` that lists every problem with its line: header, columns, ids and their order, count,
    characters, empty text.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        rows = [(reader.line_num, row) for row in reader]
    problems: list[str] = []
    if not rows or tuple(rows[0][1]) != HEADER:
        found = ",".join(rows[0][1]) if rows else "an empty file"
        problems.append(f"line 1: the header must be {','.join(HEADER)}, found {found}")
    sentences = []
    for expected_id, (line, row) in enumerate(rows[1:]):
        if len(row) != len(HEADER):
            problems.append(f"line {line}: {len(row)} columns, expected {len(HEADER)}")
            continue
        identifier, text = row
        if identifier != str(expected_id):
            problems.append(f"line {line}: id {identifier!r}, expected {expected_id}")
        problems += [f"line {line}: {problem}" for problem in _text_problems(text, expected_id in empty_ids)]
        sentences.append(text)
    if len(rows) - 1 != expected_count:
        problems.append(f"{max(len(rows) - 1, 0)} rows, expected {expected_count}")
    if problems:
        raise ValueError(f"{path} is not a valid submission:\n  " + "\n  ".join(problems))
    return sentences


def _text_problems(text: str, may_be_empty: bool) -> list[str]:
    problems = []
    bad = sorted(set(text) - _ALLOWED)
    if bad:
        shown = " ".join(repr(character) for character in bad)
        problems.append(f"characters that are not allowed: {shown}; only a-z, apostrophe, hyphen and space")
    if not text.strip() and not may_be_empty:
        problems.append("no text, though the decoder gave words")
    return problems
