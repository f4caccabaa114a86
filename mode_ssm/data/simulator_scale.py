"""How much the simulator generates: sessions, blocks, corpora, speaking modes and counts at each scale."""

from dataclasses import dataclass
from datetime import date
from typing import Literal

Mode = Literal["vocalised", "silent"]

IMPLANT_DATE = date(2023, 7, 17)  # the real list counts days from here: t15.2023.08.11 is day 25


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockLayout:
    """A run of sentences in one speaking mode from one corpus, normalised together.

    Held-out blocks are shared by val and test, as in the real list; such a block has no training sentence.
    """

    number: int
    mode: Mode
    corpus: str
    train: int = 0
    val: int = 0
    test: int = 0

    @property
    def num_sentences(self) -> int:
        return self.train + self.val + self.test


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionLayout:
    name: str  # "t15.YYYY.MM.DD"
    blocks: tuple[BlockLayout, ...]

    @property
    def day(self) -> int:
        """Days after implantation."""
        return (date(*map(int, self.name.split(".")[1:])) - IMPLANT_DATE).days


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    sessions: tuple[SessionLayout, ...]


def _session(name: str, *blocks: tuple[Mode, str, int, int, int]) -> SessionLayout:
    layouts = (
        BlockLayout(number=number, mode=mode, corpus=corpus, train=train, val=val, test=test)
        for number, (mode, corpus, train, val, test) in enumerate(blocks, start=1)
    )
    return SessionLayout(name=name, blocks=tuple(layouts))


_TINY = Scale(
    sessions=(
        _session("t15.2023.08.11", ("vocalised", "50-word", 6, 0, 0), ("silent", "conversation", 4, 0, 0)),
        _session(
            "t15.2023.08.27",
            ("vocalised", "conversation", 4, 0, 0),
            ("silent", "conversation", 4, 0, 0),
            ("vocalised", "conversation", 0, 3, 2),
            ("silent", "50-word", 0, 2, 2),
        ),
    )
)

_SMALL = Scale(
    sessions=(
        _session(  # the first session of the real list is training data only, too
            "t15.2023.08.11",
            ("vocalised", "50-word", 30, 0, 0),
            ("silent", "50-word", 30, 0, 0),
            ("vocalised", "conversation", 30, 0, 0),
            ("silent", "conversation", 30, 0, 0),
        ),
        _session(
            "t15.2023.08.27",
            ("vocalised", "conversation", 26, 0, 0),
            ("silent", "conversation", 26, 0, 0),
            ("vocalised", "conversation", 0, 12, 9),
            ("silent", "conversation", 0, 12, 9),
            ("vocalised", "freq_words", 26, 0, 0),
            ("silent", "50-word", 26, 0, 0),
        ),
        _session(
            "t15.2023.10.06",
            ("silent", "conversation", 26, 0, 0),
            ("vocalised", "conversation", 26, 0, 0),
            ("silent", "conversation", 0, 12, 9),
            ("vocalised", "harvard", 0, 10, 8),
            ("vocalised", "harvard", 26, 0, 0),
            ("silent", "freq_words", 26, 0, 0),
        ),
        _session(
            "t15.2023.12.03",
            ("vocalised", "conversation", 26, 0, 0),
            ("silent", "conversation", 26, 0, 0),
            ("vocalised", "conversation", 0, 12, 9),
            ("silent", "freq_words", 0, 10, 8),
            ("vocalised", "freq_words", 26, 0, 0),
            ("silent", "harvard", 26, 0, 0),
        ),
        _session(
            "t15.2024.02.25",
            ("silent", "conversation", 26, 0, 0),
            ("vocalised", "conversation", 26, 0, 0),
            ("silent", "50-word", 0, 11, 8),
            ("vocalised", "conversation", 0, 12, 9),
            ("silent", "conversation", 26, 0, 0),
            ("vocalised", "random", 14, 4, 4),
        ),
    )
)

SCALES = {"tiny": _TINY, "small": _SMALL}
