"""The Mamba-1 scan against the recurrence in plain torch and against mambapy's parallel scan, one thread.

Shapes: B batch, T frames, D channels, N state width.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from ops_row import Part, Row
from torch import Tensor

from mode_ssm.ops import backends
from mode_ssm.ops.selective_scan import selective_scan
from mode_ssm.ops.timing import milliseconds

FULL, QUICK, QUICK_MEMORY = (8, 500, 1024, 64), (2, 20, 32, 8), (4, 100, 256, 16)  # B, T, D, N
# Buffers of (B, T, D, N) that a peer needs at its peak; it is left out where the machine has not that much memory free.
BUFFERS = {"naive": 7, "mambapy": 14}


def naive(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The recurrence as written in the paper, one frame after the other, differentiated by autograd."""
    state = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    frames = []
    for t in range(u.shape[1]):
        state = torch.exp(dt[:, t, :, None] * A) * state + (dt[:, t] * u[:, t])[..., None] * B[:, t, None]
        frames.append((state * C[:, t, None]).sum(-1) + D * u[:, t])
    return torch.stack(frames, 1)


def mambapy(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """As MambaBlock.selective_scan of mambapy does it."""
    decay = torch.exp(dt.unsqueeze(-1) * A)
    added = dt.unsqueeze(-1) * B.unsqueeze(2) * u.unsqueeze(-1)
    states = import_module("mambapy.pscan").pscan(decay, added)
    y: Tensor = (states @ C.unsqueeze(-1)).squeeze(3) + D * u
    return y


def ours(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    return selective_scan(u, dt, A, B, C, D)[0]


SCANS: dict[str, Callable[..., Tensor]] = {"ours": ours, "naive": naive, "mambapy": mambapy}


def both_ways(name: str, shape: tuple[int, int, int, int]) -> Callable[[], Tensor]:
    """One scan forwards and backwards; returns the output."""
    batch, time, channels, states = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    leaves = [
        normal(batch, time, channels), 0.05 * normal(batch, time, channels).exp(), -normal(channels, states).exp(),
        normal(batch, time, states), normal(batch, time, states), normal(channels),
    ]  # fmt: skip
    leaves = [leaf.requires_grad_() for leaf in leaves]
    weights = normal(batch, time, channels)

    def run() -> Tensor:
        y = SCANS[name](*leaves)
        torch.autograd.grad(y, leaves, weights)
        return y.detach()

    return run


def scan(quick: bool) -> Part:
    torch.set_num_threads(1)
    shape = QUICK if quick else FULL
    found: dict[str, str | None] = {name: _why_not(name, shape) for name in ("naive", "mambapy")}
    runs = {name: both_ways(name, shape) for name in SCANS if found.get(name) is None}
    reference = runs["ours"]()
    times: dict[str, float] = {}
    details = []
    for name, run in runs.items():
        if name == "ours":
            continue
        error = float((run() - reference).abs().max() / reference.abs().max())
        pair = milliseconds({"ours": runs["ours"], name: run}, repeats=3, warm_up=0)
        times[name] = pair[name] / pair["ours"]
        details.append(f"{name} {pair[name]:.1f} ms, ours {pair['ours']:.1f} ms, outputs differ by {error:.0e}")
        gc.collect()
    rows = [Row(f"scan_vs_{name}", times.get(name), "x", found[name] or "") for name in ("naive", "mambapy")]
    rows.append(_memory(QUICK_MEMORY if quick else FULL, found["naive"], runs=1 if quick else 3))
    backend = backends.choose("selective_scan", "cpu", torch.float32)
    batch, time, channels, states = shape
    title = f"selective scan, B={batch} T={time} d_inner={channels} N={states}, both ways, 1 thread, {backend}"
    return Part(title, rows, details)


def _why_not(name: str, shape: tuple[int, int, int, int]) -> str | None:
    if name == "mambapy":
        try:
            import_module("mambapy.pscan")
        except ModuleNotFoundError:
            return "mambapy is not installed (uv sync --group bench)"
    batch, time, channels, states = shape
    need, free = BUFFERS[name] * 4 * batch * time * channels * states, _free_memory()
    return f"needs about {need / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free" if need > free else None


def _free_memory() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * float(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    except (OSError, StopIteration):
        return float("inf")


def _memory(shape: tuple[int, int, int, int], why_not: str | None, runs: int) -> Row:
    """Growth of the process over one pass, in fresh processes: the most of ours over the least of the naive scan's.

    The allocator decides anew in every process what it reuses: the naive scan's peak varied by a factor of 2.5.
    """
    if why_not:
        return Row("scan_memory_vs_naive", None, "x", why_not)
    growth: dict[str, list[float]] = {"ours": [], "naive": []}
    for _ in range(runs):
        for name, found in growth.items():
            command = [sys.executable, __file__, name, *map(str, shape)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            if done.returncode:
                return Row("scan_memory_vs_naive", None, "x", f"{name}: {done.stderr.strip().splitlines()[-1]}")
            found.append(json.loads(done.stdout))
    if None in growth["ours"]:
        return Row("scan_memory_vs_naive", None, "x", "this system does not tell a process's peak memory")
    most, least = max(growth["ours"]), min(growth["naive"])
    note = f"ours at most {most / 2**20:.1f} MiB, naive at least {least / 2**20:.1f} MiB, {runs} runs each"
    return Row("scan_memory_vs_naive", most / least, "x", note)


def _peak_growth(name: str, shape: tuple[int, int, int, int]) -> float | None:
    """Bytes by which the resident memory rose at most while a pass ran; None where Linux's counters are missing."""
    torch.set_num_threads(1)
    both_ways(name, QUICK)()  # compiles, starts the allocator
    run = both_ways(name, shape)
    gc.collect()
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # else a pass that fits into freed memory would seem to need none
    reset.write_text("5")  # the peak starts again at what is resident now
    before = _status("VmHWM")
    run()
    return _status("VmHWM") - before


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    batch, time, channels, states = map(int, sys.argv[2:])
    print(json.dumps(_peak_growth(sys.argv[1], (batch, time, channels, states))))
