import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mode_ssm.config import Smoothing
from mode_ssm.data import brain2text
from mode_ssm.data.batch import Batch, Trial, TrialInfo
from mode_ssm.data.brain2text import Brain2TextDataset, FeatureCache, load_trial
from mode_ssm.data.index import Index, build_index
from mode_ssm.data.loader import PREFETCHED_BATCHES, TrialLoader, eval_batches, shuffled_labels
from mode_ssm.data.sampler import BucketSampler
from mode_ssm.data.transforms import SignalTransform

SESSIONS = {"t15.2023.08.11": 0, "t15.2023.08.13": 1, "t15.2023.08.18": 2}
FIELDS = ("features", "feature_lengths", "targets", "target_lengths", "session_ids")


def by_epoch(trial: Trial, epoch: int) -> np.ndarray:
    """Lengths and values that tell epochs apart."""
    return trial.features[epoch % 3 :] + np.float32(epoch)


@pytest.fixture
def index(tmp_path: Path, write_dataset: Callable[..., Path]) -> Index:
    counts = {
        "t15.2023.08.11": {"train": 13, "val": 7},
        "t15.2023.08.13": {"train": 9, "test": 5},
        "t15.2023.08.18": {"train": 6},
    }
    return build_index(write_dataset(tmp_path / "data", counts), feature_dim=4, progress=False)


@pytest.fixture
def make_loader(index: Index) -> Callable[..., TrialLoader]:
    def make(rank: int = 0, world_size: int = 1, **options: object) -> TrialLoader:
        trials = index.trials["train"]
        sampler = BucketSampler(trials, 4, 2, seed=5, rank=rank, world_size=world_size)
        return TrialLoader(trials, by_epoch, SESSIONS, sampler, **options)  # type: ignore[arg-type]

    return make


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.trials == other.trials
        for name in FIELDS:
            assert torch.equal(getattr(one, name), getattr(other, name))


def prefetch_threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def test_an_epoch_holds_the_transformed_trials_of_the_sampler(
    index: Index, make_loader: Callable[..., TrialLoader]
) -> None:
    loader = make_loader()
    batches = list(loader.epoch(2))
    assert len(batches) == loader.steps_per_epoch
    assert Counter(t.name for b in batches for t in b.trials) == Counter(t.name for t in index.trials["train"])
    for batch in batches:
        for row, info in enumerate(batch.trials):
            raw = load_trial(info)
            expected = by_epoch(raw, 2)
            length = int(batch.feature_lengths[row])
            np.testing.assert_array_equal(batch.features[row, :length].numpy(), expected)
            assert not batch.features[row, length:].any()
            assert raw.phonemes is not None
            assert batch.targets[row, : batch.target_lengths[row]].tolist() == raw.phonemes.tolist()
            assert batch.session_ids[row] == SESSIONS[info.session]


