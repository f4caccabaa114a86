"""What a comparison of models leaves behind."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mode_ssm.report_comparison import markdown, print_comparison, write_comparison
from mode_ssm.tasks.comparison import MeasuredTrial, compare

COSTS = {
    "num_parameters": 1_234_000, "macs_per_second": 5.6e6, "trial_ms": 0.12, "step_ms": None, "frame_stride": 4,
    "causal": True, "signal": "Offline figures.", "training_seconds": 90.0, "peak_memory": 2**30,
    "overrides": ["experiment=x"], "learning_rate": 1e-3, "tried_learning_rates": {},
}  # fmt: skip


def run(per: int, wer: int | None = 1) -> list[MeasuredTrial]:
    return [
        MeasuredTrial(
            name=f"{session}/test/trial", session=session, corpus=None, mode=mode, seen=False, days=0, per=(per, 10),
            per_greedy_ctc=(per, 10), wer=None if wer is None else (wer, 4),
        )
        for session, mode in (("t15.2023.08.11", "silent"), ("t15.2023.08.13", "vocalised"))
    ]  # fmt: skip


def make_summary(wer: int | None = 1) -> dict[str, Any]:
    splits = {split: compare({"a<b": [run(2, wer), run(4, wer)], "c": [run(1, wer)]}, 50) for split in ("val", "test")}
    tried = {"learning_rate": 3e-3, "tried_learning_rates": {"0.001": 0.25, "0.003": 0.2, "0.01": None}}
    return {
        "split": "test", "reference": "a<b", "commit": None, "splits": splits,
        "rows": {
            "a<b": {**COSTS, "seeds": [0, 1]},
            "c": {**COSTS, **tried, "step_ms": 0.5, "peak_memory": None, "seeds": [0]},
        },
        "failures": {"c/seed_1": "exit code 2, no such luck (train.log)"},
    }  # fmt: skip


@pytest.fixture
def curves(tmp_path: Path) -> dict[str, list[Path]]:
    file = tmp_path / "metrics.jsonl"
    lines = [{"kind": "train", "step": step, "phase": "ctc", "train/loss": 9.0 - step} for step in (1, 2)]
    lines.append({"kind": "evaluation", "step": 2, "phase": "ctc", "val/per": 0.5})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"a<b": [file, file], "c": [file]}


def test_markdown_has_rates_changes_costs_and_what_they_rest_on():
    text = markdown(make_summary())
    assert "| a<b | 2 | 30.0 (20.0–40.0) |  | 25.0 (25.0–25.0) |  | 30.0 (20.0–40.0) |" in text
    assert "| c | 1 | 10.0 (10.0–10.0) | -20.0 (-30.0 to -10.0) | 25.0 (25.0–25.0) | +0.0 (+0.0 to +0.0) |" in text
    assert "| a<b | 1.23 | 5.6 | 1.5 | 1024 | 0.120 | – | 80 | yes | 0.001 |" in text
    assert "| c | 1.23 | 5.6 | 1.5 | – | 0.120 | 0.50 | 80 | yes | 0.003 |" in text
    assert "PER in % by mode:\n\n|  | silent (1) | vocalised (1) |" in text
    assert "by sentences" not in text  # all are unseen
    assert "chosen by PER in % on val with seed 0 (0.001 25.0, 0.003 20.0, 0.01 –)." in text
    assert "edge" not in text
    assert "Failed: c/seed_1, exit code 2, no such luck (train.log)" in text
    assert "2 trials of test." in text


def test_page_and_json_are_written(tmp_path, curves):
    summary, folder = make_summary(), tmp_path / "compared"
    folder.mkdir()
    write_comparison(folder, summary, curves)
    assert sorted(path.name for path in folder.iterdir()) == ["compare.html", "compare.json", "compare.md"]
    assert json.loads((folder / "compare.json").read_text()) == summary
    page = (folder / "compare.html").read_text()
    assert page.count("<svg") == 3
    assert "a&lt;b" in page
    assert "a<b" not in page
    assert "Error rates on val" in page


def test_without_words_only_phonemes_are_compared(tmp_path, curves):
    summary = make_summary(wer=None)
    assert "| c | 1 | 10.0 (10.0–10.0) | -20.0 (-30.0 to -10.0) | – |  |" in markdown(summary)
    write_comparison(tmp_path, summary, curves)
    assert "WER (%)" not in (tmp_path / "compare.html").read_text()


def test_the_screen_shows_a_column_for_every_model():
    output = io.StringIO()
    print_comparison(make_summary(), Console(file=output, width=80))
    lines = [line.strip() for line in output.getvalue().splitlines()]
    assert next(line for line in lines if line.startswith("PER %")).split() == [
        "PER", "%", "30.0", "(20.0–40.0)", "10.0", "(10.0–10.0)"
    ]  # fmt: skip
    assert any(line.startswith("causal") for line in lines)
