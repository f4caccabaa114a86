"""Many utterances at once, on one core or in worker processes."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from mode_ssm.decode.hypothesis import Hypothesis
from mode_ssm.decode.word_search import WordDecoder
from mode_ssm.decode.worker_pool import shared_object, worker_pool


def decode_batch(
    decoder: WordDecoder,
    inputs: Sequence[np.ndarray],
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Hypothesis]]:
    """`decoder.decode` of every utterance (T, ...), in order; the result does not depend on `processes`.

    Worker processes are those of `worker_pool`: they share the arrays of lexicon and language model, and each costs a
    second or more to start. `progress(done, total)` is called after every utterance.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, not {processes}")
    processes = min(processes, len(inputs))
    results: list[list[Hypothesis]] = []

    def collect(found: Iterable[list[Hypothesis]]) -> list[list[Hypothesis]]:
        for nbest in found:
            results.append(nbest)
            if progress is not None:
                progress(len(results), len(inputs))
        return results

    if processes <= 1:
        return collect(map(decoder.decode, inputs))
    with worker_pool(decoder, processes) as pool:
        return collect(pool.map(_decode, inputs, chunksize=max(1, min(8, len(inputs) // (4 * processes)))))


def _decode(utterance: np.ndarray) -> list[Hypothesis]:
    decoder: WordDecoder = shared_object()
    return decoder.decode(utterance)
