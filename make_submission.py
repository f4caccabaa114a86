"""Decode the test split and write the benchmark's CSV: `uv run make_submission.py checkpoint=runs/quickstart/best`."""

import sys
from pathlib import Path

from mode_ssm.compose import apply_overrides, load_submission_config, run_main


def main() -> None:
    settings, overrides = load_submission_config(sys.argv[1:])
    from mode_ssm.inference import load, submit
    from mode_ssm.train.checkpoint import load_checkpoint
    from mode_ssm.train.distributed import joined

    checkpoint = load_checkpoint(settings.checkpoint)
    config = apply_overrides(checkpoint.config, overrides)
    with joined(config.parallel, announce=config.logging.progress) as distributed:
        rows = submit(load(checkpoint, config, distributed), Path(settings.output), tta=settings.tta)
        if distributed.is_main:
            print(f"{settings.output}: {rows} rows, valid")


if __name__ == "__main__":
    run_main(main)
