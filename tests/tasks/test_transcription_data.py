"""Normalisation as a dataset applies it: to batches, to statistics, and where training data lack."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mode_ssm.config import AugmentConfig, DataConfig, Normalisation, Smoothing
from mode_ssm.data.brain2text import load_features
from mode_ssm.data.rolling_normaliser import RollingNormaliser
from mode_ssm.data.statistics import FeatureStatistics, merge
from mode_ssm.data.t15_format import RecordedTrial, session_file, write_session_file
from mode_ssm.tasks.transcription_data import TranscriptionData

SESSIONS = ("t15.2023.08.11", "t15.2023.08.13")
C = 4


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """Two sessions of two training blocks and one of validation; means and spreads differ by session, and drift."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for s, session in enumerate(SESSIONS):
        for split, blocks in (("train", (1, 2)), ("val", (3,))):
            rng = np.random.default_rng((s, len(split)))
            trials = [
                RecordedTrial(
                    session=session,
                    block=block,
                    trial=number,
                    features=(rng.standard_normal((60 + 5 * number, C)) * (2 + s) + s + number).astype(np.float32),
                    phonemes=np.append(rng.integers(1, 40, size=2), 40),
                    sentence=f"{split} {'ab' * block} {'cd' * number}",
                )
                for block in blocks
                for number in range(4)
            ]
            write_session_file(session_file(tmp_path / "data", session, split), trials, with_labels=True)
    return DataConfig(
        root=str(tmp_path / "data"), feature_dim=C, batch_size=4, smoothing=Smoothing.none, rolling_seconds=2.0
    )


def opened(config: DataConfig, normalisation: Normalisation, **changes: object) -> TranscriptionData:
    changed = replace(config, normalisation=normalisation, **changes)  # type: ignore[arg-type]
    return TranscriptionData.open(changed, seed=0, progress=False)


def evaluated(data: TranscriptionData, split: str) -> dict[str, np.ndarray]:
    return {
        info.name: batch.features[row, : info.num_bins].numpy()
        for batch in data.batches(data.trials(split))
        for row, info in enumerate(batch.trials)
    }


def test_released_features_are_those_of_the_files(config: DataConfig) -> None:
    data = opened(config, Normalisation.released)
    for info in data.trials("val"):
        np.testing.assert_array_equal(evaluated(data, "val")[info.name], load_features(info))


def test_session_statistics_make_training_sessions_alike(config: DataConfig) -> None:
    data = opened(config, Normalisation.session)
    for session in SESSIONS:
        bins = np.concatenate([x for name, x in evaluated(data, "train").items() if name.startswith(session)])
        np.testing.assert_allclose(bins.mean(0), 0.0, atol=1e-5)
        np.testing.assert_allclose(bins.std(0), 1.0, atol=1e-5)


@pytest.mark.parametrize("cached", [False, True])
def test_rolling_features_are_those_of_a_live_session(config: DataConfig, cached: bool) -> None:
    data = opened(config, Normalisation.rolling, cache_features=cached)
    training = merge(FeatureStatistics.of(load_features(info)) for info in data.trials("train"))
    found = evaluated(data, "val")
    for session in SESSIONS:
        live = RollingNormaliser(training.mean, training.std, window_bins=100)
        for info in (info for info in data.trials("val") if info.session == session):
            np.testing.assert_allclose(found[info.name], live.step(load_features(info)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalisation", list(Normalisation))
def test_statistics_are_those_of_what_the_model_sees(config: DataConfig, normalisation: Normalisation) -> None:
    data = opened(config, normalisation)
    tolerance = 0.5 if normalisation is Normalisation.rolling else 1e-4  # rolling ones are 0 and 1 by intention
    for split in ("train", "val"):
        seen = evaluated(data, split)
        for session in SESSIONS:
            expected = FeatureStatistics.of(np.concatenate([x for name, x in seen.items() if name.startswith(session)]))
            found = data.session_statistics(split, session)
            np.testing.assert_allclose(found.mean, expected.mean, atol=tolerance)
            np.testing.assert_allclose(found.std, expected.std, atol=tolerance)


@pytest.mark.parametrize("normalisation", list(Normalisation))
def test_training_and_evaluation_see_the_same_without_augmentation(
    config: DataConfig, normalisation: Normalisation
) -> None:
    data = opened(config, normalisation, smoothing=Smoothing.causal, augment=AugmentConfig())
    seen = evaluated(data, "train")
    for batch in data.train_loader(0, 1).epoch(0):
        for row, info in enumerate(batch.trials):
            found = batch.features[row, : info.num_bins].numpy()
            np.testing.assert_allclose(found, seen[info.name], atol=1e-5)


def test_training_batches_are_the_same_on_any_number_of_ranks_and_workers(config: DataConfig) -> None:
    augment = AugmentConfig(white_noise_std=1.0, time_warp=0.2, time_shift_bins=5, time_masks=2)

    def shown(world_size: int, **changes: object) -> dict[str, torch.Tensor]:
        data = opened(config, Normalisation.rolling, augment=augment, **changes)
        return {
            info.name: batch.features[row, : batch.feature_lengths[row]]
            for rank in range(world_size)
            for batch in data.train_loader(rank, world_size).epoch(3)
            for row, info in enumerate(batch.trials)
        }

    alone = shown(1)
    for others in (shown(2), shown(1, num_workers=2), shown(1, batch_size=7, sessions_per_batch=2)):
        assert others.keys() == alone.keys()
        assert all(torch.equal(alone[name], others[name]) for name in alone)


@pytest.mark.parametrize("normalisation", [Normalisation.session, Normalisation.rolling])
def test_where_training_data_lack_it_says_so(config: DataConfig, normalisation: Normalisation) -> None:
    session_file(config.root, SESSIONS[1], "train").unlink()
    with pytest.raises(
        ValueError, match=rf"data.normalisation={normalisation.value} .*no training split of {SESSIONS[1]}"
    ):
        TranscriptionData.open(replace(config, normalisation=normalisation), 0, SESSIONS, progress=False)
    TranscriptionData.open(config, 0, SESSIONS, progress=False)


def test_a_session_that_was_not_trained_on_is_normalised_by_all(config: DataConfig) -> None:
    data = opened(config, Normalisation.session, train_sessions=[SESSIONS[0]])
    known = FeatureStatistics.of(np.concatenate([load_features(info) for info in data.trials("train")]))
    for info in (info for info in data.trials("val") if info.session == SESSIONS[1]):
        expected = (load_features(info) - known.mean) / known.std
        np.testing.assert_allclose(evaluated(data, "val")[info.name], expected, atol=1e-4)
