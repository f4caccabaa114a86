"""The processes of a run: who am I, which device is mine, how do we agree.

Control messages (counts, flags, objects) go over gloo on the CPU, also where gradients go over NCCL: a rank that waits
there for others' share of an evaluation neither spins the GPU nor trips NCCL's watchdog.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mode_ssm.config import ParallelConfig
from mode_ssm.ops import backends
from mode_ssm.ops.matmul_precision import choose_matmul_precision
from mode_ssm.train.allocator import keep_freed_memory

# Ranks wait this long for each other; decoding takes minutes to hours, and one of them may have more of it.
TIMEOUT = timedelta(hours=12)

T = TypeVar("T")


class RankError(RuntimeError):
    """Another rank failed, and says why; raised on those that wait for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Distributed:
    """One process of `world_size`. With one process every method is local and nothing is initialised."""

    rank: int
    world_size: int
    device: torch.device
    local_world_size: int = 1  # processes on this machine

    @property
    def cores(self) -> int:
        """CPU cores that are this process's: those of the machine, divided by its processes."""
        return core_share(self.local_world_size)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        self.all_reduce_sum([0.0])

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over ranks in float64; the same list on every rank."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def broadcast_object(self, value: T) -> T:
        """Rank 0's `value`, on every rank."""
        return self.gather_objects(value)[0] if self.world_size > 1 else value

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's `value` in the order of ranks, on every rank."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def together(self, function: Callable[[], T]) -> T:
        """Run `function` on every rank; its own result on each.

        If it raises anywhere, every rank raises: the first that failed the error itself, the others a `RankError`; none
        waits for ever.
        """
        if self.world_size == 1:
            return function()
        result: T | None = None
        error: Exception | None = None
        try:
            result = function()
        except Exception as caught:
            error = caught
        failures = self.gather_objects(str(error) if error else None)
        for rank, failure in enumerate(failures):
            if failure is None:
                continue
            if error is not None and rank == self.rank:
                raise error
            raise RankError(f"rank {rank} stopped: {failure}")
        return result  # type: ignore[return-value]

    def on_main(self, function: Callable[[], T]) -> T:
        """Run `function` on rank 0 while the others wait; its result on every rank. Errors as of `together`."""
        return self.broadcast_object(self.together(lambda: function() if self.is_main else None))  # type: ignore[return-value]

    def exit(self, code: int = 0) -> None:
        """End a process of several, after `close`; nothing where there is one.

        gloo's threads (torch 2.11) can outlive the process group: about one run in eight aborted in C++ destructors
        after everything was written. Leaving without the destructors cannot.
        """
        if self.world_size > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


def available_cores() -> int:
    """Cores that this process may use (a container's share, not the machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def core_share(local_world_size: int) -> int:
    """Cores of one of `local_world_size` processes on this machine, at least 1."""
    return max(1, available_cores() // local_world_size)


def choose_device(name: str, local_rank: int, local_world_size: int) -> torch.device:
    """`auto`, `cpu` or `cuda` to a device; a one-line `ValueError` for anything that is not there."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"parallel.device={name} is unknown; choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("parallel.device=cuda, but torch sees no GPU here; use parallel.device=auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_world_size > torch.cuda.device_count():
        raise ValueError(
            f"{local_world_size} processes on this machine, but {torch.cuda.device_count()} GPU(s); "
            f"use torchrun --nproc_per_node={torch.cuda.device_count()} or parallel.device=cpu"
        )
    return torch.device("cuda", local_rank)


def init_distributed(parallel: ParallelConfig, *, announce: bool = False) -> Distributed:
    """Join the run that torchrun's environment describes; a single process without one.

    Sets the device, CPU threads, kernels and the precision of matrix products; with `announce`, rank 0 says which
    kernels were chosen. Raises `ValueError` for what cannot be had here.
    """
    rank = int(os.environ.get("RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    device = choose_device(parallel.device, local_rank, local_world_size)
    if parallel.threads < 0:
        raise ValueError(f"parallel.threads={parallel.threads} must be positive, or 0 for cores divided by processes")
    torch.set_flush_denormal(True)  # decayed states fall into the denormals, where a CPU is many times slower
    torch.set_num_threads(parallel.threads or core_share(local_world_size))
    keep_freed_memory()
    backends.request(parallel.backend)
    choose_matmul_precision(parallel.matmul_precision.value, device.type)
    if announce and rank == 0:
        print(f"kernels on {device}: {backends.describe(device.type)}", flush=True)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size > 1:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=TIMEOUT)
    if rank > 0:
        logging.getLogger("mode_ssm").setLevel(logging.ERROR)  # warnings are the same on all; rank 0 gives them once
    return Distributed(rank=rank, world_size=world_size, device=device, local_world_size=local_world_size)


@contextmanager
def joined(parallel: ParallelConfig, *, announce: bool = False) -> Iterator[Distributed]:
    """`init_distributed` for the length of a script: processes of several end with it.

    One that stops because another one failed ends in silence with exit code 2, because that other one says why.
    """
    distributed = init_distributed(parallel, announce=announce)
    try:
        yield distributed
    except RankError:
        distributed.exit(2)
    finally:
        distributed.close()
    distributed.exit()
