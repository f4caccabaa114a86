"""Pronunciations of words: any number for a word, any number of words for a pronunciation."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Self

from mode_ssm import vocab
from mode_ssm.lm import lexicon_file
from mode_ssm.lm.lexicon_cache import Arrays, cached, fingerprint, pack_entries, unpack_entries
from mode_ssm.lm.lexicon_file import RESERVED, Pronunciation, check_pronunciation, read_lexicon_file, require_file

log = logging.getLogger(__name__)


class Lexicon:
    """Word -> pronunciations, in the order in which they were given. Words are lower case."""

    def __init__(self, entries: Mapping[str, Iterable[Iterable[int]]]) -> None:
        """`entries` maps a word to its pronunciations as class ids; equal ones are kept once.

        Raises `ValueError` for a word that is reserved or has no pronunciation, and for a pronunciation that is empty
        or holds blank or SIL.
        """
        self._entries: dict[str, tuple[Pronunciation, ...]] = {}
        for word, pronunciations in entries.items():
            unique = tuple(dict.fromkeys(tuple(int(p) for p in phones) for phones in pronunciations))
            if word in RESERVED or not word or word != "".join(word.split()):
                raise ValueError(f"{word!r} cannot be a word of a lexicon")
            if not unique:
                raise ValueError(f"word {word!r} has no pronunciation")
            for phones in unique:
                check_pronunciation(word, phones)
            self._entries[word] = unique

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read CMUdict, a Kaldi dictionary or our own (see `read_lexicon_file`, also for the errors).

        Words are as `normalise_sentence` leaves them; spellings that this changes are counted in the log.
        """
        found = read_lexicon_file(path)
        if summary := found.summary():
            log.info("%s: %s", path, summary)
        return cls._of({word: tuple(pronunciations) for word, pronunciations in found.entries.items()})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The same as `read`, by way of a compiled form in the user's cache folder, written at the first time."""
        path = Path(path)
        require_file(path)
        # The sources too: another reader may read another lexicon from the same file.
        key = fingerprint(path, *(Path(module.__file__ or "") for module in (lexicon_file, vocab)))
        return cls._of(unpack_entries(cached(f"lexicon-{key}", lambda: cls.read(path).pack())))

    @classmethod
    def _of(cls, entries: dict[str, tuple[Pronunciation, ...]]) -> Self:
        """Of entries that are known to be distinct and sound."""
        lexicon = cls({})
        lexicon._entries = entries
        return lexicon

    def pack(self) -> Arrays:
        """Flat arrays (see `pack_entries`), equal for equal lexicons in the same order."""
        return pack_entries(self._entries.items())

    def write(self, path: str | Path) -> None:
        """One `word PH PH ...` line for every pronunciation; `read` gives the same lexicon back.

        Raises `ValueError` for a word that no text can hold (see `normalise_sentence`), before anything is written.
        """
        for word in self:
            if vocab.normalise_sentence(f"{word} ") != word:
                raise ValueError(f"{path}: {word!r} is not spelled as text is; letters, apostrophes and hyphens only")
        lines = (f"{word} {' '.join(vocab.ids_to_phonemes(phones))}\n" for word in self for phones in self[word])
        Path(path).write_text("".join(lines), encoding="utf-8")

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def subset(self, words: Iterable[str]) -> "Lexicon":
        """The entries of `words` only; raises `ValueError` naming words that are missing."""
        words = list(dict.fromkeys(words))
        self._require(words)
        return self._of({word: self._entries[word] for word in words})

    def extended(self, entries: Mapping[str, Iterable[Iterable[int]]]) -> "Lexicon":
        """This lexicon and after it the words of `entries`; raises `ValueError` naming words that it has already."""
        if known := [word for word in entries if word in self]:
            raise ValueError(f"{len(known)} word(s) are in the lexicon already: {', '.join(known[:5])}")
        return self._of(self._entries | Lexicon(entries)._entries)

    def pronounce(self, sentence: str) -> list[Pronunciation]:
        """The first pronunciation of every word of a normalised sentence; `ValueError` names words that are missing."""
        words = sentence.split()
        self._require(words)
        return [self._entries[word][0] for word in words]

    def _require(self, words: Iterable[str]) -> None:
        missing = [word for word in words if word not in self._entries]
        if missing:
            raise ValueError(f"{len(missing)} word(s) not in the lexicon of {len(self)}: {', '.join(missing[:5])}")

    def __getitem__(self, word: str) -> tuple[Pronunciation, ...]:
        return self._entries[word]

    def __contains__(self, word: object) -> bool:
        return word in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lexicon) and self._entries == other._entries

    __hash__ = None  # type: ignore[assignment]
