"""What the simulated participant says: sentences from a small grammar, words with all their pronunciations."""

import re
from collections import Counter, defaultdict
from functools import lru_cache
from importlib import resources

import numpy as np

from mode_ssm.vocab import normalise_sentence

CORPORA = ("conversation", "50-word", "freq_words", "harvard", "random")
DOUBLED = ("conversation", "freq_words")  # corpora whose prompts may be two sentences
MAX_TRIES = 2000  # draws without a new sentence before a corpus counts as exhausted
REPEAT_AFTER = 20  # draws without a new sentence before one may be repeated

_SLOT = re.compile(r"\{(.+?)\}")
_QUESTION = re.compile(
    r"(what|where|how|do|did|does|would|can|will|could|should|may|might|must|is|which)\b|.*isn't it$"
)
_CAPITALISED = re.compile(r"\b(i|monday|friday|sunday)\b")


def _data_lines(name: str) -> list[str]:
    text = resources.files("mode_ssm.data").joinpath(name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@lru_cache(maxsize=1)
def pronunciations() -> dict[str, tuple[tuple[str, ...], ...]]:
    """Every word of the vocabulary and its pronunciations, the most usual first."""
    table: dict[str, tuple[tuple[str, ...], ...]] = {}
    for line in _data_lines("simulator_words.txt"):
        word, *phonemes = line.split()
        table[word] = (*table.get(word, ()), tuple(phonemes))
    return table


@lru_cache(maxsize=1)
def grammar() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """(templates of each corpus, fillers of each slot)."""
    corpora: dict[str, list[str]] = defaultdict(list)
    slots: dict[str, list[str]] = defaultdict(list)
    name, in_corpus = "", False
    for line in _data_lines("simulator_grammar.txt"):
        if line.startswith("["):
            name = line.strip("[]")
            in_corpus = name.startswith("corpus ")
            name = name.removeprefix("corpus ")
        elif in_corpus:
            corpora[name].append(line)
        else:
            slots[name] += [filler.strip() for filler in line.split(",")]
    return dict(corpora), dict(slots)


class SentenceSource:
    """Draws sentences that were never drawn before, whatever the corpus, unless a repetition is allowed.

    Of two random fillers the one used less often is taken, so that a few hundred sentences already use nearly the
    whole vocabulary, as a corpus of natural size would. `double_share` of the prompts of `DOUBLED` corpora are two
    sentences joined by "and".
    """

    def __init__(self, rng: np.random.Generator, double_share: float = 0.0) -> None:
        self._rng = rng
        self._double_share = double_share
        self._used: Counter[str] = Counter()
        self._drawn: set[str] = set()
        self._repeatable: set[str] = set()

    def draw(self, corpus: str, repeatable: bool = False) -> str:
        """A sentence as a prompt would show it: capitals and punctuation.

        repeatable: the sentence may be one that was drawn before as repeatable, where new ones are rare, and may be
        drawn again. Raises `ValueError` when the corpus is unknown or has no sentence left.
        """
        corpora, _ = grammar()
        if corpus not in corpora:
            raise ValueError(f"unknown corpus {corpus!r}; known: {', '.join(CORPORA)}")
        for tries in range(MAX_TRIES):
            sentence = self._prompt(corpus)
            words = normalise_sentence(sentence)
            again = repeatable and tries >= REPEAT_AFTER and words in self._repeatable
            if again or (words not in self._drawn and not re.search(r"\b(\S+) \1\b", words)):
                self._drawn.add(words)
                if repeatable:
                    self._repeatable.add(words)
                return _as_prompt(sentence)
        raise ValueError(f"corpus {corpus!r} has no new sentence left after {len(self._drawn)}; ask for fewer of it")

    def _prompt(self, corpus: str) -> str:
        templates = grammar()[0][corpus]
        sentence = self._fill(self._less_used(templates))
        if self._double_share and corpus in DOUBLED and self._rng.random() < self._double_share:
            sentence += " and " + self._fill(self._less_used(templates))
        return sentence

    def _fill(self, template: str) -> str:
        _, slots = grammar()
        while slot := _SLOT.search(template):
            filler = self._less_used(slots[slot.group(1)])
            template = template[: slot.start()] + filler + template[slot.end() :]
        return template

    def _less_used(self, options: list[str]) -> str:
        first, second = (options[i] for i in self._rng.integers(len(options), size=2))
        choice = first if self._used[first] <= self._used[second] else second
        self._used[choice] += 1
        return choice


def _as_prompt(sentence: str) -> str:
    end = "?" if _QUESTION.match(sentence) else "."
    sentence = _CAPITALISED.sub(lambda match: match.group().capitalize(), sentence)
    return sentence[0].upper() + sentence[1:] + end


def pronounce(sentence: str, usual: float, rng: np.random.Generator) -> list[tuple[str, ...]]:
    """One pronunciation a word: the most usual one with probability `usual`, else one of the others."""
    spoken = []
    for word in normalise_sentence(sentence).split():
        options = pronunciations()[word]
        other = len(options) > 1 and rng.random() >= usual
        spoken.append(options[int(rng.integers(1, len(options))) if other else 0])
    return spoken
