"""What a section hands back: tables and curves to print, and what it found at fault."""

from collections.abc import Sequence
from dataclasses import dataclass, field

Cell = str | float | int | bool | None


@dataclass(frozen=True, slots=True)
class Table:
    """A missing value is None and printed as a dash; notes stand below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Plot:
    """Curves by name, as points (x, y)."""

    name: str
    title: str
    x: str
    y: str
    curves: dict[str, list[tuple[float, float]]]


@dataclass(slots=True)
class Result:
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # a line each; none: passed
