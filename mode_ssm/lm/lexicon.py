"""Pronunciations of words: any number for a word, any number of words for a pronunciation."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mode_ssm.vocab import BLANK, SIL, ids_to_phonemes, phonemes_to_ids

Pronunciation = tuple[int, ...]  # class ids, without blank and SIL

_ALTERNATE = re.compile(r"(.+)\(\d+\)")
_RESERVED = ("<s>", "</s>", "<unk>")


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
            if word in _RESERVED or not word or word != "".join(word.split()):
                raise ValueError(f"{word!r} cannot be a word of a lexicon")
            if not unique:
                raise ValueError(f"word {word!r} has no pronunciation")
            for phones in unique:
                _check(word, phones)
            self._entries[word] = unique

    @classmethod
    def read(cls, path: str | Path) -> "Lexicon":
        """Read `word PH PH ...` lines (a repeated word is an alternate) or CMUdict.

        Of CMUdict: `word(2)` alternates, stress digits, `;;;` comment lines and `# ...` comments. Words are lowered.
        Raises a one-line `ValueError` that names file and line for a line that cannot be understood.
        """
        path = Path(path)
        entries: dict[str, list[Pronunciation]] = {}
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
        for number, line in enumerate(lines, start=1):
            if line.startswith(";;;"):
                continue
            fields = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].split()
            if not fields:
                continue
            word, phonemes = fields[0].lower(), fields[1:]
            if alternate := _ALTERNATE.fullmatch(word):
                word = alternate.group(1)
            try:
                phones = tuple(phonemes_to_ids(phonemes))
                _check(word, phones)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            entries.setdefault(word, []).append(phones)
        if not entries:
            raise ValueError(f"{path}: no pronunciations; expected lines such as 'cat K AE T'")
        try:
            return cls(entries)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def write(self, path: str | Path) -> None:
        """One `word PH PH ...` line for every pronunciation; `read` gives the same lexicon back."""
        lines = (f"{word} {' '.join(ids_to_phonemes(phones))}\n" for word in self for phones in self[word])
        Path(path).write_text("".join(lines), encoding="utf-8")

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def subset(self, words: Iterable[str]) -> "Lexicon":
        """The entries of `words` only; raises `ValueError` naming words that are missing."""
        words = list(dict.fromkeys(words))
        self._require(words)
        return Lexicon({word: self._entries[word] for word in words})

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


def _check(word: str, phones: Pronunciation) -> None:
    if not phones:
        raise ValueError(f"word {word!r} has an empty pronunciation")
    if any(not BLANK < phone < SIL for phone in phones):
        raise ValueError(f"pronunciation of {word!r} holds blank, SIL or an unknown id; the search places SIL itself")