def test_two_epochs_differ_and_each_repeats_exactly(make_loader: Callable[..., TrialLoader]) -> None:
    loader = make_loader()
    first = list(loader.epoch(0))
    second = list(loader.epoch(1))
    assert [b.trials for b in first] != [b.trials for b in second]
    assert_same(first, list(make_loader().epoch(0)))
    assert_same(second, list(loader.epoch(1)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_inside_an_epoch_gives_what_would_have_followed(
    make_loader: Callable[..., TrialLoader], num_workers: int
) -> None:
    whole = list(make_loader().epoch(3))
    loader = make_loader(num_workers=num_workers)
    for start in (1, 4, len(whole)):
        assert_same(list(loader.epoch(3, start)), whole[start:])


@pytest.mark.parametrize("cached", [False, True])
def test_worker_processes_change_nothing(make_loader: Callable[..., TrialLoader], cached: bool) -> None:
    alone = make_loader()
    helped = make_loader(num_workers=2, cache=FeatureCache() if cached else None)
    for epoch in range(2):
        assert_same(list(alone.epoch(epoch)), list(helped.epoch(epoch)))


def test_ranks_share_no_trial(index: Index, make_loader: Callable[..., TrialLoader]) -> None:
    seen = [[t.name for b in make_loader(rank, 2).epoch(0) for t in b.trials] for rank in range(2)]
    assert not set(seen[0]) & set(seen[1])
    assert sorted(seen[0] + seen[1]) == sorted(t.name for t in index.trials["train"])
    assert make_loader(0, 2).steps_per_epoch == make_loader(1, 2).steps_per_epoch


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loading_leaves_the_global_random_state_alone(
    make_loader: Callable[..., TrialLoader], num_workers: int
) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]
    list(make_loader(num_workers=num_workers).epoch(0))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_a_position_outside_the_epoch_is_refused_at_once(make_loader: Callable[..., TrialLoader]) -> None:
    loader = make_loader()
    with pytest.raises(ValueError, match=r"start_batch=99 must lie in 0\.\."):
        loader.epoch(0, 99)


def test_stopping_early_ends_the_background_thread(make_loader: Callable[..., TrialLoader]) -> None:
    before = prefetch_threads()
    batches = make_loader().epoch(0)
    assert isinstance(batches, Iterator)
    next(batches)
    assert prefetch_threads() == before + 1
    batches.close()  # type: ignore[attr-defined]
    assert prefetch_threads() == before
    for _ in make_loader().epoch(0):
        break  # dropped without closing
    assert prefetch_threads() == before


def test_reading_runs_ahead_of_the_consumer_but_not_without_bound(
    index: Index, make_loader: Callable[..., TrialLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    load = brain2text.load_features
    monkeypatch.setattr(
        brain2text, "load_features", lambda info, memory=None: (read.append(info.name), load(info, memory))[1]
    )
    loader = make_loader()
    sizes = [len(batch) for batch in loader.sampler.batches(0)]
    batches = loader.epoch(0)
    next(batches)
    ahead = sum(sizes[: 1 + PREFETCHED_BATCHES])
    deadline = time.monotonic() + 10
    while len(read) < ahead and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert len(read) == ahead < len(index.trials["train"])
    batches.close()  # type: ignore[attr-defined]


class Failing:
    """Breaks on one trial."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, trial: Trial, epoch: int) -> np.ndarray:
        if trial.info.name == self.name:
            raise ArithmeticError(f"cannot transform {self.name}")
        return trial.features


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_while_loading_reaches_the_consumer(index: Index, num_workers: int) -> None:
    trials = index.trials["val"]
    batches = eval_batches(trials, Failing(trials[3].name), SESSIONS, 2, num_workers=num_workers)
    with pytest.raises(ArithmeticError, match=f"cannot transform {trials[3].name}"):
        list(batches)
    assert prefetch_threads() == 0


def test_cached_features_are_read_once_and_stay_raw(
    index: Index, make_loader: Callable[..., TrialLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    load = brain2text.load_features
    monkeypatch.setattr(
        brain2text, "load_features", lambda info, memory=None: (read.append(info.name), load(info, memory))[1]
    )
    cache = FeatureCache()
    loader = make_loader(cache=cache)
    batches = [list(loader.epoch(epoch)) for epoch in range(2)]
    assert sorted(read) == sorted(t.name for t in index.trials["train"])
    assert len(cache) == len(read)
    for info in index.trials["train"]:
        np.testing.assert_array_equal(cache.load(info), load(info))
    assert_same(batches[1], list(make_loader().epoch(1)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_sees_every_trial_once_longest_first(index: Index, num_workers: int) -> None:
    trials = index.trials["val"]
    transform = SignalTransform(Smoothing.causal, 2.0)
    batches = list(eval_batches(trials, transform, SESSIONS, 3, num_workers=num_workers))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    lengths = [int(n) for batch in batches for n in batch.feature_lengths]
    assert lengths == sorted((t.num_bins for t in trials), reverse=True)
    by_name = {t.name: b.features[i, : t.num_bins] for b in batches for i, t in enumerate(b.trials)}
    for info in trials:
        np.testing.assert_array_equal(by_name[info.name].numpy(), transform(load_trial(info)))


def test_evaluation_without_labels_and_with_an_unknown_session(index: Index) -> None:
    (batch,) = eval_batches(index.trials["test"], SignalTransform(Smoothing.none, 2.0), {"t15.2023.08.11": 0}, 8)
    assert batch.targets.shape == (5, 0)
    assert batch.session_ids.tolist() == [-1] * 5


def test_evaluating_nothing_gives_nothing_and_a_batch_size_of_zero_is_refused(index: Index) -> None:
    transform = SignalTransform(Smoothing.none, 2.0)
    assert list(eval_batches([], transform, SESSIONS, 4)) == []
    with pytest.raises(ValueError, match=r"data.eval_batch_size=0 must be at least 1"):
        eval_batches(index.trials["val"], transform, SESSIONS, 0)


def test_a_dataset_is_a_list_of_trials(index: Index) -> None:
    dataset = Brain2TextDataset(index.trials["val"], SignalTransform(Smoothing.none, 2.0))
    assert len(dataset) == 7
    np.testing.assert_array_equal(dataset[2].features, load_trial(index.trials["val"][2]).features)
    assert dataset[2].info == index.trials["val"][2]


def test_shuffled_labels_deal_every_label_to_another_recording(index: Index) -> None:
    trials = index.trials["train"]
    dealt = shuffled_labels(trials, seed=0)
    assert sorted(t.name for t in dealt) == sorted(t.name for t in trials)
    assert all(label.name != trial.name for label, trial in zip(dealt, trials, strict=True))
    assert dealt == shuffled_labels(trials, seed=0)
    assert dealt != shuffled_labels(trials, seed=1)
    # reading order does not matter: it is the recordings that are dealt to
    backwards = shuffled_labels(trials[::-1], seed=0)
    assert backwards[::-1] == dealt


def test_shuffled_labels_avoid_the_same_sentence_and_keep_the_number_of_phonemes(
    make_info: Callable[..., TrialInfo],
) -> None:
    rng = np.random.default_rng(0)
    # a third of the recordings say one of three sentences
    trials = [
        make_info(
            i,
            sentence=f"often {i % 9}" if i % 3 == 0 else f"once {i}",
            num_phonemes=20 if i % 3 == 0 else int(rng.integers(10, 60)),
            num_bins=int(rng.integers(200, 900)),
        )
        for i in range(300)
    ]
    dealt = shuffled_labels(trials, seed=0)
    assert sorted(t.name for t in dealt) == sorted(t.name for t in trials)
    assert all(label.sentence != trial.sentence for label, trial in zip(dealt, trials, strict=True))
    change = [
        abs((label.num_phonemes or 0) - (trial.num_phonemes or 0)) for label, trial in zip(dealt, trials, strict=True)
    ]
    assert np.median(change) <= 10


def test_half_of_the_recordings_may_say_the_same_but_not_more(make_info: Callable[..., TrialInfo]) -> None:
    trials = [make_info(i, sentence="hello" if i < 10 else f"number {i}") for i in range(20)]
    dealt = shuffled_labels(trials, seed=0)
    assert all(label.sentence != trial.sentence for label, trial in zip(dealt, trials, strict=True))
    too_many = [replace(trial, sentence="hello") if i < 11 else trial for i, trial in enumerate(trials)]
    with pytest.raises(ValueError, match=r"too many recordings say 'hello'"):
        shuffled_labels(too_many, seed=0)


def test_labels_that_are_withheld_cannot_be_shuffled(index: Index) -> None:
    with pytest.raises(ValueError, match=r"data.shuffle_labels needs a split with labels"):
        shuffled_labels(index.trials["test"], seed=0)


def test_shuffled_batches_show_the_dealt_labels_on_the_own_features(
    index: Index, make_loader: Callable[..., TrialLoader]
) -> None:
    trials = index.trials["train"]
    source = dict(zip((t.name for t in trials), shuffled_labels(trials, seed=0), strict=True))
    shuffled = list(make_loader(label_sources=shuffled_labels(trials, seed=0)).epoch(0))
    own = list(make_loader().epoch(0))
    for batch, plain in zip(shuffled, own, strict=True):
        for row, (info, plain_info) in enumerate(zip(batch.trials, plain.trials, strict=True)):
            assert info.name == plain_info.name
            label = load_trial(source[info.name])
            assert label.phonemes is not None
            assert batch.targets[row, : batch.target_lengths[row]].tolist() == label.phonemes.tolist()
            assert info.sentence == label.info.sentence != plain_info.sentence
            assert info.num_phonemes == len(label.phonemes)


def test_label_sources_must_match_the_trials(index: Index) -> None:
    trials = index.trials["train"]
    with pytest.raises(ValueError, match="3 label sources for 28 trials"):
        Brain2TextDataset(trials, SignalTransform(Smoothing.none, 2.0), label_sources=trials[:3])
