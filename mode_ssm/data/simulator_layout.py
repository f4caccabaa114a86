"""What a simulated recording consists of: sessions on dates, blocks of one mode and corpus, counts by split."""

from dataclasses import dataclass, field
from datetime import date
from typing import Literal

from mode_ssm.data.simulator_constants import SimulatorConstants

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
    """double_share: chance that a prompt is two sentences joined by "and"; repeats: sentences of the training split may
    be said again, as they are in the real recordings; a held-out sentence never stands anywhere else."""

    sessions: tuple[SessionLayout, ...]
    constants: SimulatorConstants = field(default_factory=SimulatorConstants)
    double_share: float = 0.0
    repeats: bool = False
