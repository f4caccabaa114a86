"""Train several experiments with several seeds on one dataset, and write one table.

    uv run scripts/compare.py experiments=[sim_mode_ssm,sim_gru_baseline] seeds=[0,1,2] [key=value ...]

Every training is a process of train.py with a folder of its own in runs/<name>. Ctrl-C saves; the same command goes on.
"""

import os
import signal
import sys
from pathlib import Path

from mode_ssm.compose import ConfigError, load_compare_config, load_train_config, run_main

TRAIN = Path(__file__).resolve().parent.parent / "train.py"


def main() -> None:
    config, rows = load_compare_config(sys.argv[1:])
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("compare.py starts its trainings itself: run it without torchrun")
    from mode_ssm.inference_comparison import run_comparison
    from mode_ssm.report_comparison import print_comparison

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        summary = run_comparison(config, rows, load_train_config, [sys.executable, str(TRAIN)])
    except KeyboardInterrupt:
        print("interrupted; finished trainings are kept, the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
    print_comparison(summary)
    print(f"report: runs/{config.name}/compare.html, compare.json, compare.md")
    if summary["failures"]:
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main)
