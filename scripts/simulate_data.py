"""Write a folder of simulated recordings in the T15 layout, with the truth beside them."""

import argparse
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mode_ssm.compose import run_main
from mode_ssm.data.simulator import simulate
from mode_ssm.data.simulator_scale import SCALES
from mode_ssm.data.t15_format import SPLITS
from mode_ssm.data.truth import read_truth

BIN_SECONDS = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder to write; must be empty or not exist")
    parser.add_argument("--scale", default="small", help=f"how much to simulate: {', '.join(SCALES)}")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same recordings")
    parser.add_argument("--workers", type=int, help="processes; by default one a core, and one for a small scale")
    arguments = parser.parse_args()
    simulate(arguments.root, arguments.scale, arguments.seed, workers=arguments.workers)
    Console().print(_summary(arguments.root))


def _summary(root: Path) -> Table:
    table = Table(title=f"simulated recordings in {root}")
    table.add_column("session")
    for name in (*SPLITS, "silent %", "minutes"):
        table.add_column(name, justify="right")
    records = list(read_truth(root).values())
    for session in [*sorted({record.session for record in records}), "all"]:
        own = [record for record in records if session in (record.session, "all")]
        counts = Counter(record.split for record in own)
        silent = sum(record.mode == "silent" for record in own) / len(own)
        minutes = sum(record.num_bins for record in own) * BIN_SECONDS / 60
        table.add_row(
            session, *(str(counts[split]) for split in SPLITS), f"{100 * silent:.0f}", f"{minutes:.1f}",
            end_section=session == max(record.session for record in records),
        )  # fmt: skip
    return table


if __name__ == "__main__":
    run_main(main)
