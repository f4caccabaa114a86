"""The ops and the encoder against their peers, on the CPU, in one process: the ratios that docs/performance.md quotes.

    uv run --group bench --extra export benchmarks/ops.py [--json FILE] [--only scan,encoder,rnnt,stream]

Both sides of a ratio take turns; every figure is a median. A ratio of times is the peer's over ours, that of memory
ours over the peer's. What could not be measured is null, with the reason.
"""

import argparse
import json
import math
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from ops_encoder import encoder
from ops_rnnt import rnnt
from ops_row import Part, Row
from ops_scan import scan
from ops_stream import stream
from rich.console import Console
from rich.table import Table

from mode_ssm.ops.installation import versions

CONSOLE = Console()
PARTS: dict[str, tuple[Callable[[bool], Part], tuple[str, ...]]] = {
    "scan": (scan, ("scan_vs_naive", "scan_vs_mambapy", "scan_memory_vs_naive")),
    "encoder": (encoder, ("encoder_vs_gru", "encoder_vs_transformer")),
    "rnnt": (rnnt, ("rnnt_vs_torchaudio",)),
    "stream": (stream, ("stream_ms_eager", "stream_ms_onnx", "stream_ms_int8")),
}


def main() -> int:
    arguments = _parser().parse_args()
    names = arguments.only.split(",") if arguments.only else list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        print(f"ops: unknown part {unknown[0]!r}; choose from {', '.join(PARTS)}", file=sys.stderr)
        return 2
    torch.set_flush_denormal(True)  # as training does
    parts = {}
    for name in names:
        with CONSOLE.status(name):
            parts[name] = PARTS[name][0](arguments.quick)
        _show(parts[name])
    rows = {row.key: row for part in parts.values() for row in part.rows}
    for name, (_, keys) in PARTS.items():
        for key in keys:
            rows.setdefault(key, Row(key, None, "", f"not measured: --only leaves {name} out"))
    if arguments.json is not None:
        content = {
            **{key: _number(row.value) for key, row in rows.items()},
            "notes": {key: row.note for key, row in rows.items() if row.note},
            "details": {name: [part.title, *part.details] for name, part in parts.items()},
            "quick": arguments.quick,
            "versions": versions(),
            "processor": _processor(),
        }
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures, null where there is none")
    parser.add_argument("--only", metavar="PARTS", help=f"comma-separated out of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="toy sizes: does it run? the figures mean nothing")
    return parser


def _show(part: Part) -> None:
    table = Table(title=part.title)
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("note")
    for row in part.rows:
        value = _number(row.value)
        table.add_row(row.key, "-" if value is None else f"{value:.3g} {row.unit}", row.note)
    CONSOLE.print(table)
    for line in part.details:
        CONSOLE.print(f"  {line}", highlight=False)


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _processor() -> str:
    """The model's name where Linux tells it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


if __name__ == "__main__":
    sys.exit(main())
