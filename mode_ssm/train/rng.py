"""The random number generators of a process as one object of plain values and tensors."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch


def seed_everything(seed: int, rank: int | None = None) -> None:
    """Seed torch, numpy and python. Without a rank every process gets the same stream, with one each its own."""
    entropy = [seed] if rank is None else [seed, rank]
    torch_seed, numpy_seed, python_seed = np.random.SeedSequence(entropy).generate_state(3).tolist()
    torch.manual_seed(torch_seed)
    np.random.seed(numpy_seed)
    random.seed(python_seed)


def rng_state(device: torch.device) -> dict[str, Any]:
    """State of the CPU generator, the device's, numpy's and python's; loadable with `weights_only=True`."""
    name, keys, position, has_gauss, cached = cast(tuple[str, np.ndarray, int, int, float], np.random.get_state())
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "python": [version, list(internal), gauss],
    }


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


@contextmanager
def preserved_rng(device: torch.device) -> Iterator[None]:
    """What runs inside draws no number from the run's streams: evaluation, building a phase, loading data."""
    state = rng_state(device)
    try:
        yield
    finally:
        set_rng_state(state, device)
