"""Trainings in processes of their own: finished ones stay, interrupted ones go on, failed ones are one line."""

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from mode_ssm.config import TrainConfig
from mode_ssm.train.checkpoint import config_yaml
from mode_ssm.train.separate_runs import RunsProgress, SeparateRun, train_all

# Stands for train.py: a checkpoint after every "step", the last one finished; saves on SIGTERM.
FAKE = """
import json, os, pathlib, signal, sys, time
given = dict(argument.split("=", 1) for argument in sys.argv[1:])
run, total = pathlib.Path(given["run_dir"]), 3
assert given["resume"] == "true"
with open(run / "starts", "a") as file:
    file.write("x")
done = max([int(p.name[5:]) for p in run.glob("checkpoints/step_*")], default=0)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
ballast = bytearray(int(given.get("megabytes", 0)) * 2**20)
for step in range(done + 1, total + 1):
    if given.get("fail") == str(step):
        print("error: no such luck", file=sys.stderr)
        sys.exit(2)
    if given.get("die") == str(step):
        os.kill(os.getpid(), signal.SIGKILL)
    folder = run / "checkpoints" / f"step_{step}"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(pathlib.Path(given["config"]).read_text())
    loop = {"step": step, "seconds": 60.0 * step, "finished": step == total}
    (folder / "state.json").write_text(json.dumps({"format": 1, "files": {}, "loop": loop, "description": {}}))
    if given.get("wait") == str(step) and done == 0:
        (run / "waits").touch()
        time.sleep(60)
(run / "report.json").write_text(json.dumps({"per": 0.5}))
"""


class Runs:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = io.StringIO()
        (folder / "fake_train.py").write_text(FAKE)

    def run(self, row: str, seed: int, *more: str, lr: float = 1e-3) -> SeparateRun:
        config = TrainConfig(run_dir=str(self.folder / row / f"seed_{seed}"))
        config.data.root, config.optim.lr = "data", lr
        file = self.folder / f"{row}_{seed}.yaml"
        file.write_text(config_yaml(config))
        arguments = (f"run_dir={config.run_dir}", f"config={file}", *more)
        return SeparateRun(name=f"{row}/seed_{seed}", row=row, seed=seed, config=config, arguments=arguments)

    def train(self, *runs: SeparateRun, processes: int = 1) -> dict[str, str]:
        bar = Progress(console=Console(file=self.output, width=200))
        command = [sys.executable, str(self.folder / "fake_train.py")]
        return train_all(runs, command, processes, RunsProgress(bar, len(runs), processes))

    def lines(self) -> list[str]:
        return self.output.getvalue().splitlines()


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def starts(run: SeparateRun) -> int:
    return len((run.folder / "starts").read_text())


@pytest.mark.parametrize("processes", [1, 2])
def test_all_are_trained_and_a_second_call_starts_none(runs: Runs, processes: int) -> None:
    all_runs = [runs.run("a", 0), runs.run("a", 1), runs.run("b", 0)]
    assert runs.train(*all_runs, processes=processes) == {}
    assert all(run.finished() and run.seconds() == 180 for run in all_runs)
    assert runs.lines()[0].startswith("[1/3] a/seed_")
    assert "left" in runs.lines()[0]
    assert runs.train(*all_runs) == {}
    assert [starts(run) for run in all_runs] == [1, 1, 1]
    assert runs.lines()[-1] == "[3/3] b/seed_0: was finished"


def test_a_failure_and_a_kill_are_one_line_each_and_the_others_go_on(runs: Runs) -> None:
    failing, dying, fine = runs.run("a", 0, "fail=2"), runs.run("a", 1, "die=3"), runs.run("b", 0)
    failures = runs.train(failing, dying, fine)
    assert failures == {
        "a/seed_0": f"exit code 2, no such luck ({failing.folder / 'train.log'})",
        "a/seed_1": f"killed by SIGKILL, {log_command(dying)} ({dying.folder / 'train.log'})",
    }
    assert fine.finished()
    assert not failing.finished()
    assert len(runs.lines()) == 3
    assert runs.train(runs.run("a", 0), runs.run("a", 1), fine) == {}
    assert (starts(failing), starts(dying), starts(fine)) == (2, 2, 1)


def log_command(run: SeparateRun) -> str:
    return (run.folder / "train.log").read_text().splitlines()[0]


def test_an_interrupt_stops_the_training_and_the_next_call_continues_it(runs: Runs, monkeypatch) -> None:
    first, second = runs.run("a", 0), runs.run("a", 1, "wait=2")
    really_wait = os.wait4

    def interrupted_wait(pid: int, options: int):
        if not (second.folder.exists()):
            return really_wait(pid, options)
        while not (second.folder / "waits").exists():
            time.sleep(0.02)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "wait4", interrupted_wait)
    with pytest.raises(KeyboardInterrupt):
        runs.train(first, second)
    monkeypatch.undo()
    with (second.folder / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the training has ended
    assert first.finished()
    assert not second.finished()
    assert runs.train(first, second) == {}
    assert sorted(path.name for path in second.folder.glob("checkpoints/*")) == ["step_1", "step_2", "step_3"]
    assert (starts(first), starts(second)) == (1, 2)


def test_a_training_that_an_earlier_call_left_behind_is_not_doubled(runs: Runs) -> None:
    run = runs.run("a", 0, "wait=1")
    run.folder.mkdir(parents=True)
    script = (
        "import fcntl, sys, time\n"
        f"lock = open({str(run.folder / '.lock')!r}, 'w')\nfcntl.flock(lock, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert runs.train(run) == {"a/seed_0": f"a process of an earlier call still trains in {run.folder}"}
        other.send_signal(signal.SIGKILL)
    assert runs.train(runs.run("a", 0)) == {}


def test_other_settings_in_a_used_folder_are_refused_in_one_line(runs: Runs) -> None:
    run = runs.run("a", 0)
    run.refuse_changes()
    runs.train(run)
    run.refuse_changes()
    with pytest.raises(
        ValueError, match=r"^\S+ holds a run with optim.lr=0.001, not 0.002; restore it, choose another"
    ):
        runs.run("a", 0, lr=2e-3).refuse_changes()


def test_peak_memory_is_that_of_the_largest_start(runs: Runs) -> None:
    run = runs.run("a", 0, "fail=2", "megabytes=300")
    assert run.peak_memory() is None
    runs.train(run)
    runs.train(runs.run("a", 0))
    peak = run.peak_memory()
    assert peak is not None
    assert json.loads((run.folder / "process.json").read_text()) == {"peak_memory": peak}
    assert peak > 300 * 2**20
