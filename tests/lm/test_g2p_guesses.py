import importlib.util
import json
from pathlib import Path

import pytest

from mode_ssm.compose import run_main
from mode_ssm.lm.g2p import GraphemeToPhoneme
from mode_ssm.lm.g2p_guesses import guess_missing, with_guesses
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.vocab import phonemes_to_ids

SCRIPT = Path(__file__).parents[2] / "scripts" / "guess_pronunciations.py"
DICTIONARY = "bad B AE D\ndab D AE B\nbed B EH D\ndeb D EH B\ndeb D IY B\ndad D AE D\nred R EH D\nred R IY D\n"


def ids(text):
    return tuple(phonemes_to_ids(text.split()))


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("MODE_SSM_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "lexicon.txt"
    path.write_text(DICTIONARY)
    return path


@pytest.fixture
def lexicon(path):
    return Lexicon.read(path)


@pytest.fixture
def model(lexicon):
    return GraphemeToPhoneme.train(lexicon, 3)


def test_only_missing_words_are_guessed_once_in_their_order(lexicon, model):
    report = guess_missing(lexicon, ["rad", "bad", "beb", "rad", "dog", "<unk>"], model)
    assert [(g.word, g.phones) for g in report.guesses] == [("rad", ids("R AE D")), ("beb", ids("B EH B"))]
    assert report.failed == {"dog": "'dog' has 'g', 'o'; the lexicon's letters are abder"}


def test_alternates_need_a_share(lexicon, model):
    every = guess_missing(lexicon, ["reb"], model, alternates=5, min_share=0.0).guesses
    assert {g.phones for g in every} == {ids("R EH B"), ids("R IY B")}
    assert every[0].share > every[1].share
    assert guess_missing(lexicon, ["reb"], model, alternates=1, min_share=0.0).guesses == every[:1]
    assert guess_missing(lexicon, ["reb"], model, alternates=5, min_share=every[1].share).guesses == every
    assert guess_missing(lexicon, ["reb"], model, alternates=5, min_share=every[1].share + 0.01).guesses == every[:1]
    assert guess_missing(lexicon, ["reb"], model, alternates=5, min_share=1.1).guesses == every[:1]
    with pytest.raises(ValueError, match="alternates must be at least 1, not 0"):
        guess_missing(lexicon, ["reb"], model, alternates=0)


def test_a_lexicon_with_guesses_has_both(lexicon, model, tmp_path):
    report = guess_missing(lexicon, ["rad", "dog"], model, alternates=2, min_share=0.0)
    longer = with_guesses(lexicon, report)
    assert longer.words == (*lexicon.words, "rad")
    assert longer["rad"] == tuple(g.phones for g in report.guesses)
    assert longer["red"] == lexicon["red"]
    report.write(tmp_path / "guesses.txt")
    assert Lexicon.read(tmp_path / "guesses.txt")["rad"] == longer["rad"]  # shares and failures are comments
    assert "# no guess: 'dog' has 'g', 'o'" in (tmp_path / "guesses.txt").read_text()


def test_the_report_as_json(lexicon, model, tmp_path):
    report = guess_missing(lexicon, ["rad", "dog"], model)
    report.write(tmp_path / "guesses.json")
    (guess,) = report.guesses
    assert json.loads((tmp_path / "guesses.json").read_text()) == {
        "guesses": [{"word": "rad", "phonemes": ["R", "AE", "D"], "share": guess.share, "log_prob": guess.log_prob}],
        "failed": report.failed,
    }


@pytest.fixture
def main():
    spec = importlib.util.spec_from_file_location("guess_pronunciations", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_the_script_prints_dictionary_lines(main, path, capsys):
    main(["--lexicon", str(path), "--order", "3", "Rad!", "bad", "dog"])
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith("rad R AE D # ")
    assert out.splitlines()[1].startswith("# no guess: 'dog'")
    assert "1 word(s) guessed, 1 failed, 1 in the lexicon already" in err


def test_the_script_reads_sentences_and_writes_files(main, path, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("A bad RAD, beb\nrad\n")
    arguments = ["--lexicon", path, "--text", tmp_path / "text.txt", "--order", "3"]
    arguments += ["--output", tmp_path / "out.txt", "--report", tmp_path / "out.json"]
    main([str(argument) for argument in arguments])
    assert capsys.readouterr().out == ""
    assert Lexicon.read(tmp_path / "out.txt").words == ("a", "rad", "beb")
    assert [g["word"] for g in json.loads((tmp_path / "out.json").read_text())["guesses"]] == ["a", "rad", "beb"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lexicon", "{path}", "--alternates", "0", "rad"], "alternates must be at least 1"),
        (["--lexicon", "{path}", "--order", "0", "rad"], "order of an n-gram model must be at least 1"),
        (["--lexicon", "{path}x", "rad"], "no such file or directory: {path}x"),
        (["--lexicon", "{path}", "!?"], "no words"),
        (["--lexicon", "{path}", "--text", "{binary}"], "binary: not UTF-8 text"),
    ],
)
def test_the_script_says_in_one_line_what_is_wrong(main, path, tmp_path, capsys, arguments, message):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    filled = [argument.format(path=path, binary=tmp_path / "binary") for argument in arguments]
    with pytest.raises(SystemExit) as stop:
        run_main(lambda: main(filled))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message.format(path=path) in line
