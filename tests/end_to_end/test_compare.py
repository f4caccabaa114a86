"""scripts/compare.py on a tiny dataset: two experiments, learning rates, an interruption, a failure."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from command_line import SHORT, TINY_MODEL, call, command, environment

SCRIPT = "scripts/compare.py"
OF_MODEL = ("model.", "curriculum.", "decode.rnnt")


def quoted(lines: list[str]) -> str:
    return "[" + ",".join(f'"{line}"' for line in lines) + "]"


def arguments(root: Path, *more: str) -> list[str]:
    small = [line for line in [*TINY_MODEL, *SHORT] if line.startswith(OF_MODEL)]
    gru = ["model.gru.hidden=16", "model.gru.n_layers=2", "curriculum.phases.ctc.epochs=null",
           "curriculum.phases.ctc.steps=2"]  # fmt: skip
    shared = [line for line in TINY_MODEL if not line.startswith(OF_MODEL)]
    return [
        "experiments=[sim_gru_baseline,sim_mode_ssm]", "seeds=[0]", "name=c", "samples=50", f"data.root={root}",
        "tune_lr.sim_gru_baseline=[1e-3,5e-3]", f"settings.sim_mode_ssm={quoted(small)}",
        f"settings.sim_gru_baseline={quoted(gru)}", "logging.tensorboard=false", *shared, *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_two_models_are_compared_after_an_interruption_and_a_second_call_trains_nothing(
    tiny, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs" / "c"
    with subprocess.Popen(
        command(SCRIPT, *arguments(tiny.root)), env=environment(tiny.cache), stderr=subprocess.PIPE, text=True
    ) as first:
        while not list(runs.glob("sim_gru_baseline/lr_0.005/seed_0/train.log")):
            assert first.poll() is None
            time.sleep(0.05)
        first.send_signal(signal.SIGINT)
        assert first.wait(120) == 130
        assert first.stderr is not None
        assert "the same command goes on" in first.stderr.read()
    finished = runs / "sim_gru_baseline" / "lr_0.001" / "seed_0"
    before = (finished / "train.log").read_text()

    done = call(SCRIPT, *arguments(tiny.root), cache=tiny.cache)
    assert (finished / "train.log").read_text() == before
    assert "sim_gru_baseline/lr_0.001/seed_0: was finished" in done.stdout
    summary = json.loads((runs / "compare.json").read_text())
    assert (summary["split"], list(summary["rows"])) == ("test", ["sim_gru_baseline", "sim_mode_ssm"])
    gru, mode_ssm = summary["rows"].values()
    pers = {
        rate: json.loads((runs / "sim_gru_baseline" / f"lr_{rate}" / "seed_0" / "report.json").read_text())["per"]
        for rate in ("0.001", "0.005")
    }
    assert gru["tried_learning_rates"] == pers
    assert pers[f"{gru['learning_rate']:g}"] == min(pers.values())
    assert gru["step_ms"] is None
    assert mode_ssm["step_ms"] > 0
    assert min(of["peak_memory"] for of in (gru, mode_ssm)) > 2**27
    report = json.loads((runs / "sim_mode_ssm" / "seed_0" / "report.json").read_text())
    compared = summary["splits"]["val"]["sim_mode_ssm"]["all"]
    assert (compared["per"]["value"], compared["wer"]["value"]) == pytest.approx((report["per"], report["wer"]))
    assert compared["per"]["difference"] is not None
    assert (runs / "compare.html").exists()

    again = call(SCRIPT, *arguments(tiny.root), cache=tiny.cache)
    assert again.stdout.count("was finished") == 3
    assert json.loads((runs / "compare.json").read_text()) == summary

    refused = call(SCRIPT, *arguments(tiny.root, "optim.weight_decay=0.5"), cache=tiny.cache, code=2)
    assert "holds a run with optim.weight_decay=" in refused.stderr
    failing = call(
        SCRIPT, "experiments=[sim_mode_ssm,bad]", "name=c", "seeds=[0]", f"data.root={tiny.root}", *arguments("")[6:7],
        'settings.bad=["experiment=sim_mode_ssm","data.train_sessions=[nowhere]"]', "logging.tensorboard=false",
        *[line for line in TINY_MODEL if not line.startswith(OF_MODEL)], cache=tiny.cache, code=1,
    )  # fmt: skip
    assert "bad/seed_0: failed: exit code 2, data.train_sessions names 'nowhere'" in failing.stdout
    assert list(json.loads((runs / "compare.json").read_text())["rows"]) == ["sim_mode_ssm"]


def test_rows_on_two_datasets_are_refused_before_anything_is_trained(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused = call(
        SCRIPT, "experiments=[sim_gru_baseline,t15_gru_baseline]", cache=tmp_path / "cache", code=2
    )  # fmt: skip
    assert "rows are compared on one dataset, but data.root differs (sim_gru_baseline: data/" in refused.stderr
    assert not (tmp_path / "runs").exists()
