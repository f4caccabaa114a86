"""Augmentation of whole batches on the device against one trial at a time in NumPy: figures of docs/experiment_log.md.

    OMP_NUM_THREADS=1 uv run python benchmarks/augmentation.py [--device cuda] [--batches 5] [--json FILE]

Batches of 16 trials of 900 bins and 512 features, from recordings in memory to a batch that a model can take, collation
included. `numpy` is the usual way: every trial by itself in the thread that loads it. Seconds are those of the process'
CPU time, which other work on the machine does not stretch; on a GPU those of the clock.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from mode_ssm.config import AugmentConfig, Smoothing
from mode_ssm.data.augmentation import BatchAugmentation
from mode_ssm.data.augmentation_draws import Stream, TrialGenerator, draw_positions, draw_stretches
from mode_ssm.data.batch import Batch, Trial, TrialInfo, collate
from mode_ssm.data.smoothing import smooth
from mode_ssm.train.allocator import keep_freed_memory

TRIALS, BINS, FEATURES = 16, 900, 512
RECIPES = {
    "smoothing alone": AugmentConfig(),
    "GRU's recipe": AugmentConfig(white_noise_std=1.0, constant_offset_std=0.2, random_cut_bins=3),
    "and 20 time masks, warp": AugmentConfig(
        white_noise_std=1.0, constant_offset_std=0.2, random_cut_bins=3, time_masks=20, time_warp=0.1
    ),
}
EVERYTHING = replace(
    RECIPES["and 20 time masks, warp"],
    time_shift_bins=5,
    static_gain=0.1,
    random_walk_std=0.02,
    electrode_dropout=0.1,
    array_dropout=0.1,
    feature_masks=2,
)


def recordings() -> list[Trial]:
    trials = []
    for number in range(TRIALS):
        features = np.random.default_rng(number).standard_normal((BINS, FEATURES), np.float32)
        info = TrialInfo(
            session="t15.2023.08.11",
            split="train",
            block=1,
            trial=number,
            path="",
            key=f"trial_{number:04d}",
            num_bins=BINS,
            num_phonemes=30,
            sentence="",
        )
        trials.append(Trial(info=info, features=features, phonemes=np.arange(1, 31)))
    return trials


def in_numpy(augment: AugmentConfig, trial: Trial, epoch: int) -> np.ndarray:
    """What `RECIPES` hold, one trial at a time."""
    generator, x = TrialGenerator(0, epoch, trial.info.name), trial.features
    positions = draw_positions(augment, generator, len(x), 8 * 30)
    if positions is not None:
        left = np.minimum(positions.astype(np.int64), len(x) - 2)
        warped = x[left + 1]
        warped -= x[left]
        warped *= (positions - left).astype(np.float32)[:, None]
        warped += x[left]
        x = warped
    if augment.white_noise_std:
        noise = generator.stream(Stream.white_noise).standard_normal(x.shape, dtype=np.float32)
        noise *= np.float32(augment.white_noise_std)
        noise += x
        x = noise
    if augment.constant_offset_std:
        offset = generator.stream(Stream.constant_offset).standard_normal(x.shape[1], dtype=np.float32)
        x = x + np.float32(augment.constant_offset_std) * offset
    x = smooth(x, Smoothing.symmetric, 2.0)
    if augment.time_masks:
        rng = generator.stream(Stream.time_masks)
        x[draw_stretches(len(x), augment.time_masks, augment.time_mask_max_fraction, rng)] = 0
    return x


def trials_a_second(make: Callable[[int], Batch], batches: int, device: torch.device) -> float:
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for epoch in range(2):
        make(epoch)
    _wait(device)
    begin = clock()
    for epoch in range(2, 2 + batches):
        make(epoch)
    _wait(device)
    return TRIALS * batches / (clock() - begin)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description="trials a second of augmentation")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    keep_freed_memory()
    device, trials, sessions = torch.device(arguments.device), recordings(), {"t15.2023.08.11": 0}

    def alone(augment: AugmentConfig, epoch: int) -> Batch:
        return collate([replace(t, features=in_numpy(augment, t, epoch)) for t in trials], sessions).to(device)

    figures = []
    for name, augment in (*RECIPES.items(), ("everything there is", EVERYTHING)):
        together = BatchAugmentation(augment, Smoothing.symmetric, 2.0, 0, device)
        batched = trials_a_second(
            lambda epoch, together=together: together(collate(trials, sessions), epoch), arguments.batches, device
        )
        single = None
        if name in RECIPES:
            single = trials_a_second(
                lambda epoch, augment=augment: alone(augment, epoch), arguments.batches, torch.device("cpu")
            )
        figures.append({"augmentation": name, "numpy": single, "batched": batched})
    table = Table("augmentation", "numpy", "batched", "ratio", title=f"trials a second, {arguments.device}")
    for row in figures:
        single, batched = row["numpy"], row["batched"]
        ratio = f"{batched / single:.1f}" if single else ""
        table.add_row(row["augmentation"], f"{single:.0f}" if single else "", f"{batched:.0f}", ratio)
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
