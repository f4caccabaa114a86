"""scripts/tune_decoding.py on the tiny run, in fresh processes."""

import json
import re
import shlex
from pathlib import Path

import pytest
from command_line import call

SCRIPT = "scripts/tune_decoding.py"
SMALL = ["axes.acoustic_scale=[0.5,1.0]", "axes.word_bonus=[0]", "axes.blank_penalty=[0,1]", "processes=1"]


@pytest.fixture(scope="module")
def tuned(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    arguments = [f"checkpoint={tiny.run_dir}/best", *SMALL, "refinements=1", "decode.nbest=5", f"output={folder}"]
    done = call(SCRIPT, *arguments, cache=tiny.cache)
    (folder / "stdout").write_text(done.stdout)
    return folder


def test_the_default_setting_has_the_error_rate_of_the_run_and_the_chosen_one_what_its_command_measures(
    tiny, tuned, tmp_path
):
    study = json.loads((tuned / "tune.json").read_text())
    report = json.loads((tiny.run_dir / "report.json").read_text())
    assert study["default"]["wer"] == pytest.approx(report["wer"], abs=1e-12)
    (line,) = re.findall(r"^uv run evaluate_model\.py .*$", (tuned / "stdout").read_text(), re.MULTILINE)
    assert "decode.nbest=5" in line
    call("evaluate_model.py", *shlex.split(line)[3:], f"output={tmp_path}", cache=tiny.cache)
    measured = json.loads((tmp_path / "report.json").read_text())["wer"]
    assert study["chosen"]["wer"] == pytest.approx(measured, abs=1e-12)
    assert study["chosen"]["wer"] == min(trial["wer"] for trial in study["trials"])
    assert {"heatmap.png", "tune.html", "decode.yaml"} <= {path.name for path in tuned.iterdir()}


def test_a_second_call_runs_neither_network_nor_search_again_and_another_language_model_only_the_search(tiny, tuned):
    log_probs, before = tiny.run_dir / "log_probs_val.npz", (tuned / "tune.json").read_text()
    made = log_probs.stat().st_mtime_ns
    arguments = [f"checkpoint={tiny.run_dir}/best", *SMALL, "refinements=1", "decode.nbest=5", f"output={tuned}"]
    again = call(SCRIPT, *arguments, cache=tiny.cache)
    assert again.stderr == ""
    assert (tuned / "tune.json").read_text() == before
    other = call(SCRIPT, *arguments, "lm.order=1", cache=tiny.cache)
    assert "was made with another language model or lexicon; the study begins afresh" in other.stderr
    assert log_probs.stat().st_mtime_ns == made


def test_another_search_than_that_over_ctc_is_refused_in_one_line(tiny):
    done = call(SCRIPT, f"checkpoint={tiny.run_dir}/best", "decode.search=rnnt", cache=tiny.cache, code=2)
    assert done.stderr == "error: decode.search=rnnt: scales are tuned for decode.search=ctc only\n"


def test_the_test_split_is_refused_in_one_line(tiny):
    done = call(SCRIPT, f"checkpoint={tiny.run_dir}/best", "split=test", cache=tiny.cache, code=2)
    assert done.stderr == (
        "error: split=test: scales chosen on the test split make its error rates too good to be true; "
        "tune with split=val\n"
    )
