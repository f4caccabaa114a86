import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mode_ssm.config import AugmentConfig, Smoothing
from mode_ssm.data.augmentation import BatchAugmentation
from mode_ssm.data.batch import Batch, Trial, TrialInfo, collate
from mode_ssm.tasks.augmented_loader import AugmentedLoader

STEPS = 5


def recorded(step: int) -> Batch:
    info = TrialInfo(
        session="a",
        split="train",
        block=1,
        trial=step,
        path="",
        key=f"trial_{step:04d}",
        num_bins=40,
        num_phonemes=2,
        sentence="",
    )
    features = np.random.default_rng(step).standard_normal((40, 4)).astype(np.float32)
    return collate([Trial(info=info, features=features, phonemes=np.array([1, 2]))], {"a": 0})


class Recorded:
    """Batches of recordings; counts those that were asked for, fails at one if told to."""

    steps_per_epoch = STEPS

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at, self.asked, self.closed = fails_at, 0, False

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        try:
            for step in range(start_batch, STEPS):
                if step == self.fails_at:
                    raise OSError("cannot read")
                self.asked += 1
                yield recorded(step)
        finally:
            self.closed = True


@pytest.fixture
def augmentation() -> BatchAugmentation:
    augment = AugmentConfig(white_noise_std=1.0, random_cut_bins=3, time_masks=2)
    return BatchAugmentation(augment, Smoothing.symmetric, 2.0, seed=1)


def test_an_epoch_is_the_augmented_batches_in_order(augmentation: BatchAugmentation) -> None:
    loader = AugmentedLoader(Recorded(), augmentation)
    assert loader.steps_per_epoch == STEPS
    batches = list(loader.epoch(2))
    assert len(batches) == STEPS
    for step, batch in enumerate(batches):
        assert torch.equal(batch.features, augmentation(recorded(step), 2).features)


def test_resuming_inside_an_epoch_gives_what_would_have_followed(augmentation: BatchAugmentation) -> None:
    whole = list(AugmentedLoader(Recorded(), augmentation).epoch(1))
    for start in range(STEPS + 1):
        rest = list(AugmentedLoader(Recorded(), augmentation).epoch(1, start))
        assert [torch.equal(a.features, b.features) for a, b in zip(rest, whole[start:], strict=True)] == [True] * len(
            rest
        )


def test_no_more_than_one_batch_is_augmented_ahead(augmentation: BatchAugmentation) -> None:
    source = Recorded()
    batches = AugmentedLoader(source, augmentation).epoch(0)
    for taken in range(1, STEPS):
        next(batches)
        assert source.asked == taken + 1


def test_an_error_while_reading_reaches_the_consumer(augmentation: BatchAugmentation) -> None:
    with pytest.raises(OSError, match="cannot read"):
        list(AugmentedLoader(Recorded(fails_at=3), augmentation).epoch(0))


def test_an_error_while_augmenting_reaches_the_consumer() -> None:
    def fail(batch: Batch, epoch: int) -> Batch:
        raise ArithmeticError("cannot augment")

    with pytest.raises(ArithmeticError, match="cannot augment"):
        list(AugmentedLoader(Recorded(), fail).epoch(0))  # type: ignore[arg-type]


def test_stopping_early_ends_the_thread_and_the_reading(augmentation: BatchAugmentation) -> None:
    source, before = Recorded(), threading.active_count()
    batches = AugmentedLoader(source, augmentation).epoch(0)
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    del batches
    assert source.closed
