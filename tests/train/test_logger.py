"""What a run writes and shows."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_task import SINGLE, ToyTask, make_config, phase

from mode_ssm.config import LoggingConfig
from mode_ssm.train.curriculum import ResolvedPhase, resolve_curriculum
from mode_ssm.train.logger import PlainLines, ProgressBars, StepRecord, open_logger
from mode_ssm.train.trainer import Trainer

QUIET = LoggingConfig(progress=False, tensorboard=False, every_steps=1)


def plan() -> list[ResolvedPhase]:
    curriculum = make_config(
        {"ctc_warmup": phase("encoder", ctc=1.0, steps=4), "joint": phase("encoder", ctc=1.0, steps=6)}
    ).curriculum
    return resolve_curriculum(curriculum, [5, 5], 1)


def record(step_in_phase: int, phase: ResolvedPhase, **changes: Any) -> StepRecord:
    values: dict[str, Any] = {
        "step": phase.start_step + step_in_phase, "step_in_phase": step_in_phase, "phase": phase, "epoch": 0.5,
        "loss": 1.5, "terms": {"ctc": 1.5}, "learning_rate": 2e-4, "gradient_norm": 3.0, "trials": 32, "seconds": 0.5,
    }  # fmt: skip
    return StepRecord(**(values | changes))


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_line_holds_the_documented_entries_and_the_speed_since_the_last_line(tmp_path: Path) -> None:
    joint = plan()[1]
    config = LoggingConfig(progress=False, tensorboard=False, every_steps=3)
    with open_logger(tmp_path, config, plan(), 0, is_main=True) as logger:
        for step in range(1, 7):
            logger.step(record(step, joint, seconds=0.25 if step in (2, 3) else 0.5), run_seconds=float(step))
        logger.evaluation(10, "joint", {"val/per": 0.25}, 6.5)
    assert [line["step"] for line in lines(tmp_path)] == [5, 7, 10, 10]
    assert lines(tmp_path)[1] == {
        "kind": "train", "step": 7, "phase": "joint", "epoch": 0.5, "train/loss": 1.5, "train/ctc": 1.5, "lr": 2e-4,
        "grad_norm": 3.0, "trials_per_second": 128.0, "seconds": 3.0,
    }  # fmt: skip
    assert lines(tmp_path)[3] == {"kind": "evaluation", "step": 10, "phase": "joint", "val/per": 0.25, "seconds": 6.5}


def test_continuing_drops_lines_beyond_the_checkpoint_and_a_half_written_one(tmp_path: Path) -> None:
    old = [{"kind": "train", "step": step} for step in (1, 2, 3, 4)]
    text = "".join(json.dumps(line) + "\n" for line in old)
    (tmp_path / "metrics.jsonl").write_text(text + '{"kind": "tr')
    with open_logger(tmp_path, QUIET, plan(), 2, is_main=True) as logger:
        logger.step(record(3, plan()[0]), 1.0)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_ranks_above_zero_write_nothing(tmp_path: Path) -> None:
    with open_logger(tmp_path, LoggingConfig(), plan(), 0, is_main=False) as logger:
        logger.step(record(1, plan()[0]), 1.0)
        logger.evaluation(1, "a", {"val/per": 0.5}, 1.0)
    assert not list(tmp_path.iterdir())


def test_tensorboard_holds_losses_and_metrics_by_step(tmp_path: Path) -> None:
    config = make_config({"a": phase("encoder", "ctc_head", ctc=1.0, steps=3)})
    config.logging = LoggingConfig(progress=False, tensorboard=True, every_steps=1)
    Trainer(config, ToyTask(metrics=[0.25]), SINGLE, tmp_path).fit()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("train/ctc")] == [1, 2, 3]
    assert [(event.step, event.value) for event in events.Scalars("val/per")] == [(3, 0.25)]


def test_plain_lines_name_stage_step_loss_rate_speed_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    display = PlainLines(num_phases=2, run_steps=10)
    joint = plan()[1]
    for step in range(1, 7):
        now += 4.0
        display.step(record(step, joint, seconds=4.0), 64.0)
    shown = capsys.readouterr().err.splitlines()
    assert shown == [
        "stage 2/2 joint  step 1/6  loss 1.5000  lr 2.00e-04  64 trials/s  left: stage 0:00:20, run 0:00:20",
        "stage 2/2 joint  step 4/6  loss 1.5000  lr 2.00e-04  64 trials/s  left: stage 0:00:08, run 0:00:08",
        "stage 2/2 joint  step 6/6  loss 1.5000  lr 2.00e-04  64 trials/s  left: stage 0:00:00, run 0:00:00",
    ]


def test_bars_show_the_stage_and_the_whole_run() -> None:
    console = Console(record=True, force_terminal=True, width=160, file=open("/dev/null", "w"))  # noqa: SIM115
    display = ProgressBars(console, num_phases=2, run_steps=10, start_step=0)
    display.step(record(4, plan()[0]), 64.0)
    display.step(record(3, plan()[1]), 64.0)
    display.note("joint, step 7: val/per 0.25")
    display.close()
    text = console.export_text()
    for part in (
        "stage 2/2 joint",
        "3/6",
        "whole run",
        "7/10",
        "loss 1.5000  lr 2.00e-04  64 trials/s",
        "val/per 0.25",
    ):
        assert part in text
