"""Trials and batches: what travels from files to models.

Shapes: B trials, T bins (20 ms), C features, U phonemes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialInfo:
    """Who a trial is; everything about it but its arrays."""

    session: str
    split: str
    block: int
    trial: int
    path: str  # file
    key: str  # HDF5 group
    num_bins: int
    num_phonemes: int | None  # None where the file withholds labels
    sentence: str | None

    @property
    def name(self) -> str:
        return f"{self.session}/{self.split}/{self.key}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One recording. features (T, C) float32; phonemes (U,) int64 or None."""

    info: TrialInfo
    features: np.ndarray
    phonemes: np.ndarray | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """features (B, T, C) float32, zero beyond feature_lengths (B,) int64; targets (B, U) int64, zero beyond
    target_lengths (B,) int64; session_ids (B,) int64, -1 for a session the model never saw. Without labels, targets is
    (B, 0) and target_lengths zero.
    """

    features: Tensor
    feature_lengths: Tensor
    targets: Tensor
    target_lengths: Tensor
    session_ids: Tensor
    trials: tuple[TrialInfo, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.feature_lengths)

    def to(self, device: torch.device | str) -> "Batch":
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("features", "feature_lengths", "targets", "target_lengths", "session_ids")
        }
        return replace(self, **moved)


def collate(trials: Sequence[Trial], session_index: dict[str, int], memory: Tensor | None = None) -> Batch:
    """Pad trials to the longest. `session_index` maps a session's name to its row in the model's adapter.

    memory (B, T, C) float32 becomes the batch's features where it is long enough; features that lie in their row of
    it already stay there.
    """
    if not trials:
        raise ValueError("cannot collate an empty list of trials")
    feature_lengths = torch.tensor([len(t.features) for t in trials])
    targets = [t.phonemes if t.phonemes is not None else np.zeros(0, np.int64) for t in trials]
    target_lengths = torch.tensor([len(t) for t in targets])
    longest = int(feature_lengths.max())
    if memory is None or memory.shape[1] < longest:
        memory = torch.empty(len(trials), longest, trials[0].features.shape[1])
    features = memory[:, :longest]
    padded_targets = torch.zeros(len(trials), int(target_lengths.max()), dtype=torch.int64)
    for row, (trial, target) in enumerate(zip(trials, targets, strict=True)):
        bins = features[row].numpy()
        if bins.ctypes.data != trial.features.ctypes.data:
            bins[: len(trial.features)] = trial.features
        bins[len(trial.features) :] = 0.0
        padded_targets[row, : len(target)] = torch.from_numpy(np.ascontiguousarray(target))
    return Batch(
        features=features,
        feature_lengths=feature_lengths,
        targets=padded_targets,
        target_lengths=target_lengths,
        session_ids=torch.tensor([session_index.get(t.info.session, -1) for t in trials]),
        trials=tuple(t.info for t in trials),
    )
