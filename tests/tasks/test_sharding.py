"""Trials dealt over processes."""

import pytest

from mode_ssm.data.batch import TrialInfo
from mode_ssm.data.loader import eval_batches
from mode_ssm.tasks.sharding import batch_units, deal, session_units


def trial(number: int, num_bins: int, session: str = "s0") -> TrialInfo:
    return TrialInfo(
        session=session,
        split="val",
        block=1,
        trial=number,
        path="",
        key=f"trial_{number:04d}",
        num_bins=num_bins,
        num_phonemes=None,
        sentence=None,
    )


BINS = (50, 90, 20, 70, 70, 10, 40, 60, 30, 80)
TRIALS = [trial(number, bins, f"s{number % 3}") for number, bins in enumerate(BINS)]


def names(units: list[list[TrialInfo]]) -> list[list[int]]:
    return [[trial.trial for trial in unit] for unit in units]


def test_batches_are_cut_longest_first_and_sessions_by_name() -> None:
    assert names(batch_units(TRIALS, 4)) == [[1, 9, 3, 4], [7, 0, 6, 8], [2, 5]]
    assert names(session_units(TRIALS)) == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]


def test_units_go_to_the_rank_with_fewest_bins_so_far() -> None:
    units = [[trial(0, 30)], [trial(1, 50), trial(2, 10)], [trial(3, 40)], [trial(4, 25)]]
    # 60 to rank 0; 40, then 30 to rank 1; 25 to rank 0, which has 60 against 70.
    assert names(deal(units, 2)) == [[1, 2, 4], [3, 0]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 12])
@pytest.mark.parametrize("units", [batch_units(TRIALS, 3), session_units(TRIALS)], ids=["batches", "sessions"])
def test_every_trial_is_dealt_once_and_units_stay_whole(units: list[list[TrialInfo]], world_size: int) -> None:
    hands = deal(units, world_size)
    assert len(hands) == world_size
    assert sorted(number for hand in names(hands) for number in hand) == list(range(len(TRIALS)))
    for unit in units:
        assert sum(set(unit) <= set(hand) for hand in hands) == 1
    assert sum(not hand for hand in hands) == max(0, world_size - len(units))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_batches_do_not_depend_on_the_number_of_ranks(world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from mode_ssm.data import loader

    monkeypatch.setattr(loader, "_batches", lambda dataset, schedule, *rest: [dataset.trials[i] for i in schedule])
    monkeypatch.setattr(loader, "Brain2TextDataset", lambda trials, transform, cache: Places(trials))
    found = [list(eval_batches(hand, None, {}, 3)) for hand in deal(batch_units(TRIALS, 3), world_size)]  # type: ignore[arg-type]
    assert sorted(batch for of_rank in found for batch in of_rank) == sorted(names(batch_units(TRIALS, 3)))


class Places:
    """Stands for a dataset: `trials[schedule]` are the numbers of the trials of a batch."""

    def __init__(self, trials: list[TrialInfo]) -> None:
        self.trials = self
        self.infos = trials

    def __getitem__(self, places: list[int]) -> list[int]:
        return [self.infos[place].trial for place in places]
