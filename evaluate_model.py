"""Decode a split with a checkpoint and report error rates: `evaluate_model.py checkpoint=runs/quickstart/best`."""

import sys
from pathlib import Path

from mode_ssm.compose import apply_overrides, load_evaluate_config, run_main


def main() -> None:
    settings, overrides = load_evaluate_config(sys.argv[1:])
    from mode_ssm.inference import load, report_on
    from mode_ssm.report import print_table
    from mode_ssm.train.checkpoint import load_checkpoint
    from mode_ssm.train.distributed import init_distributed

    checkpoint = load_checkpoint(settings.checkpoint)
    config = apply_overrides(checkpoint.config, overrides)
    loaded = load(checkpoint, config, init_distributed(config.parallel, announce=config.logging.progress).device)
    name = f"evaluate_{settings.split}" + ("_tta" if settings.tta else "")
    folder = Path(settings.output) if settings.output else loaded.run_dir / name
    print_table(report_on(loaded, settings.split, folder, tta=settings.tta).summary)
    print(f"report: {folder / 'report.html'}, {folder / 'report.json'}")


if __name__ == "__main__":
    run_main(main)
