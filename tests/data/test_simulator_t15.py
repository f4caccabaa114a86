import csv
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from mode_ssm.data.simulator_layout import Scale
from mode_ssm.data.simulator_scale import SCALES
from mode_ssm.data.simulator_session import plan_sentences
from mode_ssm.data.simulator_t15 import listed_blocks
from mode_ssm.vocab import normalise_sentence

SPLITS = ("train", "val", "test")
ORIGINAL = Path(__file__).parents[3] / "shared" / "data" / "t15" / "blocks.csv"


def counts(scale: Scale) -> dict[str, Counter[str]]:
    return {
        session.name: Counter({split: sum(getattr(block, split) for block in session.blocks) for split in SPLITS})
        for session in scale.sessions
    }


def total(scale: Scale) -> dict[str, int]:
    return dict(sum(counts(scale).values(), Counter()))


def test_full_has_the_sessions_blocks_and_counts_of_the_released_recordings() -> None:
    full = SCALES["full"]
    assert len(full.sessions) == 45
    assert sum(len(session.blocks) for session in full.sessions) == 265
    assert total(full) == {"train": 8072, "val": 1426, "test": 1450}
    assert (full.sessions[0].day, full.sessions[-1].day) == (25, 636)
    without = [name for name, splits in counts(full).items() if not splits["val"]]
    assert without == ["t15.2023.08.11", "t15.2024.03.03", "t15.2024.04.25", "t15.2024.04.28"]


def test_full_follows_the_list_block_by_block() -> None:
    blocks = [(session.name, block) for session in SCALES["full"].sessions for block in session.blocks]
    for listed, (session, block) in zip(listed_blocks(), blocks, strict=True):
        assert (session, block.number) == (listed.session, listed.number)
        assert (block.train == 0) == listed.held_out
        assert listed.sentences * 0.95 - 1 <= block.num_sentences <= listed.sentences
        if listed.held_out:
            assert abs(block.val - block.test) <= 2


@pytest.mark.skipif(not ORIGINAL.exists(), reason="the real list is not here")
def test_the_restated_list_agrees_with_the_real_one() -> None:
    with ORIGINAL.open() as file:
        real = [
            (r["session"], int(r["block"]), int(r["sentences"]), r["split"] != "train") for r in csv.DictReader(file)
        ]
    assert [(b.session, b.number, b.sentences, b.held_out) for b in listed_blocks()] == real


def test_medium_keeps_every_block_and_split_and_about_a_tenth_of_the_sentences() -> None:
    full, medium = SCALES["full"], SCALES["medium"]
    for whole, thinned in zip(full.sessions, medium.sessions, strict=True):
        assert [(b.number, b.corpus, b.mode) for b in whole.blocks] == [
            (b.number, b.corpus, b.mode) for b in thinned.blocks
        ]
        for a, b in zip(whole.blocks, thinned.blocks, strict=True):
            assert [getattr(a, split) > 0 for split in SPLITS] == [getattr(b, split) > 0 for split in SPLITS]
    for split, number in total(medium).items():
        assert number == pytest.approx(total(full)[split] / 10, rel=0.15)


def test_both_modes_are_heard_in_training_and_held_out_blocks() -> None:
    modes: dict[bool, Counter[str]] = defaultdict(Counter)
    for session in SCALES["full"].sessions:
        for block in session.blocks:
            modes[block.train > 0][block.mode] += 1
    assert all(counter["silent"] > 0.35 * counter.total() for counter in modes.values())


@pytest.mark.parametrize("name", ["medium", "full"])
def test_no_held_out_sentence_is_said_twice_and_only_the_fifty_word_corpus_repeats(name: str) -> None:
    plan = plan_sentences(SCALES[name], seed=0)
    corpora: dict[str, list[str]] = defaultdict(list)
    trained, held_out = set(), []
    for session in SCALES[name].sessions:
        for block in session.blocks:
            sentences = [normalise_sentence(sentence) for sentence in plan[session.name, block.number]]
            corpora[block.corpus] += sentences
            if block.train:
                trained.update(sentences)
            else:
                held_out += sentences
    assert len(set(held_out)) == len(held_out)
    assert not trained & set(held_out)
    assert {corpus for corpus, said in corpora.items() if len(set(said)) < len(said)} <= {"50-word"}
