"""A run that is killed and continued, in fresh processes, ends like one that was left alone; dropout is on.

The toy run has 6 + 7 steps of 2 batches, 6 batches an epoch; it saves every 4 steps and where its metric is better.
"""

import signal
import time
from pathlib import Path

import pytest
from fresh_process import assert_same_run, start
from toy_task import SINGLE, ToyTask, make_config

from mode_ssm.train.checkpoint import complete_checkpoints
from mode_ssm.train.trainer import Trainer


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("uninterrupted")
    assert start(run_dir).finish()[0] == 0
    return run_dir


def newest(run_dir: Path) -> int:
    return int(complete_checkpoints(run_dir)[-1].name.removeprefix("step_"))


def test_killed_over_and_over_the_run_ends_bit_identical(uninterrupted: Path, tmp_path: Path) -> None:
    deaths = [
        (["--kill-at", "0:1:4"], 4),  # mid-epoch, between the checkpoints of steps 4 and 6
        (["--kill-at", "0:2:0"], 6),  # the first batch of the second phase: the checkpoint of the boundary stands
        (["--kill-writing", "8"], 6),  # half a checkpoint on disk
        (["--kill-saved", "12"], 12),  # whole, but not pruned
    ]
    for arguments, expected in deaths:
        code, _ = start(tmp_path, *arguments, "--resume").finish()
        assert (code, newest(tmp_path)) == (-signal.SIGKILL, expected)
    code, errors = start(tmp_path, "--resume").finish()
    assert code == 0, errors
    assert_same_run(uninterrupted, tmp_path)


def test_killed_at_the_boundary_before_best_follows_the_run_ends_bit_identical(
    uninterrupted: Path, tmp_path: Path
) -> None:
    assert start(tmp_path, "--kill-saved", "6").finish()[0] == -signal.SIGKILL
    assert (tmp_path / "best").readlink() == Path("checkpoints/step_00000003")
    assert start(tmp_path, "--resume").finish()[0] == 0
    assert_same_run(uninterrupted, tmp_path)


def test_sigterm_saves_says_how_to_continue_and_loses_nothing(uninterrupted: Path, tmp_path: Path) -> None:
    code, errors = start(tmp_path, "--signal-at", "0:1:5").finish()  # while step 6 draws its second batch
    assert code == 143
    assert "stopped by SIGTERM after step 5" in errors
    assert f"saved {tmp_path}/checkpoints/step_00000005; continue with resume=true" in errors
    assert newest(tmp_path) == 5
    assert start(tmp_path, "--resume").finish()[0] == 0
    assert_same_run(uninterrupted, tmp_path)


def test_resume_before_the_first_checkpoint_starts_at_the_beginning(tmp_path: Path) -> None:
    class PowerCutError(Exception):
        pass

    class Failing(ToyTask):
        def before_batch(self, rank: int, epoch: int, number: int) -> None:
            if number == 4:
                raise PowerCutError

    with pytest.raises(PowerCutError):
        Trainer(make_config(), Failing(), SINGLE, tmp_path / "run").fit()
    Trainer(make_config(resume=True), ToyTask(), SINGLE, tmp_path / "run").fit()
    Trainer(make_config(), ToyTask(), SINGLE, tmp_path / "whole").fit()
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_resuming_a_finished_run_returns_its_result_without_touching_the_task(tmp_path: Path) -> None:
    result = Trainer(make_config(), ToyTask(), SINGLE, tmp_path).fit()
    stamp = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    class Untouchable(ToyTask):
        def setup(self) -> None:
            raise AssertionError("set up again")

    assert Trainer(make_config(resume=True), Untouchable(), SINGLE, tmp_path).fit() == result
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == stamp


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(6))
def test_killed_at_a_random_moment_the_run_ends_bit_identical(uninterrupted: Path, tmp_path: Path, moment: int) -> None:
    run = start(tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 2 * moment):
        time.sleep(0.001)
    run.process.kill()
    run.finish()
    assert start(tmp_path, "--resume").finish()[0] == 0
    assert_same_run(uninterrupted, tmp_path)
