import itertools

import numpy as np
import pytest

from mode_ssm.lm import g2p_alignment
from mode_ssm.lm.g2p_alignment import align
from mode_ssm.vocab import phonemes_to_ids


def ids(text):
    return tuple(phonemes_to_ids(text.split()))


def test_letters_are_given_the_phones_that_they_always_make():
    pairs = [("cat", ids("K AE T")), ("tac", ids("T AE K")), ("box", ids("B AO K S")), ("ox", ids("AO K S"))]
    pairs += [("tack", ids("T AE K")), ("bat", ids("B AE T")), ("kab", ids("K AE B")), ("bo", ids("B AO"))]
    aligned = dict(zip([word for word, _ in pairs], align(pairs), strict=True))
    assert aligned["cat"] == [("c", ids("K")), ("a", ids("AE")), ("t", ids("T"))]
    assert aligned["box"] == [("b", ids("B")), ("o", ids("AO")), ("x", ids("K S"))]
    assert aligned["tack"][:2] == [("t", ids("T")), ("a", ids("AE"))]
    assert sorted(phones for _, phones in aligned["tack"][2:]) == [(), ids("K")]  # which of c and k is silent is open


def test_every_alignment_spells_word_and_pronunciation():
    words = ["a", "ab", "abba", "bbb", "cabac" * 12]
    pairs = [
        (word, tuple(1 + (i * 7) % 39 for i in range(length)))
        for word, length in itertools.product(words, (1, 2, 3, 60))
        if length <= 2 * len(word)
    ]
    for (word, phones), graphones in zip(pairs, align(pairs), strict=True):
        assert graphones is not None
        assert "".join(letter for letter, _ in graphones) == word
        assert tuple(phone for _, own in graphones for phone in own) == phones
        assert max(len(own) for _, own in graphones) <= 2


def test_more_than_two_phones_to_a_letter_have_no_alignment():
    spelled_out = ("mph", ids("M AY L Z P ER AW ER"))
    assert align([("m", ids("EH M")), spelled_out]) == [[("m", ids("EH M"))], None]
    with pytest.raises(ValueError, match="none of 1 pronunciations has at most 2 phones to a letter"):
        align([spelled_out])
    with pytest.raises(ValueError, match="none of 0 pronunciations"):
        align([])


def test_expectations_equal_those_over_all_alignments():
    """One step of EM by brute force: the first from equal weights, where every alignment counts the same."""
    pairs = [("ab", (1, 2)), ("ab", (1,)), ("b", (2, 1)), ("abb", (1, 2, 2, 1))]
    expected: dict[tuple[str, tuple[int, ...]], float] = {}
    for word, phones in pairs:
        paths = [counts for counts in itertools.product(range(3), repeat=len(word)) if sum(counts) == len(phones)]
        for counts in paths:
            position = 0
            for letter, count in zip(word, counts, strict=True):
                key = (letter, phones[position : position + count])
                expected[key] = expected.get(key, 0.0) + 1 / len(paths)
                position += count
    ids_of = {"a": 0, "b": 1}
    groups = g2p_alignment._groups(pairs, ids_of)
    counts = np.zeros(2 * g2p_alignment._SYMBOLS)
    likelihood = sum(g2p_alignment._expect(group, np.ones(len(counts)), counts) for group in groups)
    assert likelihood == pytest.approx(np.log(3 * 2 * 1 * 6))  # paths of each pair, all of weight one
    assert counts.sum() == pytest.approx(sum(len(word) for word, _ in pairs))
    assert sorted(counts[counts > 0]) == pytest.approx(sorted(expected.values()))
