"""How much the simulator generates: `tiny` and `small` by hand, `medium` and `full` after the real list of blocks."""

from mode_ssm.data.simulator_layout import BlockLayout, Mode, Scale, SessionLayout
from mode_ssm.data.simulator_t15 import full_scale, medium_scale


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

# Blocks of test alone: for comparisons, 297 sentences tell what 73 cannot.
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
            ("vocalised", "conversation", 0, 0, 18),
            ("silent", "conversation", 0, 0, 18),
            ("vocalised", "freq_words", 0, 0, 20),
        ),
        _session(
            "t15.2023.10.06",
            ("silent", "conversation", 26, 0, 0),
            ("vocalised", "conversation", 26, 0, 0),
            ("silent", "conversation", 0, 12, 9),
            ("vocalised", "harvard", 0, 10, 8),
            ("vocalised", "harvard", 26, 0, 0),
            ("silent", "freq_words", 26, 0, 0),
            ("vocalised", "conversation", 0, 0, 18),
            ("silent", "conversation", 0, 0, 18),
            ("silent", "harvard", 0, 0, 20),
        ),
        _session(
            "t15.2023.12.03",
            ("vocalised", "conversation", 26, 0, 0),
            ("silent", "conversation", 26, 0, 0),
            ("vocalised", "conversation", 0, 12, 9),
            ("silent", "freq_words", 0, 10, 8),
            ("vocalised", "freq_words", 26, 0, 0),
            ("silent", "harvard", 26, 0, 0),
            ("vocalised", "conversation", 0, 0, 18),
            ("silent", "conversation", 0, 0, 18),
            ("silent", "50-word", 0, 0, 20),
        ),
        _session(
            "t15.2024.02.25",
            ("silent", "conversation", 26, 0, 0),
            ("vocalised", "conversation", 26, 0, 0),
            ("silent", "50-word", 0, 11, 8),
            ("vocalised", "conversation", 0, 12, 9),
            ("silent", "conversation", 26, 0, 0),
            ("vocalised", "random", 14, 4, 4),
            ("vocalised", "conversation", 0, 0, 18),
            ("silent", "conversation", 0, 0, 18),
            ("vocalised", "random", 0, 0, 20),
        ),
    )
)

SCALES = {"tiny": _TINY, "small": _SMALL, "medium": medium_scale(), "full": full_scale()}
