"""Test every kernel that can run here: versions, backends, error of each output and each gradient, speed.

    uv run scripts/verify_kernels.py                                  # what this machine has
    uv run scripts/verify_kernels.py --require triton --json kernels.json   # in CI, while a container is built

Exit code 0 if every backend that runs is right and every required one runs, else 1.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mode_ssm.compose import run_main
from mode_ssm.ops import backends
from mode_ssm.ops.installation import KNOWN_GOOD, known_problems, versions
from mode_ssm.ops.verification import BARS, Finding, Speed, missing, speeds, verify, worst
from mode_ssm.ops.verification_cases import FULL, SMALL

CONSOLE = Console()
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in BARS}


def main() -> None:
    arguments = _parser().parse_args()
    devices = _devices(arguments.device)
    absent = missing(arguments.require, devices)
    found = versions()
    problems = known_problems(found)
    _show_versions(found, problems)
    _show_backends()
    dtypes = [DTYPES[name] for name in arguments.dtype]
    findings: list[Finding] = []
    measured: list[Speed] = []
    places = [(device, op) for device in devices for op in arguments.op]
    for device, op in track(places, "checking", console=CONSOLE, transient=True):
        findings += verify(device, dtypes, [op], 300 if arguments.full else 60)
        if not arguments.no_speed:
            measured += speeds(device, torch.float32, [op], FULL if arguments.full else SMALL, repeats=5)
    for op in arguments.op:
        _show_op(op, [f for f in findings if f.op == op], [s for s in measured if s.op == op])
    wrong = sum(finding.wrong for finding in findings)
    for line in absent:
        CONSOLE.print(line, style="bold red", highlight=False)
    verdict = {"versions": found, "problems": problems, "missing": absent, "wrong": wrong}
    if arguments.json is not None:
        rows = {"findings": [asdict(finding) for finding in findings], "speeds": [asdict(speed) for speed in measured]}
        arguments.json.write_text(json.dumps({**verdict, **rows}, indent=1) + "\n")
    checked = sum(finding.error is not None for finding in findings)
    CONSOLE.print(f"{checked} outputs and gradients checked, {wrong} wrong, {len(absent)} required ops missing")
    if wrong or absent:
        raise SystemExit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--require", action="append", default=[], metavar="BACKEND",
        help=f"fail unless this one runs all its ops; cpu or one of {', '.join(backends.NAMES)}; may be repeated",
    )  # fmt: skip
    parser.add_argument("--device", choices=("all", "cpu", "cuda"), default="all", help="where to test (default: all)")
    parser.add_argument(
        "--dtype", nargs="+", choices=list(DTYPES), default=["float32", "bfloat16"], help="default: float32 bfloat16"
    )
    parser.add_argument("--op", nargs="+", choices=backends.OPS, default=list(backends.OPS), help="default: all")
    parser.add_argument("--full", action="store_true", help="300 frames, and speed at the size of the full model")
    parser.add_argument("--no-speed", action="store_true", help="errors only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything that was found")
    return parser


def _devices(choice: str) -> list[str]:
    present = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if choice == "all":
        return present
    if choice not in present:
        raise ValueError("--device cuda, but torch sees no GPU here")
    return [choice]


def _show_versions(found: dict[str, str | None], problems: Sequence[str]) -> None:
    table = Table(title="installed")
    table.add_column("what")
    table.add_column("version")
    for name, value in found.items():
        table.add_row(name, value or "-")
    CONSOLE.print(table)
    for problem in problems:
        CONSOLE.print(f"known problem: {problem}", style="yellow", highlight=False)
    if problems:
        CONSOLE.print(f"known to work: {'; '.join(KNOWN_GOOD)}", highlight=False)


def _show_backends() -> None:
    table = Table(title="backends")
    table.add_column("name")
    table.add_column("here")
    for name in backends.NAMES:
        table.add_row(name, backends.why_not(name) or "runs")
    CONSOLE.print(table)


def _show_op(op: str, findings: Sequence[Finding], measured: Sequence[Speed]) -> None:
    """Largest error of each quantity over all cases, relative to the quantity's largest magnitude."""
    rows = worst(findings)
    columns = list(dict.fromkeys((f.backend, f.device) for f in findings))
    table = Table(title=f"{op}: largest errors")
    table.add_column("")
    for backend, device in columns:
        table.add_column(f"{backend}\n{device}", justify="right")
    for dtype in dict.fromkeys(f.dtype for f in findings):
        cells = {column: rows.get((op, *column, dtype), {}) for column in columns}
        for quantity in dict.fromkeys(quantity for row in cells.values() for quantity in row):
            table.add_row(f"{dtype} {quantity}", *(_error(row.get(quantity)) for row in cells.values()))
        table.add_section()
    times = {(s.backend, s.device): f"{s.milliseconds:.2f}" for s in measured}
    if times:
        table.add_row("ms, both ways", *(times.get(column, "-") for column in columns))
    CONSOLE.print(table)
    for reason in dict.fromkeys(f"{f.backend}, {f.dtype}, {f.case}: {f.refusal}" for f in findings if f.refusal):
        CONSOLE.print(f"refused: {reason}", highlight=False)
    for finding in findings:
        if finding.wrong:
            where = f"{finding.backend} on {finding.device}, {finding.dtype}, {finding.case}"
            CONSOLE.print(
                f"WRONG: {op} {finding.quantity} of {where}: {finding.error:.1e}, more than {finding.bar:.0e}",
                style="bold red", highlight=False,
            )  # fmt: skip


def _error(finding: Finding | None) -> str:
    if finding is None or finding.error is None:
        return "-"
    return f"{finding.error:.1e}" if finding.right else f"[bold red]{finding.error:.1e}[/]"


if __name__ == "__main__":
    run_main(main)
