"""Pronunciations of words that a lexicon does not have, guessed by what it teaches about its spelling.

A joint-sequence model (Bisani and Ney, "Joint-sequence models for grapheme-to-phoneme conversion", 2008): a word and
its pronunciation are one sequence of graphones, a letter with the phones it makes; an n-gram model of graphones with
modified Kneser-Ney smoothing gives the probability of both at once.
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from mode_ssm.lm.g2p_alignment import Graphone, align
from mode_ssm.lm.g2p_search import search
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.lexicon_cache import Arrays, cached, fingerprint
from mode_ssm.lm.lexicon_file import Pronunciation
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.lm.ngram_automaton import NGramAutomaton
from mode_ssm.vocab import ids_to_phonemes, phonemes_to_ids

ORDER = 8
BEAM_SIZE = 50

_ARRAYS = (
    "backoff_state", "backoff", "arc_start", "arc_word", "arc_log_prob", "arc_next", "end_log_prob", "unigram",
)  # fmt: skip

_SOURCES = ("g2p*.py", "kneser_ney.py", "ngram*.py")  # what a trained model depends on besides the lexicon

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Guess:
    """A guessed pronunciation.

    share: its part of the probability of all pronunciations that the search ended with, a confidence in (0, 1];
    log_prob: natural logarithm of the joint probability of spelling and pronunciation.
    """

    word: str
    phones: Pronunciation
    share: float
    log_prob: float


class GraphemeToPhoneme:
    """A trained model. Give it words as `normalise_sentence` leaves them."""

    def __init__(self, automaton: NGramAutomaton) -> None:
        """`automaton` over graphones written `letter:PH_PH`, as `train` makes it."""
        self._automaton = automaton
        self._phones: dict[int, Pronunciation] = {}
        ids: dict[str, list[int]] = {}
        for token, index in automaton.word_ids.items():
            if graphone := _graphone(token):
                ids.setdefault(graphone[0], []).append(index)
                self._phones[index] = graphone[1]
        self._ids = {letter: np.array(own) for letter, own in ids.items()}

    @classmethod
    def train(cls, lexicon: Lexicon, order: int = ORDER) -> Self:
        """Learn from all pronunciations of `lexicon`; half a minute for CMUdict, the same result in every run.

        Pronunciations of over two phones to a letter ("mph") teach nothing and are left out. Raises `ValueError` where
        that leaves none.
        """
        pairs = [(word, phones) for word in lexicon for phones in lexicon[word]]
        log.info("aligning letters and phones of %d pronunciations", len(pairs))
        aligned = [graphones for graphones in align(pairs) if graphones is not None]
        log.info("estimating an n-gram model of order %d over the graphones of %d of them", order, len(aligned))
        sentences = [" ".join(map(_token, graphones)) for graphones in aligned]
        return cls(NGramLM.estimate(sentences, order).automaton())

    @classmethod
    def load(cls, lexicon: Lexicon, order: int = ORDER) -> Self:
        """The same as `train`, kept in the user's cache folder: trained once for a lexicon, then read in a second."""
        room = Path(__file__).parent
        sources = sorted(path for pattern in _SOURCES for path in room.glob(pattern))
        content = [array.tobytes() for array in lexicon.pack().values()]
        key = fingerprint(*content, str(order), *sources)
        return cls._unpack(cached(f"g2p-{key}", lambda: cls.train(lexicon, order).pack()))

    @property
    def letters(self) -> str:
        """The characters that words may have, in order."""
        return "".join(sorted(self._ids))

    def guess(self, word: str, nbest: int = 1, beam_size: int = BEAM_SIZE) -> list[Guess]:
        """Up to `nbest` distinct pronunciations, most probable first; empty where all that it finds is silent.

        Raises `ValueError` for an empty word, for one with a character that the lexicon does not have, and for `nbest`
        or `beam_size` below 1.
        """
        for name, value in (("nbest", nbest), ("beam_size", beam_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if unknown := sorted(set(word) - set(self._ids)):
            raise ValueError(f"{word!r} has {', '.join(map(repr, unknown))}; the lexicon's letters are {self.letters}")
        if not word:
            raise ValueError("an empty word has no pronunciation")
        ids, log_probs = search([self._ids[letter] for letter in word], self._automaton, beam_size)
        found: dict[Pronunciation, float] = {}
        for row, log_prob in zip(ids.tolist(), log_probs.tolist(), strict=True):
            phones = tuple(phone for index in row for phone in self._phones[index])
            if phones:
                found[phones] = float(np.logaddexp(found.get(phones, -math.inf), log_prob))
        best = sorted(found.items(), key=lambda item: -item[1])
        total = float(np.logaddexp.reduce([log_prob for _, log_prob in best])) if best else 0.0
        return [
            Guess(word=word, phones=phones, share=math.exp(log_prob - total), log_prob=log_prob)
            for phones, log_prob in best[:nbest]
        ]

    def pack(self) -> Arrays:
        """Flat arrays that make the same model again."""
        automaton = self._automaton
        arrays = {name: getattr(automaton, name) for name in _ARRAYS}
        arrays["tokens"] = np.frombuffer("\n".join(automaton.word_ids).encode(), np.uint8)
        arrays["start_order"] = np.array([automaton.start, automaton.order])
        return arrays

    @classmethod
    def _unpack(cls, arrays: Arrays) -> Self:
        tokens = arrays["tokens"].tobytes().decode().split("\n")
        start, order = arrays["start_order"].tolist()
        word_ids = {token: index for index, token in enumerate(tokens)}
        weights = {name: arrays[name] for name in _ARRAYS}
        return cls(NGramAutomaton(start=start, order=order, word_ids=word_ids, **weights))


def _token(graphone: Graphone) -> str:
    letter, phones = graphone
    return f"{letter}:{'_'.join(ids_to_phonemes(phones))}"


def _graphone(token: str) -> Graphone | None:
    """The inverse of `_token`; None for the model's own words such as </s>."""
    if token[1] != ":":
        return None
    return token[0], tuple(phonemes_to_ids(filter(None, token[2:].split("_"))))
