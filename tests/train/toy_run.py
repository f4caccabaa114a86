"""Train the toy task in a process of its own, and die on request."""

import argparse
import os
import signal
import sys
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_
from toy_task import ToyTask, make_config

from mode_ssm.train import checkpoint
from mode_ssm.train import trainer as trainer_module
from mode_ssm.train.checks import NonFiniteError
from mode_ssm.train.distributed import init_distributed
from mode_ssm.train.interrupt import Interrupted
from mode_ssm.train.trainer import Trainer


def position(text: str) -> tuple[int, int, int]:
    rank, epoch, batch = map(int, text.split(":"))
    return rank, epoch, batch


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--kill-at", type=position, help="rank:epoch:batch, before it is drawn")
    parser.add_argument("--signal-at", type=position, help="the same with SIGTERM")
    parser.add_argument("--nan-at", type=position, help="a NaN in this batch")
    parser.add_argument("--kill-writing", type=int, help="while the checkpoint of this step is half-written")
    parser.add_argument("--kill-saved", type=int, help="when it has its name, before best follows and old ones go")
    parser.add_argument("--gradients", type=Path, help="where rank 0 writes the gradients of the first step")
    arguments = parser.parse_args()

    config = make_config(resume=arguments.resume)
    flush, point_best = checkpoint._flush, checkpoint.point_best

    def deadly_flush(path: Path) -> None:
        flush(path)
        if f"{arguments.kill_writing:08d}" in str(path) and path.name == "optimizer.pt":
            os.kill(os.getpid(), signal.SIGKILL)

    def deadly_point_best(run_dir: Path, step: int) -> None:
        if step == arguments.kill_saved:
            os.kill(os.getpid(), signal.SIGKILL)
        point_best(run_dir, step)

    def deadly_prune(run_dir: Path, keep: int, best_step: int | None) -> None:
        if checkpoint.step_folder(run_dir, arguments.kill_saved).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        checkpoint.prune(run_dir, keep, best_step)

    if arguments.kill_writing is not None:
        checkpoint._flush = deadly_flush
    if arguments.kill_saved is not None:
        trainer_module.point_best = deadly_point_best
        trainer_module.prune = deadly_prune

    distributed = init_distributed(config.parallel)

    def recording_clip(parameters: list[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
        if distributed.is_main and not arguments.gradients.exists():
            torch.save([parameter.grad for parameter in parameters], arguments.gradients)
        return clip_grad_norm_(parameters, max_norm)

    if arguments.gradients is not None:
        trainer_module.clip_grad_norm_ = recording_clip
    task = ToyTask(
        batch_size=arguments.batch_size,
        dropout=arguments.dropout,
        nan_at=arguments.nan_at,
        kill_at=arguments.kill_at,
        signal_at=arguments.signal_at,
    )
    assert torch.get_num_threads() == 1
    try:
        Trainer(config, task, distributed, arguments.run_dir).fit()
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except NonFiniteError as error:
        print(f"rank {distributed.rank}: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        distributed.close()


if __name__ == "__main__":
    main()
