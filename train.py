"""Train, then report: `uv run train.py [experiment=...] [key=value ...]`; `--help` lists everything."""

import sys
from pathlib import Path
from typing import Any

from mode_ssm.compose import load_train_config, run_main
from mode_ssm.config import TaskName


def main() -> None:
    config = load_train_config(sys.argv[1:])
    # After the command line: a typo should not wait for torch.
    from mode_ssm.inference import load, report_on
    from mode_ssm.inference_text import report_on_text
    from mode_ssm.report import print_table
    from mode_ssm.report_text import print_perplexities
    from mode_ssm.tasks.choice import build_task, prepare_data
    from mode_ssm.train.checkpoint import load_checkpoint
    from mode_ssm.train.checks import GradientPathError, NonFiniteError
    from mode_ssm.train.distributed import RankError, init_distributed
    from mode_ssm.train.interrupt import Interrupted
    from mode_ssm.train.trainer import Trainer

    distributed = init_distributed(config.parallel, announce=config.logging.progress)
    run_dir = Path(config.run_dir)

    def show(summary: dict[str, Any], folder: Path) -> None:
        if distributed.is_main:
            print_table(summary)
            print(f"report: {folder / 'report.html'}, {folder / 'report.json'}")

    def report() -> None:
        if config.task.name is TaskName.language_model:
            distributed.on_main(report_perplexities)
            return
        loaded = load(load_checkpoint(run_dir / "best"), config, distributed)
        show(report_on(loaded, "val", run_dir, tta=False), run_dir)
        if config.report_test:
            folder = run_dir / "evaluate_test"
            show(report_on(loaded, "test", folder, tta=True), folder)

    def report_perplexities() -> None:
        print_perplexities(report_on_text(load_checkpoint(run_dir / "best"), config, distributed.device, run_dir))
        print(f"report: {run_dir / 'report.html'}, {run_dir / 'report.json'}")

    try:
        distributed.on_main(lambda: prepare_data(config))
        task = build_task(config, distributed.device, progress=config.logging.progress and distributed.is_main)
        Trainer(config, task, distributed, run_dir).fit()
        report()
    except Interrupted as stop:
        if distributed.is_main:
            print(stop)
        raise SystemExit(stop.exit_code) from None
    except (NonFiniteError, GradientPathError) as error:
        if distributed.is_main:
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except RankError:  # the rank that failed says why
        raise SystemExit(2) from None
    finally:
        distributed.close()
    distributed.exit()


if __name__ == "__main__":
    run_main(main)
