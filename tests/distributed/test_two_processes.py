"""Two gloo processes: the same numbers as one process on the union, one stop for all, one set of files."""

import signal
import socket
from pathlib import Path

import pytest
import torch
from fresh_process import assert_same_run, metric_lines, start

from mode_ssm.train.checkpoint import load_checkpoint


def run_pair(run_dir: Path, *arguments: str) -> list[tuple[int, str]]:
    """Exit code and stderr of both ranks, started as torchrun would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    pair = [start(run_dir, *arguments, environment={**shared, "RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]
    return [process.finish() for process in pair]


def test_two_ranks_on_ragged_batches_equal_one_process_on_the_union(tmp_path: Path) -> None:
    two_arguments = ("--batch-size", "2", "--dropout", "0", "--gradients", str(tmp_path / "two.pt"))
    one_arguments = ("--batch-size", "4", "--dropout", "0", "--gradients", str(tmp_path / "one.pt"))
    # 6 batches of 4 trials an epoch, 2 to a step; on two ranks each holds batches of 2 and the same trials meet.
    assert [code for code, _ in run_pair(tmp_path / "two", *two_arguments)] == [0, 0]
    assert start(tmp_path / "one", *one_arguments).finish()[0] == 0
    gradients = [torch.load(tmp_path / f"{run}.pt", weights_only=True) for run in ("two", "one")]
    for a, b in zip(*gradients, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-5
    two, one = metric_lines(tmp_path / "two"), metric_lines(tmp_path / "one")
    assert [line["step"] for line in two] == [line["step"] for line in one]
    for a, b in zip(two, one, strict=True):
        if a["kind"] == "train":
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)
            assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-5)
        else:
            assert a["val/per"] == b["val/per"]
    weights = [load_checkpoint(tmp_path / run / "checkpoints/step_00000013").weights() for run in ("two", "one")]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-5)
    # Rank 1 wrote nothing of its own: the same files, but for its generators.
    files = [{str(p.relative_to(tmp_path / run)) for p in (tmp_path / run).rglob("*")} for run in ("two", "one")]
    assert {Path(name).name for name in files[0] - files[1]} == {"rng_rank1.pt"}
    assert not files[1] - files[0]


def test_a_nan_on_one_rank_stops_both_with_the_same_message(tmp_path: Path) -> None:
    (code0, errors0), (code1, errors1) = run_pair(tmp_path, "--batch-size", "2", "--nan-at", "1:0:2")
    assert (code0, code1) == (1, 1)
    message = "phase warmup, step 2: not finite: loss ctc of the batch s0/train/trial_"
    assert f"rank 0: {message}" in errors0
    assert f"rank 1: {message}" in errors1
    assert errors0.splitlines()[-1].removeprefix("rank 0") == errors1.splitlines()[-1].removeprefix("rank 1")


def test_killed_and_continued_two_ranks_end_bit_identical_and_a_signal_to_one_stops_both(tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert [code for code, _ in run_pair(whole, "--batch-size", "2")] == [0, 0]
    codes = [code for code, _ in run_pair(run, "--batch-size", "2", "--signal-at", "1:1:3")]
    assert codes == [128 + signal.SIGTERM] * 2
    assert [code for code, _ in run_pair(run, "--batch-size", "2", "--resume")] == [0, 0]
    assert_same_run(whole, run)
    code, errors = start(run, "--batch-size", "2", "--resume", environment={"WORLD_SIZE": "1"}).finish()
    assert code == 1
    assert "use torchrun --nproc_per_node=2" in errors
