from pathlib import Path

import pytest

from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.vocab import phonemes_to_ids

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def ids(text):
    return tuple(phonemes_to_ids(text.split()))


def write(tmp_path, text):
    path = tmp_path / "lexicon.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_repeated_lines_and_numbered_words_are_alternates(tmp_path):
    path = write(
        tmp_path,
        ";;; a comment\n# another\nREAD  R EH1 D\nread(2) R IY1 D\n\nread(3) R IY0 D\n"
        "red R EH1 D # a colour\nyou Y UW\nyou Y AH\n'tis T IH1 Z\n",
    )
    lexicon = Lexicon.read(path)
    assert lexicon.words == ("read", "red", "you", "'tis")
    assert lexicon["read"] == (ids("R EH D"), ids("R IY D"))
    assert lexicon["you"] == (ids("Y UW"), ids("Y AH"))
    assert lexicon["red"] == (ids("R EH D"),)
    assert lexicon.pronounce("you read") == [ids("Y UW"), ids("R EH D")]


def test_write_then_read_gives_the_same_lexicon(tmp_path):
    lexicon = Lexicon({"b": [(3, 4), (5,)], "a": [(3, 4)]})
    lexicon.write(tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_text() == "b AH AO\nb AW\na AH AO\n"
    assert Lexicon.read(tmp_path / "out.txt") == lexicon


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat K AE T\ndog D XX G\n", "lexicon.txt, line 2: unknown phoneme 'XX'"),
        ("cat\n", "lexicon.txt, line 1: word 'cat' has an empty pronunciation"),
        ("cat K AE T SIL\n", "lexicon.txt, line 1: .* holds blank, SIL"),
        ("# nothing\n", "lexicon.txt: no pronunciations"),
        ("<s> K\n", "lexicon.txt: '<s>' cannot be a word"),
    ],
)
def test_errors_name_file_and_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        Lexicon.read(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text_is_named(tmp_path):
    path = tmp_path / "lexicon.txt"
    path.write_bytes(b"caf\xe9 K AE F EY\n")
    with pytest.raises(ValueError, match=r"lexicon.txt: not UTF-8 text .* at byte 3"):
        Lexicon.read(path)


def test_missing_words_are_named():
    lexicon = Lexicon({"a": [(1,)]})
    with pytest.raises(ValueError, match=r"2 word\(s\) not in the lexicon of 1: b, c"):
        lexicon.pronounce("a b c")
    with pytest.raises(ValueError, match="not in the lexicon"):
        lexicon.subset(["b"])
    assert lexicon.subset(["a", "a"]) == lexicon


def test_cmudict_reads_whole():
    path = DATA / "lexicon" / "cmudict.dict"
    if not path.exists():
        pytest.skip("CMUdict is not here")
    lexicon = Lexicon.read(path)
    assert len(lexicon) > 120_000
    assert sum(len(lexicon[word]) for word in lexicon) > 130_000
    assert set(lexicon["read"]) == {ids("R EH D"), ids("R IY D")}
    assert lexicon["d'artagnan"] == (ids("D AH R T AE NG Y AH N"),)
