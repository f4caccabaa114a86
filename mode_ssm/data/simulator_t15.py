"""The scales that follow the real recordings: 45 sessions and 265 blocks with their dates, corpora and counts.

What the public list does not tell is chosen here: the speaking mode of a block, how a held-out block is divided between
val and test, and which sentences of the list are missing in the released files.
"""

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from mode_ssm.data.simulator_constants import ATTEMPTED_SPEECH
from mode_ssm.data.simulator_layout import BlockLayout, Mode, Scale, SessionLayout

# Sentences in the released files; the list names 214 more that were asked for.
NUM_TRAIN, NUM_VAL, NUM_TEST = 8072, 1426, 1450
MEDIUM_SHARE = 0.1
DOUBLE_SHARE = 0.5  # of prompts that are two sentences: about eight words a prompt

# The grammar knows neither transcribed telephone speech nor web text; both are spoken as conversation.
_GRAMMAR_CORPUS = {"switchboard": "conversation", "openwebtext": "conversation"}
_MODES: tuple[Mode, Mode] = ("vocalised", "silent")


@dataclass(frozen=True, slots=True)
class ListedBlock:
    """A line of the list. sentences: how many were asked for; held_out: val and test, else training."""

    session: str
    number: int
    sentences: int
    corpus: str
    held_out: bool


def listed_blocks() -> list[ListedBlock]:
    """The real list in its order: by date, then by block."""
    text = resources.files("mode_ssm.data").joinpath("t15_blocks.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return [
        ListedBlock(
            session=row["session"],
            number=int(row["block"]),
            sentences=int(row["sentences"]),
            corpus=row["corpus"],
            held_out=row["split"] == "held-out",
        )
        for row in rows
    ]


def full_scale() -> Scale:
    """Every block, with exactly as many sentences a split as the released files hold."""
    return _scale(_released_counts(listed_blocks()))


def medium_scale() -> Scale:
    """Every block with about a tenth of its sentences, and at least one of each split that it has."""
    counts = _released_counts(listed_blocks())
    return _scale([tuple(max(1, round(n * MEDIUM_SHARE)) if n else 0 for n in block) for block in counts])


def _released_counts(blocks: Sequence[ListedBlock]) -> list[tuple[int, ...]]:
    """(train, val, test) of each block: the missing sentences are spread evenly over the list."""
    train = _apportion([0 if block.held_out else block.sentences for block in blocks], NUM_TRAIN)
    held_out = _apportion([block.sentences if block.held_out else 0 for block in blocks], NUM_VAL + NUM_TEST)
    val = _apportion(held_out, NUM_VAL)
    return [(n, v, h - v) for n, v, h in zip(train, val, held_out, strict=True)]


def _apportion(weights: Sequence[int], total: int) -> list[int]:
    """Whole numbers near `weights` times `total / sum(weights)` that add up to `total`; what rounding takes from one
    it gives to the next."""
    whole = sum(weights)
    shares, given, seen = [], 0, 0
    for weight in weights:
        seen += weight
        shares.append((2 * seen * total + whole) // (2 * whole) - given)
        given += shares[-1]
    return shares


def _scale(counts: Sequence[tuple[int, ...]]) -> Scale:
    """Training and held-out blocks of a session take turns in the speaking modes, so that each split hears both."""
    sessions: dict[str, list[BlockLayout]] = defaultdict(list)
    turns: dict[tuple[str, bool], int] = defaultdict(int)
    for block, (train, val, test) in zip(listed_blocks(), counts, strict=True):
        turn = turns[block.session, block.held_out]
        turns[block.session, block.held_out] += 1
        sessions[block.session].append(
            BlockLayout(
                number=block.number,
                mode=_MODES[turn % 2],
                corpus=_GRAMMAR_CORPUS.get(block.corpus, block.corpus),
                train=train,
                val=val,
                test=test,
            )
        )
    return Scale(
        sessions=tuple(SessionLayout(name=name, blocks=tuple(blocks)) for name, blocks in sessions.items()),
        constants=ATTEMPTED_SPEECH,
        double_share=DOUBLE_SHARE,
        repeats=True,
    )
