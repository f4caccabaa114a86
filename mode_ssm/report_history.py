"""What `metrics.jsonl` tells about a finished or broken-off run, for tables and plots."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOSS = "train/loss"
VALIDATION_PER = "val/per"
VALIDATION_PERPLEXITY = "val/perplexity"

Line = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One phase of the curriculum: its lines of training and evaluation, in order of steps."""

    name: str
    first_step: int
    last_step: int
    train: list[Line] = field(default_factory=list)
    evaluations: list[Line] = field(default_factory=list)

    def last(self, key: str) -> float | None:
        """The last value of a key in this stage, None where it never stands."""
        values = [line[key] for line in (*self.train, *self.evaluations) if key in line]
        return values[-1] if values else None

    @property
    def seconds(self) -> float | None:
        """Time from the first line to the last."""
        times = [line["seconds"] for line in (*self.train, *self.evaluations) if "seconds" in line]
        return max(times) - min(times) if times else None


def read_history(path: Path) -> list[Stage]:
    """Stages in the order of their steps; a last line that was cut off by a kill is left out.

    Raises `ValueError` naming file and line for a line that is no JSON object with `kind`, `step` and `phase`.
    """
    texts = path.read_text(encoding="utf-8").splitlines()
    by_phase: dict[str, list[Line]] = {}
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            if number == len(texts):
                break
            raise ValueError(f"{path}:{number}: not JSON") from None
        if not isinstance(line, dict) or not {"kind", "step", "phase"} <= line.keys():
            raise ValueError(f"{path}:{number}: expected a JSON object with kind, step and phase")
        by_phase.setdefault(line["phase"], []).append(line)
    stages = [_stage(name, sorted(lines, key=lambda line: line["step"])) for name, lines in by_phase.items()]
    return sorted(stages, key=lambda stage: stage.first_step)


def _stage(name: str, lines: Sequence[Line]) -> Stage:
    return Stage(
        name=name,
        first_step=lines[0]["step"],
        last_step=lines[-1]["step"],
        train=[line for line in lines if line["kind"] == "train"],
        evaluations=[line for line in lines if line["kind"] == "evaluation"],
    )


def loss_terms(stages: Sequence[Stage]) -> list[str]:
    """Keys of the loss terms, in the order in which stages bring them in; the weighted sum is not among them."""
    keys = (key for stage in stages for line in stage.train for key in line)
    return list(dict.fromkeys(key for key in keys if key.startswith("train/") and key != LOSS))


def series(lines: Sequence[Line], key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of the lines that hold the key."""
    held = [line for line in lines if key in line]
    return [line["step"] for line in held], [line[key] for line in held]
