"""Train, then report: `uv run train.py [experiment=...] [key=value ...]`; `--help` lists everything."""

import sys
from pathlib import Path

from mode_ssm.compose import load_train_config, run_main


def main() -> None:
    config = load_train_config(sys.argv[1:])
    # After the command line: a typo should not wait for torch.
    from mode_ssm.inference import load, report_on
    from mode_ssm.report import print_table
    from mode_ssm.tasks.transcription import TranscriptionTask
    from mode_ssm.tasks.transcription_data import ensure_data
    from mode_ssm.train.checkpoint import load_checkpoint
    from mode_ssm.train.checks import GradientPathError, NonFiniteError
    from mode_ssm.train.distributed import RankZeroError, init_distributed
    from mode_ssm.train.interrupt import Interrupted
    from mode_ssm.train.trainer import Trainer

    distributed = init_distributed(config.parallel, announce=config.logging.progress)
    run_dir = Path(config.run_dir)

    def report() -> None:
        loaded = load(load_checkpoint(run_dir / "best"), config, distributed.device)
        print_table(report_on(loaded, "val", run_dir, tta=False).summary)
        print(f"report: {run_dir / 'report.html'}, {run_dir / 'report.json'}")
        if config.report_test:
            folder = run_dir / "evaluate_test"
            print_table(report_on(loaded, "test", folder, tta=True).summary)
            print(f"report: {folder / 'report.html'}, {folder / 'report.json'}")

    try:
        distributed.on_main(lambda: ensure_data(config.data))
        task = TranscriptionTask(config, distributed.device, progress=config.logging.progress and distributed.is_main)
        Trainer(config, task, distributed, run_dir).fit()
        distributed.on_main(report)
    except Interrupted as stop:
        if distributed.is_main:
            print(stop)
        raise SystemExit(stop.exit_code) from None
    except (NonFiniteError, GradientPathError) as error:
        if distributed.is_main:
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except RankZeroError:  # rank 0 says what it was
        raise SystemExit(2) from None
    finally:
        distributed.close()
    distributed.exit()


if __name__ == "__main__":
    run_main(main)
