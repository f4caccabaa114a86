"""scripts/train_lm.py as a user calls it."""

import runpy
import sys
from pathlib import Path

import pytest

from mode_ssm.lm.kenlm_scorer import open_scorer

SCRIPT = Path(__file__).parent.parent / "scripts" / "train_lm.py"
SENTENCES = Path(__file__).parent / "lm" / "fixtures" / "sentences.txt"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as done:
        return int(done.code or 0)
    return 0


def test_a_model_is_written_in_both_forms_and_measured(monkeypatch, tmp_path, capsys):
    mapped, arpa = tmp_path / "lm.ngram", tmp_path / "lm.arpa.gz"
    valid = tmp_path / "valid.txt"
    valid.write_text("Thank you, nurse!\n\nA zebra?\n")
    arguments = ["--order", 3, "--prune", 0, 0, 1, "--output", mapped, "--arpa", arpa, "--valid", valid]
    assert run(monkeypatch, SENTENCES, *arguments) == 0
    words = ["thank", "you"]
    assert open_scorer(mapped).sequence_log_prob(words) == pytest.approx(
        open_scorer(arpa).sequence_log_prob(words), abs=1e-5
    )
    printed = capsys.readouterr().out
    assert "3-grams of sentences.txt" in printed
    assert "20.00" in printed  # % unknown: one word of five
    assert "zebra 1" in printed


def test_interpolation_and_eight_bits(monkeypatch, tmp_path, capsys):
    other, held_out = tmp_path / "other.txt", tmp_path / "held_out.txt"
    other.write_text("the zebra runs\nzebra\n" * 5)
    held_out.write_text("i want the water\nyes\nthe zebra runs\n")
    mapped = tmp_path / "lm.ngram"
    arguments = ["--interpolate", held_out, "--output", mapped, "--eight-bit", "--entropy", 1e-6]
    assert run(monkeypatch, SENTENCES, other, *arguments) == 0
    printed = capsys.readouterr().out
    assert "sentences.txt" in printed.split("weights: ")[1]
    assert "8 bits move no log-probability by more than 0.0" in printed
    lm = open_scorer(mapped)
    assert "zebra" in lm
    assert "water" in lm


def test_like_lmplz_writes_an_unknown_word(monkeypatch, tmp_path):
    assert run(monkeypatch, SENTENCES, "--order", 2, "--like-lmplz", "--arpa", tmp_path / "lm.arpa") == 0
    assert "\t<unk>\t" in (tmp_path / "lm.arpa").read_text()


def test_a_vocabulary_gives_every_word_a_probability(monkeypatch, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("zebra\n" + "\n".join(sorted(set(SENTENCES.read_text().split()))))
    assert run(monkeypatch, SENTENCES, "--vocabulary", words, "--output", tmp_path / "lm.ngram") == 0
    assert "zebra" in open_scorer(tmp_path / "lm.ngram")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{text}"], "nothing to write: give --output, --arpa, or --valid"),
        (["{text}", "--interpolate", "{text}", "--arpa", "{folder}/x"], "--interpolate mixes one model a text"),
        (["{text}", "--prune", "1", "--arpa", "{folder}/x"], "the first threshold must be 0"),
        (["{folder}/none.txt", "--arpa", "{folder}/x"], "no such file or directory: {folder}/none.txt"),
        (["{text}", "--vocabulary", "{folder}/words", "--arpa", "{folder}/x"], "wrong case or wrong lexicon"),
        (["{folder}/words.gz", "--arpa", "{folder}/x"], "not a whole gzip file"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, tmp_path, capsys, arguments, message):
    (tmp_path / "words").write_text("zebra")
    (tmp_path / "words.gz").write_text("zebra")
    filled = [argument.format(text=SENTENCES, folder=tmp_path) for argument in arguments]
    assert run(monkeypatch, *filled) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message.format(folder=tmp_path) in error
    assert not (tmp_path / "x").exists()
