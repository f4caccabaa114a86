"""The same function on many files, in several processes, with a progress bar."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

Result = TypeVar("Result")


class Workers:
    """A context: `processes` workers, started when they are first needed; 1 works in this process."""

    def __init__(self, processes: int, *, progress: bool) -> None:
        if processes < 1:
            raise ValueError(f"processes={processes} must be at least 1")
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not progress)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._bar.stop()

    def map(
        self, description: str, function: Callable[..., Result], calls: Iterable[tuple[Any, ...]], sizes: Sequence[int]
    ) -> list[Result]:
        """Results of function(*call), in order. sizes: bytes of each call, for the bar. The first error is raised."""
        calls = list(calls)
        task = self._bar.add_task(description, total=sum(sizes))
        if self.processes == 1 or len(calls) < 2:
            results = []
            for call, size in zip(calls, sizes, strict=True):
                results.append(_on_one_thread(function, *call))
                self._bar.advance(task, size)
            return results
        if self._pool is None:
            # Spawned: a fork would copy the locks of whatever threads run here.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.processes, context, end_with_parent)
        futures = {
            self._pool.submit(_on_one_thread, function, *call): size for call, size in zip(calls, sizes, strict=True)
        }
        for future in as_completed(futures):
            future.result()
            self._bar.advance(task, futures[future])
        return [future.result() for future in futures]


def _on_one_thread(function: Callable[..., Result], *call: Any) -> Result:
    """Sums on one thread: their order, and with it the last bits, must not depend on the number of processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(*call)
    finally:
        torch.set_num_threads(threads)


def end_with_parent() -> None:
    """A worker whose parent was killed ends too, before it can get in the way of the next run."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
