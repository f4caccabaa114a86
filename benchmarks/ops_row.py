"""A line of benchmarks/ops.py, and how every part of it is asked for."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Row:
    """`value` under `key`; None where it could not be had, and the note says why. Ratios are peer time over ours, but
    for memory, which is ours over the peer's."""

    key: str
    value: float | None
    unit: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """What a part of the benchmark found: rows, and lines of detail below its table."""

    title: str
    rows: list[Row] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
