"""The 41 classes of Brain-to-Text '25 and the way from text to ids and back."""

import re
from collections.abc import Iterable, Sequence

BLANK = 0
PHONEMES = (
    "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH", "IH", "IY", "JH", "K",
    "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH",
)  # fmt: skip
CLASSES = ("BLANK", *PHONEMES, "SIL")
SIL = len(CLASSES) - 1
NUM_CLASSES = len(CLASSES)
CLASS_ID = {name: index for index, name in enumerate(CLASSES)}

_DROPPED = re.compile(r"[^a-z\-' ]")


def normalise_sentence(text: str) -> str:
    """Return `text` as the benchmark's word error rate sees it.

    Lower case; curly apostrophes straight; everything but letters, hyphen, apostrophe and space dropped;
    "- " becomes " "; runs of spaces become one.
    """
    text = text.lower().replace("’", "'").replace("‘", "'")
    text = _DROPPED.sub("", text).replace("- ", " ").replace("--", "")
    return " ".join(text.split())


def strip_stress(phone: str) -> str:
    """`"AH0"` -> `"AH"`."""
    return phone.rstrip("0123456789")


def phonemes_to_ids(phonemes: Iterable[str]) -> list[int]:
    """Class ids of ARPAbet symbols (stress digits allowed); raises `ValueError` for an unknown one."""
    ids = []
    for phoneme in phonemes:
        name = strip_stress(phoneme)
        if name not in CLASS_ID:
            raise ValueError(f"unknown phoneme {phoneme!r}; known: {' '.join(CLASSES[1:])}")
        ids.append(CLASS_ID[name])
    return ids


def ids_to_phonemes(ids: Sequence[int]) -> list[str]:
    return [CLASSES[i] for i in ids]


def words_to_ids(pronunciations: Iterable[Sequence[str]]) -> list[int]:
    """Ids of a sentence given one pronunciation a word: SIL after every word, the last one too."""
    ids: list[int] = []
    for pronunciation in pronunciations:
        ids += phonemes_to_ids(pronunciation)
        ids.append(SIL)
    return ids
