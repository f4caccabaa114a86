"""Pronunciation dictionaries as text: CMUdict, Kaldi's `lexicon.txt` and `lexiconp.txt`, and our own.

All three are lines of `word PH PH ...`. Words come out as `vocab.normalise_sentence` leaves them, because text, labels
and the error rate know no others: "A.M." is "am", and a word that only such spelling would merge is merged here, not in
the search. What that changes is reported.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mode_ssm.vocab import BLANK, PHONEMES, SIL, normalise_sentence, phonemes_to_ids

Pronunciation = tuple[int, ...]  # class ids, without blank and SIL

RESERVED = ("<s>", "</s>", "<unk>")
# What Kaldi's recipes call silence, spoken noise and noise: such entries are for its aligner, not for a search.
_NOT_SPEECH = frozenset(("SIL", "SPN", "NSN"))
_SILENCE_PROBABILITIES = 3  # follow the pronunciation's own in Kaldi's lexiconp_silprob.txt

_ALTERNATE = re.compile(r"(.+)\(\d+\)")
_COMMENT = re.compile(r"(?:^|\s)#")
_NUMBER = re.compile(r"[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?")
_PLAIN = re.compile(r"[a-z']+(?:-[a-z']+)*")  # words that normalising does not change
_ID = {phoneme + stress: phonemes_to_ids([phoneme])[0] for phoneme in PHONEMES for stress in ("", "0", "1", "2")}


@dataclass(frozen=True, slots=True)
class LexiconFile:
    """A dictionary as read.

    entries: word -> its distinct pronunciations, in the order of the file, but the more probable first where the file
    has probabilities. respelled: spelling -> the word that its pronunciations went to. left_out: spelling -> why some
    or all of its pronunciations are not in `entries`.
    """

    entries: dict[str, list[Pronunciation]] = field(default_factory=dict)
    respelled: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """One line; empty where every spelling is a word as it stands."""
        parts = []
        if self.respelled:
            some = ", ".join(f"{spelling} as {word}" for spelling, word in list(self.respelled.items())[:3])
            parts.append(f"{len(self.respelled)} spelling(s) read as the normalised word ({some} ...)")
        if self.left_out:
            some = ", ".join(f"{spelling}: {reason}" for spelling, reason in list(self.left_out.items())[:3])
            parts.append(f"{len(self.left_out)} left out ({some} ...)")
        return "; ".join(parts)


def check_pronunciation(word: str, phones: Pronunciation) -> None:
    """Raises `ValueError` for a pronunciation that is empty or holds anything but phonemes."""
    if not phones:
        raise ValueError(f"word {word!r} has an empty pronunciation")
    if any(not BLANK < phone < SIL for phone in phones):
        raise ValueError(f"pronunciation of {word!r} holds blank, SIL or an unknown id; the search places SIL itself")


def read_lexicon_file(path: str | Path) -> LexiconFile:
    """Read CMUdict, a Kaldi dictionary or what `Lexicon.write` wrote.

    Alternates are repeated lines or `word(2)`; stress digits are stripped; `;;;` lines and `# ...` tails are comments;
    a probability may stand after the word (Kaldi's lexiconp.txt; three more, as in lexiconp_silprob.txt, are skipped).

    A spelling that `normalise_sentence` changes in more than case and apostrophes ("u.s.") adds its pronunciations
    to the plain word ("us"), after the word's own. Where the plain word has its own, those that spell out another
    word of the file are not added: "in." read "inch" would make every spoken "inch" an "in" for the language model.
    Left out are words that lose a letter or digit ("4th" would become "th") and Kaldi's silence and noise entries.

    Raises:
        ValueError: one line naming the file and the line: not UTF-8, unknown phoneme, no pronunciation, a probability
            outside (0, 1], a reserved word; or a file that holds no pronunciations at all.
    """
    path = Path(path)
    plain: dict[str, dict[Pronunciation, float]] = {}
    respelled: list[tuple[str, str, Pronunciation, float]] = []
    result = LexiconFile()
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.startswith(";;;"):
            continue
        fields = (_COMMENT.split(line, maxsplit=1)[0] if "#" in line else line).split()
        if not fields:
            continue
        spelling = fields[0].lower().replace("’", "'").replace("‘", "'")
        if spelling[-1] == ")" and (alternate := _ALTERNATE.fullmatch(spelling)):
            spelling = alternate.group(1)
        try:
            probability, phonemes = _split_probability(fields[1:])
            if phonemes and _NOT_SPEECH.issuperset(phonemes):
                result.left_out[spelling] = "silence or noise only"
                continue
            phones = _phones(spelling, phonemes)
            word = _normalised(spelling)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        if word == spelling:
            known = plain.setdefault(word, {})
            known[phones] = max(known.get(phones, 0.0), probability)
        elif not word or any(character.isalnum() for character in _dropped(spelling, word)):
            result.left_out[spelling] = f"cannot be written without {''.join(_dropped(spelling, word))!r}"
        else:
            respelled.append((spelling, word, phones, probability))
    _add_respelled(plain, respelled, result)
    if not plain:
        found = result.summary() or "expected lines such as 'cat K AE T'"
        raise ValueError(f"{path}: no pronunciations; {found}")
    for word, known in plain.items():
        result.entries[word] = sorted(known, key=lambda phones: -known[phones])
    return result


def require_file(path: Path) -> None:
    """Raises `ValueError` for a folder; a path where nothing is is left to whoever opens it."""
    if path.is_dir():
        raise ValueError(f"{path}: a folder, not a pronunciation dictionary")


def _text(path: Path) -> str:
    require_file(path)
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        reason = f"not UTF-8 text ({error.reason} at byte {error.start}); convert it, e.g. iconv -f latin1 -t utf-8"
        raise ValueError(f"{path}, line {line}: {reason}") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text (zero bytes, as in UTF-16 or a binary file)")
    return text


def _split_probability(fields: Sequence[str]) -> tuple[float, Sequence[str]]:
    """The pronunciation's probability (1 where none is given) and its phonemes."""
    if not fields or not _NUMBER.fullmatch(fields[0]):
        return 1.0, fields
    probability = float(fields[0])
    if not 0.0 < probability <= 1.0:
        raise ValueError(f"probability {fields[0]} of a pronunciation is not in (0, 1]")
    silence = fields[1 : 1 + _SILENCE_PROBABILITIES]
    skipped = _SILENCE_PROBABILITIES if silence and all(map(_NUMBER.fullmatch, silence)) else 0
    return probability, fields[1 + skipped :]


def _phones(spelling: str, phonemes: Sequence[str]) -> Pronunciation:
    try:
        phones = tuple([_ID[phoneme] for phoneme in phonemes])
    except KeyError:
        phones = tuple(phonemes_to_ids(phonemes))
    check_pronunciation(spelling, phones)
    return phones


def _normalised(spelling: str) -> str:
    """The word as it stands inside of a sentence."""
    if spelling in RESERVED:
        raise ValueError(f"{spelling!r} cannot be a word of a lexicon")
    return spelling if _PLAIN.fullmatch(spelling) else normalise_sentence(f"{spelling} ")


def _dropped(spelling: str, word: str) -> list[str]:
    """The characters of `spelling` that are not in `word`, a subsequence of it."""
    left = iter(word)
    expected = next(left, None)
    dropped = []
    for character in spelling:
        if character == expected:
            expected = next(left, None)
        else:
            dropped.append(character)
    return dropped


def _add_respelled(
    plain: dict[str, dict[Pronunciation, float]],
    respelled: Sequence[tuple[str, str, Pronunciation, float]],
    result: LexiconFile,
) -> None:
    wanted = {phones for _, word, phones, _ in respelled if word in plain and phones not in plain[word]}
    spelled: dict[Pronunciation, str] = {}  # a plain word for each of them that has one
    if wanted:
        for word, known in plain.items():
            for phones in wanted & known.keys():
                spelled.setdefault(phones, word)
    own = set(plain)
    for spelling, word, phones, probability in respelled:
        known = plain.setdefault(word, {})
        if phones in known:
            result.respelled[spelling] = word
        elif word in own and phones in spelled:
            result.left_out[spelling] = f"a pronunciation that is {spelled[phones]!r}, not {word!r}"
        else:
            result.respelled[spelling] = word
            known[phones] = min(probability, *known.values()) if known else probability
