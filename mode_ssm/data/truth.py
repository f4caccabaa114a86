"""The truth file: what is known about each trial that its HDF5 file does not say, one JSON object a line."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

TRUTH_FILE = "truth.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class TruthRecord:
    """One trial, under the name that `TrialInfo.name` gives it: `t15.2023.08.11/val/trial_0003`.

    phonemes: class ids as in the file (SIL after every word). phoneme_starts: the bin (20 ms) where each begins, None
    where no alignment is known; mode: "vocalised", "silent" or None where unknown.
    """

    name: str
    session: str
    split: str
    sentence: str
    phonemes: list[int]
    corpus: str | None
    mode: str | None
    phoneme_starts: list[int] | None
    num_bins: int


def write_truth(path: Path | str, records: Iterable[TruthRecord]) -> int:
    """Write the records as one JSON object a line and return their number. The file appears whole or not at all."""
    path = Path(path)
    partial = path.with_suffix(".partial")
    written = 0
    try:
        with partial.open("w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(asdict(record)) + "\n")
                written += 1
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return written


def read_truth(root: Path | str) -> dict[str, TruthRecord]:
    """Records of `<root>/truth.jsonl` by name; empty where there is none.

    Raises `ValueError` for a line that is no record, naming file and line, and for a name that stands twice.
    """
    path = Path(root) / TRUTH_FILE
    if not path.exists():
        return {}
    expected = {field.name for field in fields(TruthRecord)}
    records: dict[str, TruthRecord] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not JSON ({error})") from None
            if not isinstance(values, dict) or set(values) != expected:
                raise ValueError(f"{path}:{number}: expected an object with the keys {', '.join(sorted(expected))}")
            record = TruthRecord(**values)
            if record.name in records:
                raise ValueError(f"{path}:{number}: {record.name} stands twice")
            records[record.name] = record
    return records
