"""Augmentation and smoothing of a whole batch, on the device that holds it.

Small random numbers come from `augmentation_draws`; noise of the size of the recording is drawn on the device, by a
generator that starts anew for every trial. A trial therefore looks the same in any batch, on any rank and after any
interruption: to the bit on one kind of device. Another kind draws other noise of the same spread.

Shapes: B trials, T bins of the recordings, T' of the augmented trials, C features.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mode_ssm.config import AugmentConfig, Smoothing
from mode_ssm.data.augmentation_draws import TrialDraws, TrialGenerator, draw_trial
from mode_ssm.data.batch import Batch
from mode_ssm.data.smoothing import gaussian_kernel, smooth_batch
from mode_ssm.ops.lengths import length_mask


class BatchAugmentation:
    """Cut, shift, warp, gain, offset, noise, walk, smoothing, masks, in this order: what is added to a recording is
    smoothed as it is, what is zero stays exactly zero."""

    def __init__(
        self, augment: AugmentConfig, smoothing: Smoothing, std: float, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        gaussian_kernel(std, smoothing)
        self.augment, self.smoothing, self.std, self.seed = augment, smoothing, std, seed
        self.device = torch.device(device)

    def __call__(self, batch: Batch, epoch: int) -> Batch:
        """The batch of recorded features (B, T, C) on the CPU as epoch `epoch` shows it, on the device; lengths change
        with cut, shift and warp."""
        num_features = batch.features.shape[-1]
        draws = [
            draw_trial(self.augment, TrialGenerator(self.seed, epoch, info.name), bins, labels, num_features)
            for info, bins, labels in zip(
                batch.trials, batch.feature_lengths.tolist(), batch.target_lengths.tolist(), strict=True
            )
        ]
        moved = replace(batch.to(self.device), feature_lengths=self._tensor([d.num_bins for d in draws]))
        # A CPU is fastest with one trial at a time, which its cache holds, a GPU with all at once.
        together = 1 if self.device.type == "cpu" else len(draws)
        augmented = moved.features.new_empty(len(draws), max(d.num_bins for d in draws), num_features)
        for first in range(0, len(draws), together):
            rows = slice(first, first + together)
            recorded = moved.features[rows, : int(batch.feature_lengths[rows].max())]
            features = self._features(recorded, moved.feature_lengths[rows], draws[rows])
            augmented[rows, : features.shape[1]] = features
            augmented[rows, features.shape[1] :] = 0
        return replace(moved, features=augmented)

    def _features(self, x: Tensor, lengths: Tensor, draws: Sequence[TrialDraws]) -> Tensor:
        """Recorded (B, T, C) -> augmented (B, T', C)."""
        if any(d.positions is not None for d in draws):
            x = self._resample(x, draws)
        inside = length_mask(lengths, x.shape[1]).to(x.dtype).unsqueeze(-1)
        if self.augment.static_gain:
            x = x * self._by_feature([d.gain for d in draws])
        if self.augment.constant_offset_std:
            x = x + self._by_feature([d.offset for d in draws])
        if self.augment.white_noise_std:
            x = self._noise(x, draws, [d.noise_seed for d in draws], self.augment.white_noise_std).add_(x)
        if self.augment.random_walk_std:
            steps = self._noise(x, draws, [d.walk_seed for d in draws], self.augment.random_walk_std)
            x = steps.cumsum(1).add_(x)
        x = smooth_batch(x * inside, self.smoothing, self.std)
        if self.augment.time_masks:
            inside = inside * self._kept_bins([d.masked for d in draws], x.shape[1])
        x = x * inside
        if draws[0].silent is not None:
            x.mul_(self._by_feature([d.silent for d in draws]).logical_not())
        return x

    def _resample(self, x: Tensor, draws: Sequence[TrialDraws]) -> Tensor:
        """Bins at `TrialDraws.positions`, interpolated linearly; before a recording the signal is zero."""
        longest = max(d.num_bins for d in draws)
        first = np.zeros((len(draws), longest), np.int64)  # bin at or before the position
        weights = np.zeros((2, len(draws), longest), np.float32)  # of that bin and the next
        for row, draw in enumerate(draws):
            positions = np.arange(draw.num_bins, dtype=np.float64) if draw.positions is None else draw.positions
            floor = np.floor(positions)
            first[row, : draw.num_bins] = floor
            weights[1, row, : draw.num_bins] = np.where(floor >= -1, positions - floor, 0)
            weights[0, row, : draw.num_bins] = np.where(floor >= 0, 1 - (positions - floor), 0)
        base = np.arange(len(draws))[:, None] * x.shape[1]
        rows, last = x.reshape(-1, x.shape[-1]), x.shape[1] - 1
        total = self._gather(rows, base + first.clip(0, last), weights[0])
        if weights[1].any():
            total += self._gather(rows, base + (first + 1).clip(0, last), weights[1])
        return total

    def _gather(self, rows: Tensor, indices: np.ndarray, weights: np.ndarray) -> Tensor:
        gathered = rows.index_select(0, self._tensor(indices.reshape(-1))).view(*indices.shape, -1)
        return gathered.mul_(self._tensor(weights).unsqueeze(-1))

    def _noise(self, x: Tensor, draws: Sequence[TrialDraws], seeds: Sequence[int | None], std: float) -> Tensor:
        """Like x (B, T', C): independent normals of `std` inside of each trial, zero beyond."""
        noise, generator = torch.empty_like(x), torch.Generator(self.device)
        for row, draw, seed in zip(noise, draws, seeds, strict=True):
            assert seed is not None
            row[: draw.num_bins].normal_(0, std, generator=generator.manual_seed(seed))
            row[draw.num_bins :].zero_()
        return noise

    def _by_feature(self, values: Sequence[np.ndarray | None]) -> Tensor:
        """(B, 1, C)."""
        return self._tensor(np.stack([value for value in values if value is not None])).unsqueeze(1)

    def _kept_bins(self, values: Sequence[np.ndarray | None], bins: int) -> Tensor:
        """Masks of bins as factors (B, T', 1): 0 where they are true."""
        kept = np.ones((len(values), bins), np.float32)
        for row, value in zip(kept, values, strict=True):
            if value is not None:
                row[: len(value)][value] = 0
        return self._tensor(kept).unsqueeze(-1)

    def _tensor(self, values: np.ndarray | Sequence[int]) -> Tensor:
        return torch.as_tensor(values).to(self.device, non_blocking=True)
