"""Worker processes that all see one object, its arrays once in memory."""

import mmap
import multiprocessing
import os
import pickle
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_ALIGNMENT = 64  # bytes
_shared: Any  # of a worker process


@contextmanager
def worker_pool(shared: object, processes: int) -> Iterator[ProcessPoolExecutor]:
    """Processes whose functions find `shared` by `shared_object`.

    They are spawned, not forked, because threads of the caller (torch, progress bars) do not survive a fork; each costs
    a second or more to start and runs one thread. The arrays of `shared` lie in a temporary file that all of them map.
    Scripts that ask for workers need the usual `if __name__ == "__main__"`.
    """
    threads = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))  # read by a worker as it starts
    with tempfile.TemporaryDirectory(prefix="mode_ssm-") as folder:
        file = Path(folder) / "shared"
        executor = ProcessPoolExecutor(
            processes,
            multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(file, _write_shared(shared, file)),
        )
        try:
            yield executor
        finally:
            executor.shutdown(cancel_futures=True)
            for name, value in threads.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def shared_object() -> Any:
    """In a worker: what `worker_pool` was given."""
    return _shared


def _write_shared(shared: object, path: Path) -> list[tuple[int, int]]:
    """Pickle `shared` with its arrays beside it; returns start and end of the pickle and of each array."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(shared, protocol=5, buffer_callback=buffers.append)
    offsets = []
    with path.open("wb") as file:
        for part in (memoryview(pickled), *(buffer.raw() for buffer in buffers)):
            file.write(bytes(-file.tell() % _ALIGNMENT))
            offsets.append((file.tell(), file.tell() + part.nbytes))
            file.write(part)
    return offsets


def _start_worker(file: Path, offsets: list[tuple[int, int]]) -> None:
    global _shared
    with file.open("rb") as opened:
        content = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
    pickled, *buffers = (content[start:end] for start, end in offsets)
    _shared = pickle.loads(pickled, buffers=buffers)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the workers
