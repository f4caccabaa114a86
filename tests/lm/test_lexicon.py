from pathlib import Path

import pytest

from mode_ssm.decode.lexicon_tree import LexiconTree
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.vocab import phonemes_to_ids

CMUDICT = Path(__file__).parents[2].parent / "shared" / "data" / "lexicon" / "cmudict.dict"


def ids(text):
    return tuple(phonemes_to_ids(text.split()))


def write(tmp_path, text):
    path = tmp_path / "lexicon.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def cmudict():
    if not CMUDICT.exists():
        pytest.skip("CMUdict is not here")
    return Lexicon.read(CMUDICT)


def words_that_sound(lexicon, text):
    """The words that the search's tree ends at this pronunciation."""
    tree = LexiconTree.build(lexicon)
    node = 0
    for phone in ids(text):
        children = tree.child[tree.child_start[node] : tree.child_start[node + 1]]
        (node,) = [child for child in children if tree.label[child] == phone]
    return [lexicon.words[i] for i in tree.word[tree.word_start[node] : tree.word_start[node + 1]]]


def test_write_then_read_gives_the_same_lexicon(tmp_path):
    lexicon = Lexicon({"b": [(3, 4), (5,)], "a": [(3, 4)], "o'er-all": [(1,)]})
    lexicon.write(tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_text() == "b AH AO\nb AW\na AH AO\no'er-all AA\n"
    again = Lexicon.read(tmp_path / "out.txt")
    assert again == lexicon
    assert again.words == lexicon.words


@pytest.mark.parametrize("word", ["w1", "a.m.", "read(2)", "#tag", "New"])
def test_a_word_that_would_not_be_read_back_is_not_written(tmp_path, word):
    with pytest.raises(ValueError, match="is not spelled as text is"):
        Lexicon({"a": [(1,)], word: [(1,)]}).write(tmp_path / "out.txt")
    assert not (tmp_path / "out.txt").exists()


def test_missing_words_are_named():
    lexicon = Lexicon({"a": [(1,)]})
    with pytest.raises(ValueError, match=r"2 word\(s\) not in the lexicon of 1: b, c"):
        lexicon.pronounce("a b c")
    with pytest.raises(ValueError, match="not in the lexicon"):
        lexicon.subset(["b"])
    assert lexicon.subset(["a", "a"]) == lexicon


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": []}, "word 'a' has no pronunciation"),
        ({"a": [()]}, "word 'a' has an empty pronunciation"),
        ({"a": [(1, 40)]}, "pronunciation of 'a' holds blank, SIL"),
        ({"</s>": [(1,)]}, "'</s>' cannot be a word"),
        ({"a b": [(1,)]}, "'a b' cannot be a word"),
    ],
)
def test_unsound_entries_are_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        Lexicon(entries)


def test_extended_puts_new_words_last_and_changes_none():
    lexicon = Lexicon({"b": [(1,)]})
    longer = lexicon.extended({"a": [(2,), (3,), (2,)]})
    assert longer.words == ("b", "a")
    assert longer["a"] == ((2,), (3,))
    assert lexicon.words == ("b",)
    with pytest.raises(ValueError, match=r"1 word\(s\) are in the lexicon already: b"):
        lexicon.extended({"b": [(2,)]})


def test_load_equals_read_and_follows_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("MODE_SSM_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path, "read R EH1 D\nread R IY1 D\nheir EH R\nère EH R\n")
    for _ in range(2):
        loaded = Lexicon.load(path)
        assert loaded == Lexicon.read(path)
        assert loaded.words == ("read", "heir")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    write(tmp_path, "read R EH1 D\n")
    assert Lexicon.load(path) == Lexicon({"read": [ids("R EH D")]})
    with pytest.raises(ValueError, match="line 1: unknown phoneme"):
        Lexicon.load(write(tmp_path, "read R XX D\n"))


def test_cmudict_reads_whole(cmudict):
    assert len(cmudict) > 120_000
    assert sum(len(cmudict[word]) for word in cmudict) > 130_000
    assert cmudict["d'artagnan"] == (ids("D AH R T AE NG Y AH N"),)
    assert {ids("AE M"), ids("EY EH M")} == set(cmudict["am"])  # "a.m."
    assert cmudict["is"] == (ids("IH Z"),)  # not the plural of the letter, "i.s"
    assert cmudict["prof"] == (ids("P R AO F"), ids("P R AH F EH S ER"))  # has no entry but "prof."


def test_words_that_peers_lose_are_in_the_tree(cmudict):
    lexicon = cmudict.subset(word for word in cmudict if len(cmudict[word][0]) <= 4)
    assert set(lexicon["read"]) == {ids("R EH D"), ids("R IY D")}
    assert {"you", "yu", "ewe", "u"} <= set(words_that_sound(lexicon, "Y UW"))
    assert {"oh", "owe", "o"} <= set(words_that_sound(lexicon, "OW"))
    assert {"heir", "air", "ere"} <= set(words_that_sound(lexicon, "EH R"))
    assert {"read", "red"} <= set(words_that_sound(lexicon, "R EH D"))
    assert {"read", "reed"} <= set(words_that_sound(lexicon, "R IY D"))
    most = words_that_sound(lexicon, "L AO R IY")
    assert len(most) > 6
    assert set(most) == {word for word in lexicon if ids("L AO R IY") in lexicon[word]}
