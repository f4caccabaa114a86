"""Choose the scales of the word search on the validation split: `tune_decoding.py checkpoint=runs/quickstart/best`.

Log-probabilities are computed once and kept beside the run. Ctrl-C keeps what is done; the same command goes on.
"""

import sys
from pathlib import Path

from mode_ssm.compose import apply_overrides, load_tune_config, run_main


def main() -> None:
    settings, overrides = load_tune_config(sys.argv[1:])
    from mode_ssm.inference import load
    from mode_ssm.inference_tuning import tune
    from mode_ssm.report_tuning import HTML_FILE, YAML_FILE, print_tuning
    from mode_ssm.train.checkpoint import load_checkpoint
    from mode_ssm.train.distributed import joined

    checkpoint = load_checkpoint(settings.checkpoint)
    config = apply_overrides(checkpoint.config, overrides)
    with joined(config.parallel, announce=config.logging.progress) as distributed:
        loaded = load(checkpoint, config, distributed)
        folder = Path(settings.output) if settings.output else loaded.run_dir / f"tune_{settings.split}"
        try:
            summary = tune(loaded, settings, folder, overrides)
        except KeyboardInterrupt:
            print(f"interrupted; finished settings are in {folder}, the same command goes on", file=sys.stderr)
            raise SystemExit(130) from None
    print_tuning(summary)
    print((folder / YAML_FILE).read_text().splitlines()[1].lstrip("# "))
    print(f"report: {folder / HTML_FILE}, settings: {folder / YAML_FILE}")


if __name__ == "__main__":
    run_main(main)
