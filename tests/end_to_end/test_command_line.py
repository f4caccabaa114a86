"""Train, evaluate, adapt, submit, continue: the commands of the README on a tiny dataset."""

import csv
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import REPOSITORY, call, command, environment, tiny_run

from mode_ssm.data.index import build_index, submission_order
from mode_ssm.data.truth import read_truth
from mode_ssm.train.checkpoint import load_checkpoint
from mode_ssm.vocab import normalise_sentence

TRAINED = {
    "ctc_warmup": {"preprocessor", "encoder", "ctc_head"},
    "joint": {"preprocessor", "encoder", "ctc_head", "predictor", "joiner"},
    "mode": {"preprocessor", "encoder", "mode_head", "ctc_head", "predictor", "joiner"},
    "flow_bridge": {"denoiser", "ctc_head", "predictor", "joiner"},
}


def digest(folder: Path) -> dict[str, str]:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_a_run_leaves_report_events_metrics_and_checkpoints(tiny) -> None:
    report = json.loads((tiny.run_dir / "report.json").read_text())
    required = {"split", "per", "wer", "cer", "per_greedy_ctc", "per_rnnt", "by_session", "num_trials"}
    assert required <= set(report)
    assert report["split"] == "val"
    assert [stage["stage"] for stage in report["stages"]] == list(TRAINED)
    assert all(stage["val/per"] >= 0 for stage in report["stages"])
    for rate in ("per", "wer", "cer", "per_greedy_ctc", "per_rnnt"):
        assert report[rate] >= 0
    page = (tiny.run_dir / "report.html").read_text()
    assert all(name in page for name in TRAINED)
    assert list(tiny.run_dir.glob("events.out.tfevents.*"))
    lines = [json.loads(line) for line in (tiny.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert {line["phase"] for line in lines} == set(TRAINED)
    assert (tiny.run_dir / "best").is_symlink()
    assert "PER" in tiny.output


def test_each_stage_moves_the_parameters_it_trains_and_no_others(tiny) -> None:
    checkpoints = [load_checkpoint(p) for p in sorted((tiny.run_dir / "checkpoints").glob("step_*"))]
    ends = {c.state["loop"]["history"][-1]["phase"]: c for c in checkpoints if c.state["loop"]["history"]}
    assert list(ends) == list(TRAINED)
    pairs = zip(list(ends)[:-1], list(ends)[1:], strict=True)
    for earlier, later in pairs:
        before, after = ends[earlier].weights(), ends[later].weights()
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert {name.split(".")[0] for name in moved} == TRAINED[later]


def test_evaluating_the_best_checkpoint_repeats_the_report(tiny, tmp_path: Path) -> None:
    best = str(tiny.run_dir / "best")
    call("evaluate_model.py", f"checkpoint={best}", "split=val", f"output={tmp_path / 'a'}", cache=tiny.cache)
    again = json.loads((tmp_path / "a" / "report.json").read_text())
    assert again == json.loads((tiny.run_dir / "report.json").read_text())


def test_adaptation_reports_both_and_leaves_checkpoint_and_plain_figures_alone(tiny, tmp_path: Path) -> None:
    best = tiny.run_dir / "best"
    before = digest(best.resolve())
    call("evaluate_model.py", f"checkpoint={best}", "tta=true", f"output={tmp_path / 'tta'}", cache=tiny.cache)
    assert digest(best.resolve()) == before
    adapted = json.loads((tmp_path / "tta" / "report.json").read_text())
    plain = json.loads((tiny.run_dir / "report.json").read_text())
    assert adapted["wer_without_tta"] == plain["wer"]
    for session, group in adapted["by_session"].items():
        assert group["wer_without_tta"] == plain["by_session"][session]["wer"]
        assert group["wer"] is not None
    assert set(adapted["adaptation"]) == set(adapted["by_session"])


def test_evaluation_without_adaptation_is_byte_identical_every_time(tiny, tmp_path: Path) -> None:
    for name in ("a", "b"):
        call("evaluate_model.py", f"checkpoint={tiny.run_dir}", f"output={tmp_path / name}", cache=tiny.cache)
    reports = [(tmp_path / name / "report.json").read_bytes() for name in ("a", "b")]
    assert reports[0] == reports[1]


def test_the_test_split_is_judged_by_the_truth_beside_it(tiny, tmp_path: Path) -> None:
    arguments = [f"checkpoint={tiny.run_dir}", "split=test", f"output={tmp_path}"]
    call("evaluate_model.py", *arguments, cache=tiny.cache)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["num_trials"] == sum(record.split == "test" for record in read_truth(tiny.root).values())


@pytest.mark.parametrize("tta", ["false", "true"])
def test_the_submission_has_every_test_trial_in_order(tiny, tmp_path: Path, tta: str) -> None:
    output = tmp_path / "submission.csv"
    call("make_submission.py", f"checkpoint={tiny.run_dir}/best", f"tta={tta}", f"output={output}", cache=tiny.cache)
    with output.open() as file:
        rows = list(csv.reader(file))
    trials = submission_order(build_index(tiny.root, progress=False).trials["test"])
    assert rows[0] == ["id", "text"]
    assert [row[0] for row in rows[1:]] == [str(i) for i in range(len(trials))]
    assert all(normalise_sentence(text) == text for _, text in rows[1:])


def test_the_submission_holds_what_evaluation_decodes_for_those_trials(tiny, tmp_path: Path) -> None:
    output = tmp_path / "submission.csv"
    call("make_submission.py", f"checkpoint={tiny.run_dir}/best", f"output={output}", cache=tiny.cache)
    arguments = [f"checkpoint={tiny.run_dir}", "split=test", f"output={tmp_path}"]
    call("evaluate_model.py", *arguments, cache=tiny.cache)
    with output.open() as file:
        texts = [row[1] for row in list(csv.reader(file))[1:]]
    trials = submission_order(build_index(tiny.root, progress=False).trials["test"])
    truth = read_truth(tiny.root)
    from mode_ssm.metrics import aggregate, word_errors

    errors = [word_errors(truth[t.name].sentence, text) for t, text in zip(trials, texts, strict=True)]
    report = json.loads((tmp_path / "report.json").read_text())
    assert aggregate(errors).rate == pytest.approx(report["wer"])


def test_a_missing_checkpoint_and_missing_data_end_in_one_line(tiny, tmp_path: Path) -> None:
    done = call("evaluate_model.py", f"checkpoint={tiny.run_dir}/bset", cache=tiny.cache, code=2)
    assert done.stderr.startswith("error: no checkpoint at")
    assert len(done.stderr.strip().splitlines()) == 1
    done = call("train.py", f"data.root={tmp_path / 'none'}", "data.simulate.enabled=false", cache=tiny.cache, code=2)
    assert "holds no recordings" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("stop_at", [3, 7])
def test_killed_at_any_moment_and_resumed_ends_bit_identical(tiny, tmp_path: Path, stop_at: int) -> None:
    """Mid-epoch (step 3) and right after a stage boundary; dropout and augmentation are on."""
    arguments = tiny_run(tiny.root, tmp_path / "run", "checkpoint.every_steps=2", "checkpoint.keep=9")
    process = subprocess.Popen(
        command("train.py", *arguments), env=environment(tiny.cache), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (tmp_path / "run" / "checkpoints" / f"step_{stop_at - 1:08d}").is_dir() or (
            metrics.exists() and f'"step": {stop_at}' in metrics.read_text()
        ):
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    call("train.py", *arguments, "resume=true", cache=tiny.cache)
    weights = [load_checkpoint(sorted((d / "checkpoints").glob("step_*"))[-1]).weights()
               for d in (tiny.run_dir, tmp_path / "run")]  # fmt: skip
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def torchrun(script: str, *arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = ["--nproc_per_node=2", f"--master_port={port}", str(REPOSITORY / script)]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *launch, *arguments],
        env=environment(cache),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_torchrun_with_two_processes_writes_one_set_of_files(tiny, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    done = torchrun("train.py", *tiny_run(tiny.root, run_dir), cache=tiny.cache)
    assert done.returncode == 0, done.stdout + done.stderr
    names = {p.name.split(".")[0] if "tfevents" in p.name else p.name for p in run_dir.iterdir()}
    single = {p.name.split(".")[0] if "tfevents" in p.name else p.name for p in tiny.run_dir.iterdir()}
    assert names == {name for name in single if not name.startswith("evaluate")}
    assert len(list(run_dir.glob("events.out.tfevents.*"))) == 1
    report = json.loads((run_dir / "report.json").read_text())
    assert report["num_trials"] == json.loads((tiny.run_dir / "report.json").read_text())["num_trials"]
    assert os.readlink(run_dir / "best").startswith("checkpoints/step_")


def test_torchrun_with_two_processes_reports_what_one_does(tiny, tmp_path: Path) -> None:
    arguments = [f"checkpoint={tiny.run_dir / 'best'}", f"output={tmp_path}"]
    done = torchrun("evaluate_model.py", *arguments, cache=tiny.cache)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("report: ") == 1
    assert (tmp_path / "report.json").read_bytes() == (tiny.run_dir / "report.json").read_bytes()


def test_torchrun_with_a_mistake_ends_in_one_line_and_without_a_file(tiny, tmp_path: Path) -> None:
    arguments = [f"checkpoint={tiny.run_dir / 'best'}", "lm.model=none.arpa", f"output={tmp_path / 'submission.csv'}"]
    done = torchrun("make_submission.py", *arguments, cache=tiny.cache)
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == [
        "error: lm.model=none.arpa: no such file; scripts/train_lm.py writes one"
    ]
    assert not list(tmp_path.iterdir())
