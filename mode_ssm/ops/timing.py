"""Milliseconds of functions that are compared, each the median of runs in turns with the others.

In turns, because on a machine with other users, or a GPU that changes its clock, what runs later is not treated alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch


def milliseconds(
    functions: Mapping[str, Callable[[], object]],
    device: str = "cpu",
    repeats: int = 7,
    warm_up: int = 1,
    around: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> dict[str, float]:
    """Median time of each function by name, run in turns after `warm_up` rounds that do not count.

    `around(name)` is entered before the clock starts. On a GPU the clock is its own.
    """
    clock = _gpu_time if device == "cuda" else _cpu_time
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(warm_up + repeats):
        for name, function in functions.items():
            with around(name):
                elapsed = clock(function)
            if round_number >= warm_up:
                times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def _cpu_time(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - start)


def _gpu_time(function: Callable[[], object]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)
