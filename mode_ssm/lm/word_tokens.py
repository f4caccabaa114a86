"""Words as tokens: one for every frequent word, spelling for all others, so that no word has probability zero.

A frequent word is its own token and nothing else. Any other is `<spell>`, its letters, `</w>`; its probability is the
product over those. Every sentence of words has one sequence of tokens, so probabilities of tokens are exact
probabilities of words. (A little is lost to the spelling of frequent words, which stands for no sentence.)
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LETTERS = "abcdefghijklmnopqrstuvwxyz'-"
BOS, EOS, SPELL, END_OF_WORD = range(4)  # tokens; then come letters, then words
_FIRST_LETTER = END_OF_WORD + 1
_FIRST_WORD = _FIRST_LETTER + len(LETTERS)
_LETTER_TOKENS = {letter: _FIRST_LETTER + index for index, letter in enumerate(LETTERS)}
MIN_COUNT = 2  # words that occur once are spelled: they teach what rare words look like


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenisedText:
    """Sentences one after the other, each from `<s>` to `</s>`: tokens (n,) int32, sentence i from starts[i] to
    starts[i + 1]."""

    tokens: np.ndarray
    starts: np.ndarray  # (sentences + 1,) int64
    num_words: int  # without sentence ends

    def __len__(self) -> int:
        return len(self.starts) - 1


class WordTokens:
    """The vocabulary: `words` have tokens of their own; `counts` says how often each occurred in training, and
    `num_spelled` how many words did that have none."""

    def __init__(self, words: Sequence[str], counts: Sequence[int], num_spelled: int) -> None:
        self.words, self.counts, self.num_spelled = tuple(words), tuple(counts), num_spelled
        self._ids = {word: _FIRST_WORD + index for index, word in enumerate(self.words)}

    @classmethod
    def of_text(cls, sentences: Iterable[str], size: int) -> "WordTokens":
        """The `size` most frequent words of normalised sentences; equally frequent ones in alphabetical order."""
        counts = Counter(word for sentence in sentences for word in sentence.split())
        frequent = sorted(((-n, word) for word, n in counts.items() if n >= MIN_COUNT))[:size]
        kept = [-n for n, _ in frequent]
        return cls([word for _, word in frequent], kept, counts.total() - sum(kept))

    def __len__(self) -> int:
        """The number of tokens."""
        return _FIRST_WORD + len(self.words)

    def __contains__(self, word: object) -> bool:
        """Whether a word has a token of its own."""
        return word in self._ids

    def of_word(self, word: str) -> tuple[int, ...]:
        """The tokens of a word; `ValueError` for one with other characters than letters, apostrophe and hyphen."""
        if word in self._ids:
            return (self._ids[word],)
        try:
            return (SPELL, *(_LETTER_TOKENS[letter] for letter in word), END_OF_WORD)
        except KeyError as error:
            raise ValueError(f"word {word!r} cannot be spelled: {error.args[0]!r} is none of {LETTERS}") from None

    def of_sentence(self, words: Sequence[str]) -> list[int]:
        """`<s>`, the tokens of the words, `</s>`."""
        return [BOS, *(token for word in words for token in self.of_word(word)), EOS]

    def of_sentences(self, sentences: Iterable[str]) -> TokenisedText:
        """Tokens of normalised sentences."""
        tokens: list[int] = []
        starts, num_words = [0], 0
        for sentence in sentences:
            words = sentence.split()
            tokens += self.of_sentence(words)
            starts.append(len(tokens))
            num_words += len(words)
        return TokenisedText(tokens=np.array(tokens, np.int32), starts=np.array(starts, np.int64), num_words=num_words)

    def describe(self) -> dict[str, Any]:
        """JSON-able; `restore` gives the vocabulary back."""
        return {"words": list(self.words), "counts": list(self.counts), "num_spelled": self.num_spelled}

    @classmethod
    def restore(cls, description: Mapping[str, Any]) -> "WordTokens":
        return cls(description["words"], description["counts"], description["num_spelled"])
