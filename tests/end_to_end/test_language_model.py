"""A language model by the entry scripts: train, report, evaluate; one line where something is missing."""

import json
from pathlib import Path

from command_line import call

TINY = [
    "experiment=lm_small", "language_model.d_model=16", "language_model.n_layers=1", "language_model.n_heads=2",
    "language_model.d_hidden=32", "text.tokens_per_batch=40", "optim.warmup_steps=2", "parallel.device=cpu",
    "parallel.threads=1", "logging.progress=false", "logging.tensorboard=false",
    "curriculum.phases.next_word.epochs=1", "curriculum.phases.next_word.evaluate_every_epochs=null",
]  # fmt: skip


def test_train_report_and_evaluate(tmp_path: Path) -> None:
    text, run_dir = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("the cat sleeps\na dog sleeps\nthe dog runs\na bird sings now\n" * 8)
    texts = [f"text.train=[{text}]", f"text.valid=[{text}]"]
    done = call("train.py", *TINY, *texts, f"run_dir={run_dir}", cache=tmp_path)
    report = json.loads((run_dir / "report.json").read_text())
    assert "perplexity of a word" in done.stdout
    assert report["texts"][0]["num_words"] == 8 * 13
    folder = tmp_path / "evaluation"
    call("evaluate_model.py", f"checkpoint={run_dir}/best", f"output={folder}", cache=tmp_path)
    again = json.loads((folder / "report.json").read_text())
    assert again["texts"] == report["texts"]
    refused = call("make_submission.py", f"checkpoint={run_dir}/best", cache=tmp_path, code=2)
    assert "is of task=language_model, which decodes no recordings" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_without_text_one_line_says_what_to_give(tmp_path: Path) -> None:
    refused = call("train.py", "experiment=lm_small", "text.valid=[held_out.txt]", cache=tmp_path, code=2)
    assert refused.stderr == (
        "error: text.train=[]: give text files, one sentence a line, such as text.train=[conversation.txt,read.txt]\n"
    )
