"""Many utterances at once, on one core or in worker processes."""

import mmap
import multiprocessing
import os
import pickle
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mode_ssm.decode.ctc_beam import CtcWordDecoder, Hypothesis

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_ALIGNMENT = 64  # bytes
_decoder: CtcWordDecoder  # of a worker process


def decode_batch(
    decoder: CtcWordDecoder,
    log_probs: Sequence[np.ndarray],
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Hypothesis]]:
    """`decoder.decode` of every utterance (T, V), in order; the result does not depend on `processes`.

    Worker processes are spawned, not forked, because threads of the caller (torch, progress bars) do not survive a
    fork; each costs a second or more to start and runs one thread. The arrays of lexicon and language model lie in a
    temporary file that all of them map, once in memory. Scripts that ask for workers need the usual
    `if __name__ == "__main__"`. `progress(done, total)` is called after every utterance.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, not {processes}")
    results: list[list[Hypothesis]] = []
    with _decoded(decoder, log_probs, min(processes, len(log_probs))) as hypotheses:
        for nbest in hypotheses:
            results.append(nbest)
            if progress is not None:
                progress(len(results), len(log_probs))
    return results


@contextmanager
def _decoded(
    decoder: CtcWordDecoder, log_probs: Sequence[np.ndarray], processes: int
) -> Iterator[Iterator[list[Hypothesis]]]:
    if processes <= 1:
        yield map(decoder.decode, log_probs)
        return
    threads = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))  # read by a worker as it starts
    with tempfile.TemporaryDirectory(prefix="mode_ssm-") as folder:
        shared = Path(folder) / "decoder"
        offsets = _write_shared(decoder, shared)
        executor = ProcessPoolExecutor(
            processes,
            multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(shared, offsets),
        )
        try:
            yield executor.map(_decode, log_probs, chunksize=max(1, min(8, len(log_probs) // (4 * processes))))
        finally:
            executor.shutdown(cancel_futures=True)
            for name, value in threads.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _write_shared(decoder: CtcWordDecoder, path: Path) -> list[tuple[int, int]]:
    """Pickle `decoder` with its arrays beside it; returns start and end of the pickle and of each array."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(decoder, protocol=5, buffer_callback=buffers.append)
    offsets = []
    with path.open("wb") as file:
        for part in (memoryview(pickled), *(buffer.raw() for buffer in buffers)):
            file.write(bytes(-file.tell() % _ALIGNMENT))
            offsets.append((file.tell(), file.tell() + part.nbytes))
            file.write(part)
    return offsets


def _start_worker(shared: Path, offsets: list[tuple[int, int]]) -> None:
    global _decoder
    with shared.open("rb") as file:
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    pickled, *buffers = (content[start:end] for start, end in offsets)
    _decoder = pickle.loads(pickled, buffers=buffers)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the workers


def _decode(log_probs: np.ndarray) -> list[Hypothesis]:
    return _decoder.decode(log_probs)
