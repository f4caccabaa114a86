"""An n-gram automaton in one file that is mapped into memory, so that it opens at once and processes share it.

Layout: magic, version, length and CRC-32 of the header; a JSON header that lists the arrays; the arrays, aligned.
With 8-bit probabilities those of orders above 1 are codes of uniform steps between the smallest and the largest of
their order: no log-probability moves by more than half a step. Back-off weights and unigrams stay float32.
"""

import json
import os
import struct
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mode_ssm.lm.ngram_automaton import NGramAutomaton

MAGIC = b"mode_ssm n-gram\n"
VERSION = 1
_PREFIX = struct.Struct("<16sIII")
_ALIGNMENT = 64
_STEPS = 254  # of the 256 codes, 255 is a probability of zero
_ZERO_CODE = 255
_WRITTEN = ("backoff_state", "backoff", "arc_start", "arc_word", "arc_next", "end_log_prob")


class _Level(NamedTuple):
    """How the 8-bit codes of one order are read: code c of its `number` stands for low + c * step."""

    number: int
    low: float
    step: float


def write_automaton(path: str | Path, automaton: NGramAutomaton, *, eight_bit: bool = False) -> float:
    """Write `automaton` under a temporary name, flush and rename. Returns the largest change of a log-probability
    that the 8-bit form makes, beyond float32 rounding: half of its widest step."""
    automaton = automaton.single_precision()
    arrays = {name: getattr(automaton, name) for name in _WRITTEN}
    arrays["words"] = np.frombuffer("\n".join(automaton.words).encode(), np.uint8)
    levels: list[_Level] = []
    if eight_bit:
        arrays["unigram"] = automaton.unigram
        arrays["arc_code"], levels = _encode(automaton)
    else:
        arrays["arc_log_prob"] = automaton.arc_log_prob
    entries: dict[str, dict[str, Any]] = {}
    offset = 0
    for name, array in arrays.items():
        checksum = zlib.crc32(np.ascontiguousarray(array).data)
        entries[name] = {"dtype": array.dtype.str, "length": len(array), "offset": offset, "crc32": checksum}
        offset += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    fields = {"start": automaton.start, "order": automaton.order, "levels": levels, "bytes": offset, "arrays": entries}
    header = json.dumps(fields).encode()
    header += b" " * (-(_PREFIX.size + len(header)) % _ALIGNMENT)
    path = Path(path)
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_PREFIX.pack(MAGIC, VERSION, len(header), zlib.crc32(header)) + header)
            for array in arrays.values():
                file.write(np.ascontiguousarray(array).data)
                file.write(bytes(-array.nbytes % _ALIGNMENT))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(partial)
        raise
    return max((level.step / 2 for level in levels), default=0.0)


def read_automaton(path: str | Path, *, verify: bool = True) -> NGramAutomaton:
    """Map the file at `path`. `verify` reads all of it once to compare checksums; the header's is always compared.

    The arrays are read-only and shared with every process that maps the file; 8-bit probabilities are decoded into
    memory of this process. Raises a one-line `ValueError` for a file that is not whole or not of this version.
    """
    path = Path(path)
    with path.open("rb") as file:
        prefix = file.read(_PREFIX.size)
        if len(prefix) < _PREFIX.size or not prefix.startswith(MAGIC):
            raise ValueError(f"{path}: not a mapped n-gram model; scripts/train_lm.py writes one")
        _, version, header_length, checksum = _PREFIX.unpack(prefix)
        if version != VERSION:
            raise ValueError(
                f"{path}: version {version} of the mapped form, this program reads {VERSION}; convert again"
            )
        header = file.read(header_length)
    if zlib.crc32(header) != checksum:
        raise ValueError(f"{path}: the header does not match its checksum; the file is damaged")
    fields = json.loads(header)
    first, size = _PREFIX.size + header_length, path.stat().st_size
    if size != first + fields["bytes"]:
        raise ValueError(f"{path}: {size} bytes where the header announces {first + fields['bytes']}; not a whole file")
    content = np.memmap(path, np.uint8, "r")
    arrays: dict[str, np.ndarray] = {}
    for name, entry in fields["arrays"].items():
        dtype, start = np.dtype(entry["dtype"]), first + entry["offset"]
        array = content[start : start + entry["length"] * dtype.itemsize].view(dtype).view(np.ndarray)
        if verify and zlib.crc32(array.data) != entry["crc32"]:
            raise ValueError(f"{path}: {name} does not match its checksum; the file is damaged")
        arrays[name] = array
    words = arrays.pop("words").tobytes().decode().split("\n")
    if "arc_code" in arrays:
        arrays["arc_log_prob"] = _decode(
            arrays.pop("arc_code"), arrays["unigram"], [_Level(*level) for level in fields["levels"]]
        )
    arrays["unigram"] = arrays["arc_log_prob"][: len(words)]
    word_ids = {word: index for index, word in enumerate(words)}
    return NGramAutomaton(start=fields["start"], order=fields["order"], word_ids=word_ids, **arrays)


def _encode(automaton: NGramAutomaton) -> tuple[np.ndarray, list[_Level]]:
    """Codes (A - W,) of the arcs above order 1, and how to read those of each order."""
    codes, levels = [np.empty(0, np.uint8)], []
    for arcs in automaton.arcs_by_order()[1:]:
        values = automaton.arc_log_prob[arcs].astype(np.float64)
        possible = values > -np.inf
        low, high = (values[possible].min(), values[possible].max()) if possible.any() else (0.0, 0.0)
        level = _Level(number=len(values), low=float(low), step=float(high - low) / _STEPS or 1.0)
        steps = np.rint((np.where(possible, values, low) - low) / level.step)
        codes.append(np.where(possible, steps, _ZERO_CODE).astype(np.uint8))
        levels.append(level)
    return np.concatenate(codes), levels


def _decode(codes: np.ndarray, unigram: np.ndarray, levels: list[_Level]) -> np.ndarray:
    parts, first = [unigram], 0
    for level in levels:
        values = (level.low + level.step * np.arange(_ZERO_CODE + 1)).astype(np.float32)
        values[_ZERO_CODE] = -np.inf
        parts.append(values[codes[first : first + level.number]])
        first += level.number
    return np.concatenate(parts)
