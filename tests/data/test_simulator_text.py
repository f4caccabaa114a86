from collections import Counter, defaultdict
from itertools import chain

import numpy as np
import pytest

from mode_ssm.data.simulator_scale import SCALES
from mode_ssm.data.simulator_session import plan_sentences
from mode_ssm.data.simulator_text import CORPORA, SentenceSource, grammar, pronounce, pronunciations
from mode_ssm.vocab import CLASS_ID, normalise_sentence


def test_the_grammar_speaks_only_words_of_the_lexicon_and_all_of_them() -> None:
    corpora, slots = grammar()
    assert tuple(corpora) == CORPORA
    spoken: set[str] = set()
    for line in chain(*corpora.values(), *slots.values()):
        while "{" in line:
            before, _, rest = line.partition("{")
            name, _, after = rest.partition("}")
            assert name in slots
            line = f"{before} {after}"
        spoken |= set(normalise_sentence(line.replace(",", " ")).split())
    assert spoken == set(pronunciations())


def test_the_lexicon_is_of_known_phonemes_without_repeats() -> None:
    for word, options in pronunciations().items():
        assert len(set(options)) == len(options), word
        assert all(phoneme in CLASS_ID for option in options for phoneme in option), word


def test_the_lexicon_holds_homophones_and_words_with_two_pronunciations() -> None:
    words = defaultdict(set)
    for word, options in pronunciations().items():
        for option in options:
            words[option].add(word)
    assert {"their", "there", "they're"} <= words["DH", "EH", "R"]
    assert words["T", "UW"] == {"to", "too", "two"}
    assert sum(len(same) > 1 for same in words.values()) >= 15
    assert pronunciations()["the"] == (("DH", "AH"), ("DH", "IY"))
    assert sum(len(options) > 1 for options in pronunciations().values()) >= 50


@pytest.mark.parametrize("corpus", CORPORA)
def test_sentences_never_repeat_and_have_four_to_eight_words(corpus: str) -> None:
    source = SentenceSource(np.random.default_rng(1))
    sentences = [normalise_sentence(source.draw(corpus)) for _ in range(80)]
    assert len(set(sentences)) == 80
    assert all(4 <= len(sentence.split()) <= 9 for sentence in sentences)
    assert 4 <= np.mean([len(sentence.split()) for sentence in sentences]) <= 7


def test_the_fifty_word_corpus_has_about_fifty_words() -> None:
    source = SentenceSource(np.random.default_rng(2))
    words = {word for _ in range(120) for word in normalise_sentence(source.draw("50-word")).split()}
    assert 45 <= len(words) <= 55


def test_an_exhausted_corpus_and_an_unknown_one_are_named() -> None:
    source = SentenceSource(np.random.default_rng(3))
    with pytest.raises(ValueError, match="'50-word' has no new sentence left"):
        [source.draw("50-word") for _ in range(5000)]
    with pytest.raises(ValueError, match="unknown corpus 'poetry'; known: conversation, 50-word"):
        source.draw("poetry")


def test_a_repeatable_draw_repeats_repeatable_sentences_only() -> None:
    source = SentenceSource(np.random.default_rng(3))
    unique = {normalise_sentence(source.draw("50-word")) for _ in range(100)}
    repeated = Counter(normalise_sentence(source.draw("50-word", repeatable=True)) for _ in range(1000))
    assert max(repeated.values()) > 1
    assert not unique & set(repeated)


def test_double_prompts_have_their_share_where_the_corpus_allows_them() -> None:
    source = SentenceSource(np.random.default_rng(6), double_share=0.5)
    words = [len(normalise_sentence(source.draw("freq_words")).split()) for _ in range(400)]
    assert np.mean([n > 8 for n in words]) == pytest.approx(0.5, abs=0.08)
    assert all(len(normalise_sentence(source.draw("harvard")).split()) <= 8 for _ in range(50))


def test_prompts_carry_capitals_and_punctuation() -> None:
    source = SentenceSource(np.random.default_rng(4))
    prompts = [source.draw("conversation") for _ in range(200)]
    assert all(prompt[0].isupper() and prompt[-1] in ".?" for prompt in prompts)
    assert not any(" i " in prompt or " i'm " in prompt for prompt in prompts)
    assert any(prompt.startswith("Do you") and prompt.endswith("?") for prompt in prompts)


def test_pronunciations_are_drawn_in_the_stated_shares() -> None:
    rng = np.random.default_rng(5)
    drawn = Counter(pronounce("the", 0.75, rng)[0] for _ in range(4000))
    assert drawn["DH", "AH"] / 4000 == pytest.approx(0.75, abs=0.03)
    assert set(drawn) == set(pronunciations()["the"])


def test_small_shares_no_sentence_between_blocks_and_trains_nearly_every_word_it_asks_for() -> None:
    scale = SCALES["small"]
    plan = plan_sentences(scale, seed=0)
    sentences = [normalise_sentence(sentence) for block in plan.values() for sentence in block]
    assert len(set(sentences)) == len(sentences)
    trained: set[str] = set()
    held_out: list[str] = []
    for session in scale.sessions:
        for block in session.blocks:
            words = normalise_sentence(" ".join(plan[session.name, block.number])).split()
            if block.train:
                trained |= set(words)
            else:
                held_out += words
    assert np.mean([word not in trained for word in held_out]) < 0.04
