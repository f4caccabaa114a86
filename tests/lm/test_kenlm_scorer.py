"""KenLM and this package on the same files, where the kenlm extra is installed; and the line where it is not."""

import importlib
import math
import pickle
from pathlib import Path

import pytest

from mode_ssm.lm import kenlm_scorer
from mode_ssm.lm.kenlm_scorer import KenLMScorer, open_scorer
from mode_ssm.lm.ngram import NGramLM

FIXTURES = Path(__file__).parent / "fixtures"
SENTENCES = (FIXTURES / "sentences.txt").read_text().splitlines()
QUERIES = [*SENTENCES[::5], "water the i you", "tea zebra tea", "zebra", ""]


@pytest.fixture
def arpa(tmp_path):
    pytest.importorskip("kenlm")
    path = tmp_path / "lm.arpa"
    NGramLM.estimate(SENTENCES, 4, like_lmplz=True, prune=(0, 0, 0, 1)).write_arpa(path)
    return path


def test_kenlm_scores_our_arpa_file_as_we_do(arpa):
    ours, theirs = NGramLM.read_arpa(arpa), KenLMScorer(arpa)
    assert theirs.order == ours.order == 4
    for sentence in QUERIES:
        state, own = theirs.start(), ours.start()
        for word in sentence.split():
            expected, state = theirs.score(state, word)
            log_prob, own = ours.score(own, word)
            assert log_prob == pytest.approx(expected, abs=1e-5)
            assert (word in theirs) == (word in ours)
        assert ours.end(own) == pytest.approx(theirs.end(state), abs=1e-5)
        assert ours.unigram(word) == pytest.approx(theirs.unigram(word), abs=1e-5)


def test_perplexity_equals_kenlm(arpa):
    kenlm = importlib.import_module("kenlm")
    theirs = kenlm.Model(str(arpa))
    words = sum(len(sentence.split()) + 1 for sentence in SENTENCES)
    expected = 10 ** (-sum(theirs.score(sentence) for sentence in SENTENCES) / words)
    found = NGramLM.read_arpa(arpa).perplexity(SENTENCES)
    assert found.perplexity == pytest.approx(expected, rel=1e-4)
    assert (found.num_words, found.num_sentences, found.unknown_rate) == (words, len(SENTENCES), 0.0)


def test_states_are_hashable_and_the_scorer_is_pickled_by_its_path(arpa):
    scorer = KenLMScorer(arpa)
    after = [scorer.score(scorer.start(), "the")[1] for _ in range(2)]
    assert after[0] == after[1]
    assert hash(after[0]) == hash(after[1])
    assert after[0] != scorer.start()
    assert pickle.loads(pickle.dumps(scorer)).sequence_log_prob(["the"]) == scorer.sequence_log_prob(["the"])


def test_a_damaged_binary_is_one_line(tmp_path):
    pytest.importorskip("kenlm")
    path = tmp_path / "lm.klm"
    path.write_bytes(kenlm_scorer.KENLM_MAGIC + b" format version 5\n\0" + bytes(500))
    with pytest.raises(ValueError, match="KenLM cannot open it") as error:
        open_scorer(path)
    assert "\n" not in str(error.value)


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    path = tmp_path / "lm.klm"
    path.write_bytes(kenlm_scorer.KENLM_MAGIC + b" format version 5\n\0")
    monkeypatch.setattr(kenlm_scorer, "import_module", missing)
    with pytest.raises(
        ValueError, match=r"lm\.klm: reading KenLM binaries needs the kenlm extra: uv sync --extra kenlm"
    ):
        open_scorer(path)


def test_the_form_of_a_file_is_recognised(tmp_path):
    lm = NGramLM.estimate(SENTENCES, 2)
    lm.save(tmp_path / "any")
    lm.write_arpa(tmp_path / "other")
    for name in ("any", "other"):
        opened = open_scorer(tmp_path / name)
        assert opened.sequence_log_prob(["yes"]) == pytest.approx(lm.sequence_log_prob(["yes"]), abs=1e-5)
        assert math.isfinite(opened.unigram("the"))
