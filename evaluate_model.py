"""Decode a split with a checkpoint and report error rates: `evaluate_model.py checkpoint=runs/quickstart/best`."""

import sys
from pathlib import Path

from mode_ssm.compose import apply_overrides, load_evaluate_config, run_main
from mode_ssm.config import TaskName


def main() -> None:
    settings, overrides = load_evaluate_config(sys.argv[1:])
    from mode_ssm.inference import load, report_on
    from mode_ssm.inference_text import report_on_text
    from mode_ssm.report import print_table
    from mode_ssm.report_text import print_perplexities
    from mode_ssm.train.checkpoint import load_checkpoint
    from mode_ssm.train.distributed import joined

    checkpoint = load_checkpoint(settings.checkpoint)
    config = apply_overrides(checkpoint.config, overrides)
    if config.task.name is TaskName.language_model:
        folder = Path(settings.output) if settings.output else checkpoint.path.parent.parent / "evaluate_text"
        with joined(config.parallel) as distributed:
            distributed.on_main(
                lambda: print_perplexities(report_on_text(checkpoint, config, distributed.device, folder))
            )
        return
    with joined(config.parallel, announce=config.logging.progress) as distributed:
        loaded = load(checkpoint, config, distributed)
        name = f"evaluate_{settings.split}" + ("_tta" if settings.tta else "")
        folder = Path(settings.output) if settings.output else loaded.run_dir / name
        summary = report_on(loaded, settings.split, folder, tta=settings.tta)
        if distributed.is_main:
            print_table(summary)
            print(f"report: {folder / 'report.html'}, {folder / 'report.json'}")


if __name__ == "__main__":
    run_main(main)
