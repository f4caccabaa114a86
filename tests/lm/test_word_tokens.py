"""Words to tokens: one path a word, spelling for the rest."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mode_ssm.lm.word_tokens import BOS, END_OF_WORD, EOS, LETTERS, SPELL, WordTokens

TEXT = ["the cat saw the dog", "the dog saw it", "a b c"]
FIRST_LETTER, FIRST_WORD = 4, 4 + len(LETTERS)


def test_the_most_frequent_words_have_tokens_and_once_said_ones_have_none():
    tokens = WordTokens.of_text(TEXT, 10)
    assert tokens.words == ("the", "dog", "saw")  # equally frequent ones in alphabetical order
    assert tokens.counts == (3, 2, 2)
    assert tokens.num_spelled == 5  # cat it a b c
    assert len(tokens) == FIRST_WORD + 3
    assert WordTokens.of_text(TEXT, 1).words == ("the",)


def test_a_sentence_is_its_words_between_the_marks():
    tokens = WordTokens.of_text(TEXT, 10)
    cab = [FIRST_LETTER + LETTERS.index(letter) for letter in "cab"]
    assert tokens.of_sentence(["the", "cab"]) == [BOS, FIRST_WORD, SPELL, *cab, END_OF_WORD, EOS]
    assert tokens.of_sentence([]) == [BOS, EOS]


def test_a_text_holds_its_sentences_one_after_the_other():
    tokens = WordTokens.of_text(TEXT, 10)
    text = tokens.of_sentences(TEXT)
    assert len(text) == 3
    assert text.num_words == 12
    for number, sentence in enumerate(TEXT):
        of_one = text.tokens[text.starts[number] : text.starts[number + 1]]
        assert of_one.tolist() == tokens.of_sentence(sentence.split())


@given(st.lists(st.text(alphabet=LETTERS, min_size=1, max_size=6), max_size=5))
def test_different_sentences_have_different_tokens(words: list[str]):
    """Tokens can be read back: no two sentences share a path."""
    tokens = WordTokens.of_text(["a a ab ab - -"], 10)
    read: list[str] = []
    spelling: list[str] | None = None
    path = tokens.of_sentence(words)
    for token in path[1:-1]:
        if token == SPELL:
            spelling = []
        elif token == END_OF_WORD:
            assert spelling is not None
            read.append("".join(spelling))
            spelling = None
        elif spelling is not None:
            spelling.append(LETTERS[token - FIRST_LETTER])
        else:
            read.append(tokens.words[token - FIRST_WORD])
    assert read == words


def test_a_word_that_cannot_be_spelled_is_refused():
    with pytest.raises(ValueError, match="word 'c3po' cannot be spelled: '3' is none of"):
        WordTokens.of_text(TEXT, 10).of_word("c3po")


def test_a_vocabulary_survives_the_way_through_json():
    tokens = WordTokens.of_text(TEXT, 10)
    restored = WordTokens.restore(json.loads(json.dumps(tokens.describe())))
    assert (restored.words, restored.counts, restored.num_spelled) == (tokens.words, tokens.counts, tokens.num_spelled)
    assert restored.of_sentence(["saw", "cat"]) == tokens.of_sentence(["saw", "cat"])
    assert "saw" in restored
    assert "cat" not in restored
