"""report.json, report.md and plots of a validation."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib

from gpu_sections.result import Cell, Plot, Result, Table

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@dataclass(frozen=True, slots=True)
class Outcome:
    """A section that ran: what it found, or the error that ended it."""

    name: str
    about: str
    seconds: float
    result: Result
    error: str | None

    @property
    def status(self) -> str:
        return "error" if self.error else "failed" if self.result.faults else "passed"


def write(folder: Path, title: str, facts: dict[str, str | None], outcomes: list[Outcome]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "title": title,
        "facts": facts,
        "sections": {o.name: {"status": o.status, **asdict(o)} for o in outcomes},
    }
    (folder / "report.json").write_text(json.dumps(_finite(content), indent=1) + "\n")
    lines = [f"# {title}", "", *_markdown(Table("", ("what", "version"), list(facts.items())))]
    for outcome in outcomes:
        lines += [f"## {outcome.about}: {outcome.status}", "", f"`{outcome.name}`, {outcome.seconds:.0f} s", ""]
        lines += [f"- **{line}**" for line in [*([outcome.error] if outcome.error else []), *outcome.result.faults]]
        lines += [""] if outcome.status != "passed" else []
        for table in outcome.result.tables:
            lines += _markdown(table)
        for plot in outcome.result.plots:
            _draw(plot, folder / f"{plot.name}.png")
            lines += [f"![{plot.title}]({plot.name}.png)", ""]
    (folder / "report.md").write_text("\n".join(lines))


def cell(value: Cell) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2e}" if value and not 1e-2 <= abs(value) < 1e6 else f"{value:,.2f}"
    return str(value)


def _markdown(table: Table) -> list[str]:
    lines = [f"**{table.title}**", ""] if table.title else []
    lines += [f"| {' | '.join(table.columns)} |", f"|{'---|' * len(table.columns)}"]
    lines += [f"| {' | '.join(cell(value) for value in row)} |" for row in table.rows]
    return [*lines, "", *(f"{note}  " for note in table.notes), *([""] if table.notes else [])]


def _draw(plot: Plot, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, points in plot.curves.items():
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(title=plot.title, xlabel=plot.x, ylabel=plot.y, xscale="log", yscale="log")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _finite(value: object) -> object:
    """JSON has no NaN: null in its place."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
