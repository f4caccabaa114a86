"""The way the benchmark's own training loads and augments, for benchmarks/loading.py.

With a checkout of the official repository its own code runs; without, a plain restatement of what that code does.
"""

import math
import subprocess
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

BATCH, SESSIONS = 64, 4
NOISE, OFFSET, CUT, KERNEL, STD = 1.0, 0.2, 3, 100, 2.0


def official_batches(
    root: Path, batches: int, workers: int, augmented: bool, checkout: Path | None
) -> Iterator[dict[str, Any]]:
    """`batches` training batches; `augmented` adds noise, offset, cut and smoothing in the consumer, as it does."""
    paths = sorted(str(path) for path in root.glob("*/data_train.hdf5"))
    days = min(SESSIONS, len(paths))
    dataset: Dataset[dict[str, Any]]
    if checkout is not None:
        source = _module(checkout, "dataset")
        indices, _ = source.train_test_split_indicies(paths, test_percentage=0, seed=1)
        dataset = source.BrainToTextDataset(
            indices, batches, split="train", batch_size=BATCH, days_per_batch=days, random_seed=1
        )
        smooth = _module(checkout, "data_augmentations").gauss_smooth
    else:
        dataset, smooth = _Restated(paths, batches, days), _smooth
    for batch in DataLoader(dataset, batch_size=None, shuffle=False, num_workers=workers):
        if augmented:
            features = batch["input_features"]
            count, _, channels = features.shape
            features = features + torch.randn(features.shape) * NOISE
            features = features + torch.randn(count, 1, channels) * OFFSET
            cut = int(np.random.randint(0, CUT))
            batch["input_features"] = smooth(features[:, cut:], "cpu", STD, KERNEL)
        yield batch


def _module(checkout: Path, name: str) -> types.ModuleType:
    path = f"HEAD:model_training/{name}.py"
    code = subprocess.run(["git", "-C", str(checkout), "show", path], check=True, capture_output=True, text=True).stdout
    module = types.ModuleType(name)
    exec(compile(code, path, "exec"), module.__dict__)
    return module


class _Restated(Dataset[dict[str, Any]]):
    """An item is a batch: for each of some random days, open its file and read random trials; pad to the longest."""

    def __init__(self, paths: list[str], batches: int, days: int) -> None:
        rng = np.random.default_rng(1)
        sizes = [_length(path) for path in paths]
        each = math.ceil(BATCH / days)
        self.schedule = [
            [(paths[day], rng.integers(sizes[day], size=each)) for day in rng.permutation(len(paths))[:days]]
            for _ in range(batches)
        ]

    def __len__(self) -> int:
        return len(self.schedule)

    def __getitem__(self, index: int) -> dict[str, Any]:
        columns: dict[str, list[Any]] = {}
        for path, trials in self.schedule[index]:
            with h5py.File(path, "r") as file:
                for trial in trials:
                    group = file[f"trial_{trial:04d}"]
                    for name in ("input_features", "seq_class_ids", "transcription"):
                        columns.setdefault(name, []).append(torch.from_numpy(group[name][:]))
                    for name in ("n_time_steps", "seq_len", "block_num", "trial_num"):
                        columns.setdefault(name, []).append(group.attrs[name])
        batch: dict[str, Any] = {}
        for name, values in columns.items():
            tensors = isinstance(values[0], Tensor)
            batch[name] = pad_sequence(values, batch_first=True) if tensors else torch.tensor(np.array(values))
        return batch


def _length(path: str) -> int:
    with h5py.File(path, "r") as file:
        return len(file)


def _smooth(features: Tensor, device: str, std: float, size: int) -> Tensor:
    """A convolution of every channel with a Gaussian of taps above 0.01."""
    impulse = np.zeros(size, np.float32)
    impulse[size // 2] = 1
    kernel = gaussian_filter1d(impulse, std)
    kernel = kernel[kernel > 0.01]
    weight = torch.tensor(kernel / kernel.sum(), device=device).repeat(features.shape[-1], 1, 1)
    smoothed = nn.functional.conv1d(features.transpose(1, 2), weight, padding="same", groups=features.shape[-1])
    return smoothed.transpose(1, 2)
