from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mode_ssm.data.batch import TrialInfo
from mode_ssm.data.sampler import BucketSampler


def trials_of(sizes: list[int], seed: int = 0) -> list[TrialInfo]:
    """sizes[i] trials in session i, lengths spread as sentences are."""
    rng = np.random.default_rng(seed)
    return [
        TrialInfo(
            session=f"t15.2023.01.{session:02d}",
            split="train",
            block=1,
            trial=number,
            path="",
            key=f"trial_{number:04d}",
            num_bins=int(np.clip(rng.lognormal(6.0, 0.4), 50, 2000)),
            num_phonemes=10,
            sentence="",
        )
        for session, size in enumerate(sizes)
        for number in range(size)
    ]


def padding(trials: list[TrialInfo], batches: list[list[int]]) -> float:
    """Share of a batch's bins that are padding."""
    padded = sum(len(batch) * max(trials[i].num_bins for i in batch) for batch in batches)
    return 1 - sum(trials[i].num_bins for batch in batches for i in batch) / padded


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    batch_size=st.integers(1, 20),
    sessions_per_batch=st.integers(1, 6),
    world_size=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_an_epoch_deals_every_trial_to_one_rank(
    sizes: list[int], batch_size: int, sessions_per_batch: int, world_size: int, seed: int
) -> None:
    trials = trials_of(sizes)
    samplers = [BucketSampler(trials, batch_size, sessions_per_batch, seed, r, world_size) for r in range(world_size)]
    steps = samplers[0].steps_per_epoch
    for epoch in (0, 1):
        by_rank = [sampler.batches(epoch) for sampler in samplers]
        assert [len(batches) for batches in by_rank] == [steps] * world_size
        batches = [batch for of_rank in by_rank for batch in of_rank]
        counts = Counter(index for batch in batches for index in batch)
        assert set(counts) == set(range(len(trials)))
        if len(trials) >= len(batches):
            assert set(counts.values()) == {1}
        else:
            assert sum(counts.values()) == len(batches)  # one trial a batch, repeated as evenly as can be
            assert max(counts.values()) - min(counts.values()) <= 1
        for batch in batches:
            assert 1 <= len(batch) <= batch_size
            assert len({trials[i].session for i in batch}) <= sessions_per_batch


def test_batches_follow_from_seed_and_epoch_alone() -> None:
    trials = trials_of([40, 25, 60])
    sampler = BucketSampler(trials, 8, 2, seed=1)
    first = sampler.batches(0)
    sampler.batches(1)
    assert first == sampler.batches(0) == BucketSampler(trials, 8, 2, seed=1).batches(0)
    assert first != BucketSampler(trials, 8, 2, seed=2).batches(0)
    epochs = [{frozenset(batch) for batch in sampler.batches(epoch)} for epoch in range(3)]
    assert len(epochs[0] & epochs[1]) < len(epochs[0]) / 4  # other company, not only another order
    assert epochs[1] != epochs[2]


def test_batches_of_a_real_sized_dataset_are_full_and_mixed() -> None:
    trials = trials_of([180] * 44 + [20])
    sampler = BucketSampler(trials, 32, 4, seed=0)
    batches = sampler.batches(0)
    sizes = [len(batch) for batch in batches]
    assert np.mean(sizes) > 30
    assert min(sizes) >= 20
    sessions = [len({trials[i].session for i in batch}) for batch in batches]
    assert max(sessions) == 4
    assert np.mean(sessions) > 3.8


def test_lengths_within_a_batch_are_similar() -> None:
    trials = trials_of([180] * 20)
    shuffled = np.array_split(np.random.default_rng(0).permutation(len(trials)), len(trials) // 32)
    at_random = padding(trials, [chunk.tolist() for chunk in shuffled])
    assert at_random > 0.5
    assert padding(trials, BucketSampler(trials, 32, 4, seed=0).batches(0)) < 0.22


def test_batches_of_one_step_are_similar_over_ranks() -> None:
    trials = trials_of([180] * 20)
    by_rank = [BucketSampler(trials, 16, 4, 0, rank, 4).batches(0) for rank in range(4)]
    longest = np.array([[max(trials[i].num_bins for i in batch) for batch in batches] for batches in by_rank])
    slowest_over_mean = (longest.max(axis=0) / longest.mean(axis=0)).mean()
    all_over_mean = np.sort(longest.ravel())[-longest.shape[1] :].mean() / longest.mean()
    assert slowest_over_mean < 1.25 < all_over_mean


@pytest.mark.parametrize("epoch", range(3))
def test_every_session_is_spread_evenly_over_the_epoch(epoch: int) -> None:
    sizes = [400, 200, 100, 64, 32] + [150] * 10
    trials = trials_of(sizes)
    batches = BucketSampler(trials, 16, 4, seed=0).batches(epoch)
    quarter = np.arange(len(batches)) * 4 // len(batches)
    for session, size in enumerate(sizes):
        name = f"t15.2023.01.{session:02d}"
        share = np.zeros(4)
        for q, batch in zip(quarter, batches, strict=True):
            share[q] += sum(trials[i].session == name for i in batch) / size
        assert share.min() > 0.05
        assert share.max() < 0.45


def test_no_session_comes_in_a_run_nor_stays_away_for_long() -> None:
    trials = trials_of([100] * 10)
    batches = BucketSampler(trials, 16, 4, seed=0).batches(0)
    # A session is in about 40 of 100 batches' worth of places: 16 batches apart or 8 in a row would be a cluster.
    for session in {trial.session for trial in trials}:
        present = "".join("x" if any(trials[i].session == session for i in batch) else " " for batch in batches)
        assert max(len(run) for run in present.split(" ")) <= 8
        assert max(len(gap) for gap in present.split("x")) <= 16


def test_one_session_alone_fills_its_batches() -> None:
    trials = trials_of([64])
    assert sorted(len(batch) for batch in BucketSampler(trials, 16, 4, seed=0).batches(0)) == [16] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": []}, "the sampler got no trial"),
        ({"batch_size": 0}, "data.batch_size=0 must be at least 1"),
        ({"sessions_per_batch": 0}, "data.sessions_per_batch=0 must be at least 1"),
        ({"rank": 2, "world_size": 2}, r"rank=2 must lie in 0\.\.1"),
    ],
)
def test_impossible_settings_are_named(
    changes: dict[str, object], message: str, make_info: Callable[..., TrialInfo]
) -> None:
    settings_: dict[str, object] = {"trials": [make_info()], "batch_size": 4, "sessions_per_batch": 2, "seed": 0}
    with pytest.raises(ValueError, match=message):
        BucketSampler(**{**settings_, **changes})  # type: ignore[arg-type]
