"""Around a run: entry scripts from any folder, sweeps, and errors in one line."""

import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import pytest

from mode_ssm.compose import ConfigError, load_train_config, overrides, run_main
from mode_ssm.compose.launch import sweep_jobs
from mode_ssm.vocab import phonemes_to_ids

EXPERIMENTS = sorted(path.stem for path in (Path(__file__).parents[1] / "configs" / "experiment").glob("*.yaml"))
ENTRY = """
import sys
from mode_ssm.compose import load_train_config, run_main
def main():
    config = load_train_config(sys.argv[1:])
    print(config.run_name, config.optim.lr, config.seed)
    if config.seed == 3:
        raise SystemExit(4)
run_main(main)
"""


@pytest.fixture
def entry(tmp_path):
    """Run an entry script in a process of its own, from a folder that is not the repository's."""
    script = tmp_path / "entry.py"
    script.write_text(ENTRY)

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | environment)

    return run


def test_an_entry_script_runs_from_any_folder(entry):
    assert entry("seed=1", "optim.lr=0.5").stdout == "quickstart 0.5 1\n"


def test_a_mistake_ends_in_one_line_and_exit_code_2(entry):
    run = entry("model.d_modle=3")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "error: unknown key 'model.d_modle'; did you mean 'model.d_model'?\n"


def test_the_traceback_can_be_asked_for(entry):
    run = entry("model.d_modle=3", MODE_SSM_TRACEBACK="1")
    assert run.returncode == 1
    assert run.stderr.startswith("Traceback")


def test_a_sweep_runs_every_job_in_a_run_directory_of_its_own(entry):
    run = entry("-m", "optim.lr=1e-3,2e-3", "run_name=base", "seed=5")
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "[1/2] optim.lr=0.001 seed=5 -> base_optim.lr-0.001",
        "base_optim.lr-0.001 0.001 5",
        "[2/2] optim.lr=0.002 seed=5 -> base_optim.lr-0.002",
        "base_optim.lr-0.002 0.002 5",
    ]


def test_a_sweep_is_the_product_of_its_values():
    parsed = overrides.parse(["experiment=glob(t15*)", "seed=range(0,4,2)", "data.root=x"])
    space = overrides.Space({}, {"experiment": ["quickstart", "t15_mode_ssm", "t15_mode_ssm_smoke"]})
    assert sweep_jobs(parsed, ["experiment=glob(t15*)", "seed=range(0,4,2)", "data.root=x"], space) == [
        ["experiment=t15_mode_ssm", "seed=0", "data.root=x"],
        ["experiment=t15_mode_ssm", "seed=2", "data.root=x"],
        ["experiment=t15_mode_ssm_smoke", "seed=0", "data.root=x"],
        ["experiment=t15_mode_ssm_smoke", "seed=2", "data.root=x"],
    ]


def test_a_sweep_ends_at_the_first_failure(entry):
    run = entry("-m", "seed=3,4")
    assert run.returncode == 4
    assert "seed-3) ended with exit code 4" in run.stderr
    assert "[2/2]" not in run.stdout


def test_a_sweep_starts_nothing_if_one_of_its_jobs_makes_no_sense(entry):
    run = entry("-m", "seed=1,-1")
    assert (run.returncode, run.stdout, run.stderr) == (2, "", "error: seed=-1: expected 0 or above\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seed=1"], "--multirun needs a setting with several values, such as optim.lr=1e-3,2e-3"),
        (["optim.lr=interval(0,1)"], "'optim.lr=interval(0,1)': an interval has no list of values; "
         "write range(a,b,step) or a,b,c"),
        (["experiment=quickstart,spoken_digit"],
         f"unknown experiment 'spoken_digit'; did you mean 'spoken_digits'? choices: {', '.join(EXPERIMENTS)}"),
    ],
)  # fmt: skip
def test_a_sweep_that_cannot_run_is_refused(arguments, message):
    with pytest.raises(ConfigError) as error:
        load_train_config(["-m", *arguments])
    assert str(error.value) == message


def test_a_sweep_is_refused_under_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"^--multirun does not run under torchrun; start one torchrun for every"):
        load_train_config(["-m", "seed=1,2"])


def test_a_missing_file_is_named_in_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        run_main(lambda: Path("no/such/file").read_text())
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: no such file or directory: no/such/file\n"


def test_a_mistake_inside_of_a_library_keeps_its_traceback():
    with pytest.raises(json.JSONDecodeError):
        run_main(lambda: json.loads("x"))
    with pytest.raises(OSError, match="of a library"):
        run_main(lambda: in_a_library(OSError("of a library")))


def in_a_library(error: Exception) -> None:
    done = Future()
    done.set_exception(error)
    done.result()


def in_a_worker(function, *arguments) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(function, *arguments).result()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ((phonemes_to_ids, ["AA", "XX"]), "error: unknown phoneme 'XX'"),
        ((Path.read_text, Path("no/such/file")), "error: no such file or directory: no/such/file"),
        ((os._exit, 1), "error: a worker process was killed, "),
    ],
)
def test_what_ends_a_worker_process_is_one_line_too(capsys, call, said):
    with pytest.raises(SystemExit) as stop:
        run_main(lambda: in_a_worker(*call))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)


def test_a_mistake_inside_of_a_library_in_a_worker_process_keeps_its_traceback():
    with pytest.raises(json.JSONDecodeError):
        run_main(lambda: in_a_worker(json.loads, "x"))
