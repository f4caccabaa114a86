"""Lexicons, texts and models that a configuration names and that cannot be used: one line, as on the command line."""

import re
from pathlib import Path

import pytest

from mode_ssm.compose import load_train_config, run_main
from mode_ssm.data.simulator import simulate
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.tasks.transcription_data import TranscriptionData
from mode_ssm.tasks.word_decoder import build_word_decoder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inputs") / "tiny"
    simulate(path, "tiny", 0, progress=False)
    return path


@pytest.fixture(scope="module")
def data(root: Path) -> TranscriptionData:
    return TranscriptionData.open(load_train_config([f"data.root={root}"]).data, 0, progress=False)


def error_line(root: Path, data: TranscriptionData, override: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What an entry script prints before it ends with exit code 2."""
    config = load_train_config([f"data.root={root}", override])
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: build_word_decoder(config, data))
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


FOREIGN = "\n".join(["der hund und die katze laufen durch den wald"] * 500)
MAPPED = b"mode_ssm n-gram\n"


@pytest.mark.parametrize(
    ("key", "content", "message"),
    [
        ("lm.lexicon", b"cat K AE T\ndog D XX G\n", "line 2: unknown phoneme 'XX'; known: AA"),
        ("lm.lexicon", b"", "no pronunciations; expected lines such as 'cat K AE T'"),
        ("lm.lexicon", b"zebra Z IY B R AH\n", "are not in the vocabulary of 1 (wrong case or wrong lexicon?)"),
        ("lm.texts", FOREIGN.encode(), "(wrong case or wrong lexicon?)"),
        ("lm.texts", b"", "{path}: no sentences"),
        ("lm.texts", b"caf\xe9\n", "{path}: not UTF-8 text"),
        ("lm.model", b"", "{path}: no \\data\\ line; not an ARPA file"),
        ("lm.model", MAPPED + b"\x01\0\0\0damaged", "{path}: "),
    ],
)
def test_a_file_that_cannot_be_used(
    root: Path,
    data: TranscriptionData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    key: str,
    content: bytes,
    message: str,
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    value = f"[{path}]" if key == "lm.texts" else str(path)
    assert message.format(path=path) in error_line(root, data, f"{key}={value}", capsys)


@pytest.mark.parametrize("key", ["lm.lexicon", "lm.texts", "lm.model"])
@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_file_that_is_not_there(
    root: Path,
    data: TranscriptionData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    key: str,
    kind: str,
) -> None:
    path = tmp_path if kind == "folder" else tmp_path / "nowhere"
    value = f"[{path}]" if key == "lm.texts" else str(path)
    line = error_line(root, data, f"{key}={value}", capsys)
    assert str(path) in line
    assert "no such file" in line or "a folder" in line


def test_a_model_in_upper_case_is_not_searched_with(
    root: Path, data: TranscriptionData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "upper.arpa"
    sentences = [sentence.upper() for sentence in data.training_sentences()]
    NGramLM.estimate(sentences, 2, like_lmplz=True).write_arpa(path)
    line = error_line(root, data, f"lm.model={path}", capsys)
    assert "lexicon words are not in this language model" in line
    assert "(wrong case: lower it)" in line


def test_a_model_that_lacks_lexicon_words(
    root: Path, data: TranscriptionData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = Lexicon.read(root / "lexicon.txt").words
    path = tmp_path / "lm.ngram"
    NGramLM.estimate([" ".join(words[1:])], 1).save(path)
    assert f"1 of {len(words)} lexicon words have no probability" in error_line(root, data, f"lm.model={path}", capsys)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("decode.beam_size=0", "decode.beam_size=0: expected at least 1"),
        ("decode.nbest=0", "decode.nbest=0: expected at least 1"),
        ("decode.acoustic_scale=-1", "decode.acoustic_scale=-1.0: expected above 0"),
        ("decode.acoustic_scale=nan", "decode.acoustic_scale=nan: expected above 0"),
        ("decode.lm_scale=-0.5", "decode.lm_scale=-0.5: expected 0 or above"),
        ("decode.beam_threshold=0", "decode.beam_threshold=0.0: expected above 0"),
        ("decode.word_bonus=inf", "decode.word_bonus=inf: expected a finite number"),
        ("lm.order=0", "lm.order=0: expected at least 1"),
    ],
)
def test_settings_out_of_range(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_train_config([override])
