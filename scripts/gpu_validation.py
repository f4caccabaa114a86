"""Validate a GPU: kernels, bf16, speed, memory, a training step, NCCL, resuming. Writes a report with plots.

    uv run scripts/gpu_validation.py                       # minutes; reports/gpu/<device>-<date>/
    uv run scripts/gpu_validation.py --only kernels,step
    uv run scripts/gpu_validation.py --rehearse            # every section at toy size on the CPU: does the script work?

Sections fail one by one; the exit code is 1 if any did, 2 where there is no GPU.
"""

import argparse
import re
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from gpu_sections import numbers, processes, report, speed, training
from gpu_sections.report import Outcome
from gpu_sections.result import Result
from gpu_sections.setting import Setting
from rich.console import Console
from rich.table import Table

from mode_ssm.compose import run_main
from mode_ssm.ops import backends
from mode_ssm.ops.installation import known_problems, versions

CONSOLE = Console()
REPOSITORY = Path(__file__).resolve().parent.parent
SECTIONS: dict[str, tuple[str, Callable[[Setting], Result]]] = {
    "kernels": ("Kernels against their references", numbers.kernels),
    "autocast": ("bf16 autocast against float32", numbers.autocast),
    "throughput": ("Scans by length and state width", speed.throughput),
    "layers": ("One layer of each mixer", speed.layers),
    "memory": ("Memory and gradient checkpointing", training.memory),
    "step": ("A training step", training.step),
    "data_parallel": ("DistributedDataParallel of one", processes.data_parallel),
    "resume": ("Killed and resumed", processes.resume),
}


def main() -> None:
    arguments = _parser().parse_args()
    names = arguments.only.split(",") if arguments.only else list(SECTIONS)
    if unknown := [name for name in names if name not in SECTIONS]:
        raise ValueError(f"unknown section {unknown[0]!r}; choose from {', '.join(SECTIONS)}")
    if not arguments.rehearse and not torch.cuda.is_available():
        raise ValueError("torch sees no GPU here; --rehearse runs it at toy size on the CPU")
    setting = Setting("cpu" if arguments.rehearse else "cuda", arguments.rehearse)
    device = "CPU rehearsal" if arguments.rehearse else torch.cuda.get_device_name()
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    folder = arguments.output or REPOSITORY / "reports" / "gpu" / f"{slug}-{date.today().isoformat()}"
    facts = {**versions(), "backends": backends.describe(setting.device)}
    for problem in known_problems(facts):
        CONSOLE.print(f"known problem: {problem}", style="yellow", highlight=False)
    outcomes = []
    for name in names:
        outcomes.append(_run(name, setting))
        _show(outcomes[-1])
        report.write(folder, f"Validation: {device}, {date.today().isoformat()}", facts, outcomes)
    bad = [outcome.name for outcome in outcomes if outcome.status != "passed"]
    CONSOLE.print(
        f"{len(outcomes) - len(bad)} of {len(outcomes)} sections passed; {folder / 'report.md'}", soft_wrap=True
    )
    if bad:
        raise SystemExit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAMES", help=f"comma-separated sections out of {', '.join(SECTIONS)}")
    parser.add_argument("--rehearse", action="store_true", help="toy sizes on the CPU; its figures mean nothing")
    parser.add_argument("--output", type=Path, help="folder to write, reports/gpu/<device>-<date> if not given")
    return parser


def _run(name: str, setting: Setting) -> Outcome:
    about, section = SECTIONS[name]
    began = time.monotonic()
    result, error = Result(), None
    with CONSOLE.status(f"{name}: {about}"):
        try:
            result = section(setting)
        except Exception as caught:  # one section's end is not the end of the others
            first = (str(caught).strip().splitlines() or [""])[0]
            error = f"{type(caught).__name__}: {first}"
    if setting.device == "cuda":
        torch.cuda.empty_cache()
    return Outcome(name, about, time.monotonic() - began, result, error)


def _show(outcome: Outcome) -> None:
    style = "green" if outcome.status == "passed" else "bold red"
    CONSOLE.print(f"{outcome.name}: {outcome.status} in {outcome.seconds:.1f} s", style=style, highlight=False)
    for line in [*([outcome.error] if outcome.error else []), *outcome.result.faults]:
        CONSOLE.print(f"  {line}", style="red", highlight=False)
    for content in outcome.result.tables:
        table = Table(title=content.title)
        for column in content.columns:
            table.add_column(column)
        for row in content.rows:
            table.add_row(*(report.cell(value) for value in row))
        CONSOLE.print(table)
        for note in content.notes:
            CONSOLE.print(f"  {note}", highlight=False)


if __name__ == "__main__":
    run_main(main)
