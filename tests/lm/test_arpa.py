"""ARPA files as they come: compressed, with empty lines, without back-off weights, broken."""

import gzip
import math
from pathlib import Path

import numpy as np
import pytest

from mode_ssm.lm import arpa
from mode_ssm.lm.arpa import read_arpa_tables
from mode_ssm.lm.ngram import NGramLM

FIXTURE = Path(__file__).parent / "fixtures" / "lmplz_order3.arpa"


def assert_same_tables(found, expected):
    assert found[0] == expected[0]
    for ours, theirs in zip(found[1], expected[1], strict=True):
        assert np.array_equal(ours.ids, theirs.ids)
        assert np.array_equal(ours.log_prob, theirs.log_prob)
        assert np.array_equal(ours.backoff, theirs.backoff)


def test_gzip_reads_and_writes(tmp_path):
    compressed = tmp_path / "model.arpa.gz"
    compressed.write_bytes(gzip.compress(FIXTURE.read_bytes()))
    assert_same_tables(read_arpa_tables(compressed), read_arpa_tables(FIXTURE))
    lm = NGramLM.read_arpa(FIXTURE)
    lm.write_arpa(tmp_path / "again.arpa.gz")
    lm.write_arpa(tmp_path / "again.arpa")
    assert gzip.decompress((tmp_path / "again.arpa.gz").read_bytes()) == (tmp_path / "again.arpa").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.arpa", "again.arpa.gz", "model.arpa.gz"]
    compressed.write_bytes(compressed.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.arpa\.gz: not a whole gzip file"):
        NGramLM.read_arpa(compressed)


def test_pieces_of_any_size_read_the_same(monkeypatch):
    whole = read_arpa_tables(FIXTURE)
    for size in (1, 2, 7, 100):
        monkeypatch.setattr(arpa, "_CHUNK", size)
        assert_same_tables(read_arpa_tables(FIXTURE), whole)


def test_empty_lines_carriage_returns_a_preamble_and_missing_backoffs(tmp_path):
    path = tmp_path / "model.arpa"
    text = FIXTURE.read_text().replace("\tthank you\t", "\tthank  you \t")
    lines = [line.removesuffix("\t0") + "\r\n" for line in text.splitlines()]
    lines.insert(30, "\n")
    path.write_text("made by hand\n\n" + "".join(lines), newline="")
    assert_same_tables(read_arpa_tables(path), read_arpa_tables(FIXTURE))


def test_upper_case_unknown_word_and_words_with_other_spaces(tmp_path):
    path = tmp_path / "model.arpa"
    path.write_text(
        "\\data\\\nngram 1=4\n\n\\1-grams:\n-1\t<UNK>\n-99\t<s>\n-0.5\t</s>\n-0.5\ta\xa0b\n\n\\end\\\n",
        encoding="utf-8",
    )
    lm = NGramLM.read_arpa(path)
    assert lm.vocabulary == ("a\xa0b",)
    assert lm.unigram("zebra") == pytest.approx(-math.log(10))


def test_reserved_words_cannot_be_scored_as_words():
    lm = NGramLM.estimate(["a b"], 2)
    assert lm.score(lm.start(), "</s>") == (-math.inf, 0)
    assert lm.score(lm.start(), "<s>") == (-math.inf, 0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"\tthe\t", b"\tth\xff\t", r"line 1\d: not UTF-8 text"),
        (b"\twater\t", b"\tthe\t", r"line \d+: 'the' occurs twice"),
        (b"\tthank you\t", b"\tthank zebra\t", r"line \d+: 'zebra' has no unigram"),
        (b"\tthank you\t", b"\tthank you very\t", r"line \d+: not one of the 187 2-grams"),
        (b"\n-", b"\n", r"line \d+: not a number, or a positive log-probability, in '\d"),
        (b"\n-", b"\nnan", r"line \d+: not a number"),
        (b"\\data\\", b"mmap lm http://kheafield.com/code", r"a KenLM binary, not an ARPA file"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, old, new, message):
    path = tmp_path / "model.arpa"
    data = FIXTURE.read_bytes()
    path.write_bytes(data.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as error:
        NGramLM.read_arpa(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
