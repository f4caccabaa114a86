import itertools
import math
from pathlib import Path

import pytest

from mode_ssm.lm import g2p
from mode_ssm.lm.g2p import GraphemeToPhoneme
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.metrics import aggregate, phoneme_errors
from mode_ssm.vocab import phonemes_to_ids

CMUDICT = Path(__file__).parents[2].parent / "shared" / "data" / "lexicon" / "cmudict.dict"

# A made-up orthography: an a before e is long, the e itself is silent, x is two sounds, sh one.
SOUNDS = {"b": "B", "d": "D", "n": "N", "t": "T", "x": "K S", "sh": "SH", "s": "S"}


def ids(text):
    return tuple(phonemes_to_ids(text.split()))


def regular_words():
    """Consonant, vowel, consonant, with or without an e, and their pronunciations."""
    for first, vowel, last, e in itertools.product(SOUNDS, ("a", "o"), SOUNDS, ("", "e")):
        sound = {"a": "AE", "o": "AA", "ae": "EY", "oe": "OW"}[vowel + e]
        yield first + vowel + last + e, ids(f"{SOUNDS[first]} {sound} {SOUNDS[last]}")


@pytest.fixture(scope="module")
def regular():
    """(model, held-out words with their pronunciations); a word of each five is held out."""
    words = list(regular_words())
    training = Lexicon({word: [phones] for i, (word, phones) in enumerate(words) if i % 5})
    return GraphemeToPhoneme.train(training, 5), [pair for i, pair in enumerate(words) if i % 5 == 0]


def test_a_regular_orthography_is_learned_exactly(regular):
    model, held_out = regular
    assert len(held_out) == 40
    assert {word: model.guess(word)[0].phones for word, _ in held_out} == dict(held_out)
    assert model.letters == "abdehnostx"


def test_guesses_are_distinct_and_ordered_by_probability(regular):
    model, _ = regular
    guesses = model.guess("shade", nbest=20)
    assert guesses[0].phones == ids("SH EY D")
    assert len({guess.phones for guess in guesses}) == len(guesses) > 3
    assert all(guess.word == "shade" and guess.phones for guess in guesses)
    assert [g.log_prob for g in guesses] == sorted((g.log_prob for g in guesses), reverse=True)
    assert sum(guess.share for guess in guesses) <= 1 + 1e-12
    ratio = guesses[1].share / guesses[0].share
    assert math.log(ratio) == pytest.approx(guesses[1].log_prob - guesses[0].log_prob)
    assert [g.phones for g in model.guess("shade", nbest=2)] == [g.phones for g in guesses[:2]]


def test_the_search_finds_what_all_graphones_of_a_word_score(regular):
    """Every sequence of graphones of a short word, scored one by one by the automaton."""
    model, _ = regular
    automaton = model._automaton
    expected: dict[tuple[int, ...], float] = {}
    for tokens in itertools.product(*([t for t in automaton.word_ids if t.startswith(f"{c}:")] for c in "sad")):
        state, total = automaton.start, 0.0
        for token in tokens:
            word = automaton.word_ids[token]
            while word not in (arcs := automaton.arc_word[slice(*automaton.arc_start[state : state + 2])].tolist()):
                total += float(automaton.backoff[state])
                state = int(automaton.backoff_state[state])
            arc = int(automaton.arc_start[state]) + arcs.index(word)
            total += float(automaton.arc_log_prob[arc])
            state = int(automaton.arc_next[arc])
        total += float(automaton.end_log_prob[state])
        phones = tuple(phone for token in tokens for phone in ids(token[2:].replace("_", " ")))
        expected[phones] = expected.get(phones, 0.0) + math.exp(total)
    expected.pop((), None)
    guesses = model.guess("sad", nbest=10_000, beam_size=10_000)
    assert {g.phones: math.exp(g.log_prob) for g in guesses} == pytest.approx(expected, rel=1e-9)
    assert {g.phones: g.share for g in guesses} == pytest.approx(
        {phones: p / sum(expected.values()) for phones, p in expected.items()}, rel=1e-9
    )


def test_all_pronunciations_of_a_word_are_learned():
    words = {f"{a}read": [ids("R EH D"), ids("R IY D"), ids("R IY D")] for a in ("", "r")}
    model = GraphemeToPhoneme.train(Lexicon(words), 3)
    assert {guess.phones for guess in model.guess("read", 2)} == {ids("R EH D"), ids("R IY D")}


def test_words_that_cannot_be_guessed_are_one_line(regular):
    model, _ = regular
    with pytest.raises(ValueError, match=r"'zoé' has 'z', 'é'; the lexicon's letters are abdehnostx"):
        model.guess("zoé")
    with pytest.raises(ValueError, match="empty word"):
        model.guess("")
    with pytest.raises(ValueError, match="beam_size must be at least 1, not 0"):
        model.guess("bad", beam_size=0)
    with pytest.raises(ValueError, match="nbest must be at least 1, not 0"):
        model.guess("bad", nbest=0)


def test_a_silent_word_has_no_guess():
    model = GraphemeToPhoneme.train(Lexicon({"b'": [ids("B")], "'b": [ids("B")], "b": [ids("B")]}), 2)
    assert model.guess("'") == []
    assert model.guess("b'")[0].phones == ids("B")


def test_load_trains_once_and_equals_train(tmp_path, monkeypatch):
    monkeypatch.setenv("MODE_SSM_CACHE", str(tmp_path / "cache"))
    lexicon = Lexicon({word: [phones] for word, phones in regular_words()})
    trained = GraphemeToPhoneme.train(lexicon, 4)
    first = GraphemeToPhoneme.load(lexicon, 4)
    monkeypatch.setattr(g2p, "align", None)  # training again would fail
    again = GraphemeToPhoneme.load(lexicon, 4)
    for word, _ in regular_words():
        assert trained.guess(word, 5) == first.guess(word, 5) == again.guess(word, 5)
    with pytest.raises(TypeError):  # another lexicon is another model
        GraphemeToPhoneme.load(lexicon.subset(lexicon.words[1:]), 4)


def test_part_of_cmudict_teaches_the_rest():
    """Words in -ing, -ed and -s from the rest of a slice; the whole dictionary is in benchmarks/g2p.py."""
    if not CMUDICT.exists():
        pytest.skip("CMUdict is not here")
    lexicon = Lexicon.read(CMUDICT)
    lexicon = lexicon.subset(word for word in lexicon if word.startswith(("b", "s")) and word.isalpha())
    words = list(lexicon)
    training = lexicon.subset(word for i, word in enumerate(words) if i % 20)
    model = GraphemeToPhoneme.train(training, 6)
    errors = []
    for word in words[::20]:
        (guess,) = model.guess(word)
        errors.append(min((phoneme_errors(phones, guess.phones) for phones in lexicon[word]), key=lambda e: e.edits))
    assert len(errors) > 1_000
    assert aggregate(errors).rate < 0.12
    assert sum(error.edits == 0 for error in errors) / len(errors) > 0.6
