import itertools

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from mode_ssm.decode.greedy import collapse, ctc_alignment, greedy_ctc, greedy_ctc_batch


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([], []), ([0, 0], []), ([1, 1, 0, 1, 2, 2, 0], [1, 1, 2]), ([3, 3, 3], [3]), ([0, 40, 5, 40], [40, 5, 40])],
)
def test_collapse_merges_repeats_then_drops_blanks(labels, expected):
    assert collapse(labels) == expected


def test_a_padded_batch_decodes_as_its_utterances_alone():
    log_probs = torch.randn(5, 30, 6, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    lengths = torch.tensor([30, 1, 17, 0, 8])
    batch = greedy_ctc_batch(log_probs, lengths)
    alone = [greedy_ctc(row[:length].numpy()) for row, length in zip(log_probs, lengths.tolist(), strict=True)]
    assert batch == alone
    assert batch[3] == []
    assert len(batch[0]) > 5


def brute_force_alignment(log_probs, targets):
    candidates = itertools.product(range(log_probs.shape[1]), repeat=len(log_probs))
    scored = [(sum(log_probs[t, c] for t, c in enumerate(p)), p) for p in candidates if collapse(p) == targets]
    return max(scored, default=None)


@settings(max_examples=40, deadline=None)
@given(frames=st.integers(1, 6), targets=st.lists(st.integers(1, 2), max_size=4), seed=st.integers(0, 10**6))
def test_alignment_is_the_best_of_all_labellings(frames, targets, seed):
    logits = np.random.default_rng(seed).normal(size=(frames, 3))
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    expected = brute_force_alignment(log_probs, targets)
    if expected is None:
        with pytest.raises(ValueError, match="frames cannot hold"):
            ctc_alignment(log_probs, targets)
        return
    found = ctc_alignment(log_probs, targets)
    assert tuple(found.labels) == expected[1]
    assert found.log_prob == pytest.approx(expected[0], abs=1e-9)
    for label, position in zip(found.labels, found.positions, strict=True):
        assert label == (0 if position < 0 else targets[position])
    assert collapse(found.labels.tolist()) == targets


def test_alignment_equals_torchaudio():
    rng = np.random.default_rng(0)
    log_probs = torch.from_numpy(rng.normal(0, 2, (60, 41))).log_softmax(-1).float()
    targets = [int(label) for label in rng.integers(1, 41, 15)]
    targets[4] = targets[5]
    labels, scores = torchaudio.functional.forced_align(log_probs[None], torch.tensor([targets]))
    found = ctc_alignment(log_probs.numpy(), targets)
    assert found.labels.tolist() == labels[0].tolist()
    assert found.log_prob == pytest.approx(float(scores.sum()), abs=1e-3)


def test_targets_that_are_no_labels_are_named():
    with pytest.raises(ValueError, match=r"labels 1 .. 2, not \[0, 3\]"):
        ctc_alignment(np.zeros((4, 3)), [0, 3])
