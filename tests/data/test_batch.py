from collections.abc import Callable

import numpy as np
import pytest
import torch

from mode_ssm.data.batch import Trial, TrialInfo, collate

MakeInfo = Callable[..., TrialInfo]


def trial(info: TrialInfo, bins: int, phonemes: list[int] | None) -> Trial:
    features = np.arange(1, bins * 2 + 1, dtype=np.float32).reshape(bins, 2)
    return Trial(info=info, features=features, phonemes=None if phonemes is None else np.array(phonemes, np.int64))


def test_collate_pads_with_zeros_behind_each_trial(make_info: MakeInfo) -> None:
    trials = [
        trial(make_info(0, session="a"), 2, [5, 6, 40]),
        trial(make_info(1, session="b"), 3, [7]),
        trial(make_info(2, session="new"), 1, [8, 40]),
    ]
    batch = collate(trials, {"a": 0, "b": 1})
    assert len(batch) == 3
    assert batch.features.shape == (3, 3, 2)
    assert batch.features.dtype == torch.float32
    assert batch.features.tolist() == [
        [[1, 2], [3, 4], [0, 0]],
        [[1, 2], [3, 4], [5, 6]],
        [[1, 2], [0, 0], [0, 0]],
    ]
    assert batch.feature_lengths.tolist() == [2, 3, 1]
    assert batch.targets.tolist() == [[5, 6, 40], [7, 0, 0], [8, 40, 0]]
    assert batch.target_lengths.tolist() == [3, 1, 2]
    assert batch.session_ids.tolist() == [0, 1, -1]
    assert batch.trials == tuple(t.info for t in trials)
    for tensor in (batch.feature_lengths, batch.targets, batch.target_lengths, batch.session_ids):
        assert tensor.dtype == torch.int64


def test_without_labels_targets_are_empty(make_info: MakeInfo) -> None:
    batch = collate([trial(make_info(i), 2, None) for i in range(2)], {})
    assert batch.targets.shape == (2, 0)
    assert batch.target_lengths.tolist() == [0, 0]


def test_collated_features_do_not_share_memory_with_the_trials(make_info: MakeInfo) -> None:
    one = trial(make_info(), 3, [1])
    collate([one], {}).features.zero_()
    assert one.features[0, 0] == 1.0


def test_a_batch_moves_with_its_trials(make_info: MakeInfo) -> None:
    batch = collate([trial(make_info(), 3, [1])], {})
    moved = batch.to("meta")
    assert moved.features.device.type == moved.session_ids.device.type == "meta"
    assert moved.trials == batch.trials
    assert batch.features.device.type == "cpu"


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(ValueError, match="empty list of trials"):
        collate([], {})
