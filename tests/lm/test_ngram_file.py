"""The mapped form: same scores, 8 bits within the stated bound, pickled by its path, and damage is named."""

import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from mode_ssm.lm.ngram import NGramLM
from mode_ssm.lm.ngram_file import read_automaton

SENTENCES = (Path(__file__).parent / "fixtures" / "sentences.txt").read_text().splitlines()
QUERIES = [*SENTENCES[::7], "water the i you", "tea tea tea", ""]


@pytest.fixture
def lm():
    return NGramLM.estimate(SENTENCES, 4, [*{w for s in SENTENCES for w in s.split()}, "naïve"], prune=(0, 0, 0, 1))


@pytest.mark.parametrize("order", [1, 2, 4])
def test_a_mapped_model_scores_as_in_memory(tmp_path, order):
    lm = NGramLM.estimate(SENTENCES, order)
    assert lm.save(tmp_path / "lm.ngram") == 0.0
    mapped = NGramLM.load(tmp_path / "lm.ngram")
    assert (mapped.order, mapped.vocabulary, mapped.start()) == (lm.order, lm.vocabulary, lm.start())
    for sentence in QUERIES:
        words = sentence.split()
        assert mapped.sequence_log_prob(words) == pytest.approx(lm.sequence_log_prob(words), abs=1e-5)
    for name in ("arc_log_prob", "arc_next", "arc_start", "backoff", "end_log_prob"):
        assert np.array_equal(getattr(mapped.automaton(), name), getattr(lm.automaton(), name)), name
    assert not mapped.automaton().arc_next.flags.writeable


def test_eight_bits_stay_within_the_stated_bound(tmp_path, lm):
    bound = lm.save(tmp_path / "lm.ngram", eight_bit=True)
    assert 0 < bound < 0.05
    exact, mapped = lm.automaton(), NGramLM.load(tmp_path / "lm.ngram").automaton()
    assert np.array_equal(mapped.unigram, exact.unigram)
    possible = np.isfinite(exact.arc_log_prob)
    moved = np.abs(mapped.arc_log_prob[possible] - exact.arc_log_prob[possible])
    assert moved.max() <= bound + 1e-6
    assert moved.max() > 0
    assert np.array_equal(np.isfinite(mapped.arc_log_prob), possible)
    lm.save(tmp_path / "whole.ngram")
    assert (tmp_path / "lm.ngram").stat().st_size < (tmp_path / "whole.ngram").stat().st_size


def test_a_mapped_model_is_pickled_as_its_path(tmp_path, lm, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lm.save("lm.ngram")
    pickled = pickle.dumps(NGramLM.load("lm.ngram"))
    assert len(pickled) < 500
    monkeypatch.chdir("/")
    assert pickle.loads(pickled).sequence_log_prob(["yes"]) == pytest.approx(lm.sequence_log_prob(["yes"]), abs=1e-5)


def test_a_mapped_model_becomes_arpa_again(tmp_path, lm):
    lm.save(tmp_path / "lm.ngram")
    NGramLM.load(tmp_path / "lm.ngram").write_arpa(tmp_path / "lm.arpa")
    again = NGramLM.read_arpa(tmp_path / "lm.arpa")
    for sentence in QUERIES:
        words = sentence.split()
        assert again.sequence_log_prob(words) == pytest.approx(lm.sequence_log_prob(words), abs=1e-5)


def test_a_failed_write_leaves_the_old_file(tmp_path, lm, monkeypatch):
    lm.save(tmp_path / "lm.ngram")
    before = (tmp_path / "lm.ngram").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        lm.save(tmp_path / "lm.ngram", eight_bit=True)
    assert [path.name for path in tmp_path.iterdir()] == ["lm.ngram"]
    assert (tmp_path / "lm.ngram").read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-64], "not a whole file"),
        (lambda data: data[:10], "not a mapped n-gram model"),
        (lambda data: b"\\data\\" + data, "not a mapped n-gram model"),
        (lambda data: data[:16] + b"\x09\0\0\0" + data[20:], "version 9 of the mapped form, this program reads 1"),
        (lambda data: data[:40] + b"!" + data[41:], "the header does not match its checksum"),
        (lambda data: data.replace("naïve".encode(), b"na-ive"), "words does not match its checksum"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path, lm, damage, message):
    path = tmp_path / "lm.ngram"
    lm.save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        NGramLM.load(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_processes_share_the_pages(tmp_path):
    """The arrays of a loaded model are mapped from the file, not copied: none of them owns its memory."""
    NGramLM.estimate(SENTENCES, 3).save(tmp_path / "lm.ngram")
    automaton = read_automaton(tmp_path / "lm.ngram")
    for name in ("arc_log_prob", "arc_next", "arc_word", "arc_start", "backoff", "backoff_state", "end_log_prob"):
        array = getattr(automaton, name)
        while isinstance(array.base, np.ndarray):
            array = array.base
        assert isinstance(array, np.memmap), name
    code = f"""
        from mode_ssm.lm.ngram import NGramLM
        print(NGramLM.load({str(tmp_path / "lm.ngram")!r}).sequence_log_prob(["thank", "you"]))
    """
    other = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    expected = NGramLM.load(tmp_path / "lm.ngram").sequence_log_prob(["thank", "you"])
    assert float(other.stdout) == expected
