"""A batch of augmented recordings against single recordings and numbers worked out by hand."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from mode_ssm.config import AugmentConfig, Smoothing
from mode_ssm.data.augmentation import BatchAugmentation
from mode_ssm.data.augmentation_draws import TrialDraws, TrialGenerator, draw_trial
from mode_ssm.data.batch import Batch, Trial, TrialInfo, collate
from mode_ssm.data.smoothing import gaussian_kernel, smooth

FULL = AugmentConfig(
    random_cut_bins=3,
    time_shift_bins=5,
    time_warp=0.2,
    static_gain=0.1,
    constant_offset_std=0.2,
    white_noise_std=0.5,
    random_walk_std=0.1,
    electrode_dropout=0.1,
    array_dropout=0.3,
    feature_masks=2,
    time_masks=4,
)
SEED, EPOCH = 3, 7


def info(number: int, bins: int) -> TrialInfo:
    return TrialInfo(
        session="t15.2023.08.11",
        split="train",
        block=1,
        trial=number,
        path="",
        key=f"trial_{number:04d}",
        num_bins=bins,
        num_phonemes=3,
        sentence="",
    )


def recordings(lengths: Sequence[int], features: int = 6, value: float | None = None) -> Batch:
    """Trial i is the same in every batch that holds it at place i."""
    trials = []
    for number, bins in enumerate(lengths):
        drawn = np.random.default_rng(number).standard_normal((bins, features)).astype(np.float32)
        raw = drawn if value is None else np.full_like(drawn, value)
        trials.append(Trial(info=info(number, bins), features=raw, phonemes=np.arange(1, 4)))
    return collate(trials, {"t15.2023.08.11": 0})


def take(batch: Batch, row: int) -> Batch:
    bins = int(batch.feature_lengths[row])
    one = slice(row, row + 1)
    return Batch(
        features=batch.features[one, :bins],
        feature_lengths=batch.feature_lengths[one],
        targets=batch.targets[one],
        target_lengths=batch.target_lengths[one],
        session_ids=batch.session_ids[one],
        trials=batch.trials[one],
    )


def augment(config: AugmentConfig, batch: Batch, smoothing: Smoothing = Smoothing.none, epoch: int = EPOCH) -> Batch:
    return BatchAugmentation(config, smoothing, 2.0, SEED)(batch, epoch)


def drawn(config: AugmentConfig, batch: Batch, row: int = 0) -> TrialDraws:
    bins, labels = int(batch.feature_lengths[row]), int(batch.target_lengths[row])
    generator = TrialGenerator(SEED, EPOCH, batch.trials[row].name)
    return draw_trial(config, generator, bins, labels, batch.features.shape[-1])


def assert_same_trial(one: Batch, other: Batch, row_of_one: int, row_of_other: int) -> None:
    bins = int(one.feature_lengths[row_of_one])
    assert bins == int(other.feature_lengths[row_of_other])
    assert torch.equal(one.features[row_of_one, :bins], other.features[row_of_other, :bins])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("smoothing", list(Smoothing))
def test_a_trial_looks_the_same_in_every_batch_to_the_bit(smoothing: Smoothing, threads: int) -> None:
    batch = recordings([131, 60, 97, 200], features=128)
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = augment(FULL, batch, smoothing)
        for row in range(4):
            assert_same_trial(augment(FULL, take(batch, row), smoothing), whole, 0, row)
            assert not whole.features[row, int(whole.feature_lengths[row]) :].any()
    finally:
        torch.set_num_threads(usual)


def test_epochs_differ_and_repeat_and_the_recordings_stay_as_they_were() -> None:
    batch = recordings([80, 90], features=128)
    before = batch.features.clone()
    first, second, again = (augment(FULL, batch, epoch=epoch) for epoch in (0, 1, 0))
    assert torch.equal(first.features, again.features)
    assert first.features.shape != second.features.shape or not torch.equal(first.features, second.features)
    assert torch.equal(batch.features, before)


def test_the_global_random_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    augment(FULL, recordings([80], features=128))
    assert torch.equal(torch.get_rng_state(), state)


def test_without_augmentation_recordings_are_smoothed_and_nothing_else() -> None:
    batch = recordings([30, 50])
    for smoothing in Smoothing:
        found = augment(AugmentConfig(), batch, smoothing)
        assert found.feature_lengths.tolist() == [30, 50]
        for row, bins in enumerate((30, 50)):
            expected = smooth(batch.features[row, :bins].numpy(), smoothing, 2.0)
            np.testing.assert_allclose(found.features[row, :bins].numpy(), expected, atol=2e-6)
        assert not found.features[0, 30:].any()


def test_bins_come_from_where_the_draws_say_by_linear_interpolation() -> None:
    config = AugmentConfig(random_cut_bins=3, time_shift_bins=5, time_warp=0.3)
    batch = recordings([80, 90, 100])
    found = augment(config, batch)
    for row in range(3):
        positions = drawn(config, batch, row).positions
        assert positions is not None
        recorded = batch.features[row, : int(batch.feature_lengths[row])].numpy()
        extended = np.concatenate([np.zeros((10, 6)), recorded])  # before the recording there is nothing
        for feature in range(6):
            expected = np.interp(positions, np.arange(-10, len(recorded)), extended[:, feature])
            np.testing.assert_allclose(found.features[row, : len(positions), feature], expected, atol=1e-5)


def test_a_later_trial_begins_with_zeros_and_an_earlier_one_lacks_its_first_bins() -> None:
    config = AugmentConfig(time_shift_bins=5)
    batch = recordings([40] * 30)
    found = augment(config, batch)
    later = found.feature_lengths - 40
    assert later.min() < 0 < later.max()
    for row, shift in enumerate(later.tolist()):
        assert not found.features[row, : max(shift, 0)].any()
        expected = batch.features[row, max(-shift, 0) :]
        assert torch.equal(found.features[row, max(shift, 0) : 40 + shift], expected)


def test_gain_and_offset_are_those_of_the_draws_in_every_bin() -> None:
    config = AugmentConfig(static_gain=0.1, constant_offset_std=0.2)
    batch = recordings([25])
    draws = drawn(config, batch)
    expected = batch.features[0].numpy() * draws.gain + draws.offset
    np.testing.assert_allclose(augment(config, batch).features[0].numpy(), expected, atol=1e-6)


def test_white_noise_has_its_spread_and_is_independent_over_bins_and_features() -> None:
    noise = augment(AugmentConfig(white_noise_std=0.5), recordings([8000], value=2.0)).features[0].numpy() - 2.0
    assert noise.std() == pytest.approx(0.5, rel=0.02)
    assert abs(noise.mean()) < 0.02
    assert np.mean(np.abs(noise) < 0.5) == pytest.approx(0.6827, abs=0.01)  # of a normal within one deviation
    assert np.abs(np.corrcoef(noise.T) - np.eye(6)).max() < 0.06
    assert abs(np.corrcoef(noise[1:, 0], noise[:-1, 0])[0, 1]) < 0.06


def test_noise_of_two_trials_is_not_the_same() -> None:
    noise = augment(AugmentConfig(white_noise_std=1.0), recordings([500, 500], value=0.0)).features.flatten(1)
    assert abs(float(torch.corrcoef(noise)[0, 1])) < 0.06


def test_a_random_walk_is_made_of_independent_steps_and_spreads_as_the_root_of_time() -> None:
    walk = augment(AugmentConfig(random_walk_std=0.1), recordings([400], features=2000, value=0.0)).features[0].numpy()
    steps = np.diff(walk, axis=0)
    assert steps.std() == pytest.approx(0.1, rel=0.01)
    assert walk[99].std() == pytest.approx(0.1 * 10, rel=0.06)
    assert walk[399].std() == pytest.approx(0.1 * 20, rel=0.06)
    assert abs(np.corrcoef(steps[1:].ravel(), steps[:-1].ravel())[0, 1]) < 0.01


def test_masks_and_silent_features_are_exactly_zero_and_nothing_else_changes() -> None:
    config = AugmentConfig(time_masks=8, time_mask_max_fraction=0.1, electrode_dropout=0.1, feature_masks=1)
    batch = recordings([120, 90], features=128)
    found, plain = augment(config, batch, Smoothing.symmetric), augment(AugmentConfig(), batch, Smoothing.symmetric)
    for row, bins in enumerate((120, 90)):
        draws = drawn(config, batch, row)
        assert draws.masked is not None
        assert draws.silent is not None
        zero = torch.from_numpy(draws.masked[:, None] | draws.silent)
        assert zero.any()
        assert not found.features[row, :bins][zero].any()
        assert torch.equal(found.features[row, :bins][~zero], plain.features[row, :bins][~zero])


def test_noise_is_smoothed_and_masks_are_not() -> None:
    config = AugmentConfig(white_noise_std=1.0, time_masks=8, time_mask_max_fraction=0.1)
    batch = recordings([2000], value=0.0)
    found = augment(config, batch, Smoothing.symmetric).features[0].numpy()
    masked = drawn(config, batch).masked
    assert not found[masked].any()
    kernel = gaussian_kernel(2.0, Smoothing.symmetric)
    assert found[~masked].std() == pytest.approx(np.sqrt((kernel**2).sum()), rel=0.05)


def test_labels_keep_enough_bins() -> None:
    config = AugmentConfig(random_cut_bins=30, time_shift_bins=30, time_warp=0.4)
    lengths = augment(config, recordings([30] * 20)).feature_lengths
    assert int(lengths.min()) >= 24  # 8 for each of 3 phonemes


@pytest.mark.gpu
def test_a_gpu_gives_the_same_trial_in_every_batch_and_the_same_as_a_cpu_but_for_noise() -> None:
    batch = recordings([131, 60, 97, 200], features=128)
    on_gpu = BatchAugmentation(FULL, Smoothing.symmetric, 2.0, SEED, "cuda")
    whole = on_gpu(batch, EPOCH)
    for row in range(4):
        assert_same_trial(on_gpu(take(batch, row), EPOCH), whole, 0, row)
    quiet = replace(FULL, white_noise_std=0.0, random_walk_std=0.0)
    found = BatchAugmentation(quiet, Smoothing.symmetric, 2.0, SEED, "cuda")(batch, EPOCH)
    expected = augment(quiet, batch, Smoothing.symmetric)
    torch.testing.assert_close(found.features.cpu(), expected.features, atol=1e-5, rtol=0)
