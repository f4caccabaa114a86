"""Errors, time and memory of a word decoder, and the settings that are best for it."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from decoding_decoders import Decode, Settings, WordDecoder
from decoding_emissions import Utterance
from rapidfuzz.distance import Levenshtein

from mode_ssm.decode.ctc_beam import CtcWordDecoder
from mode_ssm.decode.word_search import SearchState

_COARSE_BEAM, _FINE_BEAM, _FINALISTS = 50, 150, 2


@dataclass(frozen=True)
class Latency:
    """99th percentiles over frames, ms: by the clock, and of the processor's time, which no neighbour lengthens."""

    p99: float
    p99_processor: float


@dataclass
class Measured:
    """One decoder at one beam on some utterances."""

    errors: int = 0
    words: int = 0
    ms_per_frame: list[float] = field(default_factory=list)  # by utterance
    live: Latency | None = None

    @property
    def wer(self) -> float:
        return self.errors / self.words


def measure(
    decoders: dict[str, Decode], utterances: Sequence[Utterance], advance: Callable[[], None]
) -> dict[str, Measured]:
    """All decoders in turns; a first, uncounted utterance compiles and warms up. `advance()` after every utterance.

    Time is the processor's on the one thread that they run in, so that busy neighbours do not count.
    """
    rows = {name: Measured() for name in decoders}
    for decode in decoders.values():
        decode(utterances[0].log_probs)
    for utterance in utterances:
        for name, decode in decoders.items():
            begin = time.thread_time()
            words = decode(utterance.log_probs)
            elapsed = time.thread_time() - begin
            row = rows[name]
            row.ms_per_frame.append(1e3 * elapsed / len(utterance.log_probs))
            row.errors += Levenshtein.distance(list(words), list(utterance.words))
            row.words += len(utterance.words)
        advance()
    return rows


def live_latency(decoder: CtcWordDecoder, streams: Iterable[np.ndarray]) -> Latency:
    """Of frames that come alone, each with the partial result after it."""
    return percentiles([taken for log_probs in streams for taken in each_frame(decoder, decoder.start(), log_probs)])


def each_frame(decoder: CtcWordDecoder, state: SearchState, log_probs: np.ndarray) -> Iterator[tuple[float, float]]:
    """Step and partial result of every frame: seconds of the clock and of the processor."""
    for frame in log_probs:
        begin = time.perf_counter(), time.thread_time()
        decoder.step(state, frame)
        decoder.partial(state)
        yield time.perf_counter() - begin[0], time.thread_time() - begin[1]


def percentiles(taken: Sequence[tuple[float, float]]) -> Latency:
    return Latency(*(1e3 * np.percentile(taken, 99, axis=0)).tolist())


def best_settings(decoder: WordDecoder, utterances: Sequence[Utterance], advance: Callable[[int], None]) -> Settings:
    """In two stages: the grid at a narrow beam; then every pruning of the best two points at a wider one. Of those with
    the fewest errors the fastest. `advance(beam)` after every utterance, `tuning_cost` times the number in all."""

    def tried(settings: Settings, beam: int) -> Measured:
        return measure({"": decoder.prepare(beam, settings)}, utterances, lambda: advance(beam))[""]

    errors = {settings: tried(settings, _COARSE_BEAM).errors for settings in decoder.grid}
    finalists = sorted(errors, key=lambda settings: errors[settings])[:_FINALISTS]
    fine = {s: tried(s, _FINE_BEAM) for f in finalists for s in (replace(f, **p) for p in decoder.prunings)}
    fewest = min(row.errors for row in fine.values())
    return min((s for s in fine if fine[s].errors == fewest), key=lambda s: float(np.median(fine[s].ms_per_frame)))


def tuning_cost(decoder: WordDecoder) -> int:
    """Sum over the decodings of one utterance of their beam."""
    return _COARSE_BEAM * len(decoder.grid) + _FINE_BEAM * _FINALISTS * len(decoder.prunings)


def resident_mb(of: str = "VmRSS") -> float:
    """Resident megabytes of this process, or its peak (`VmHWM`). Of Linux only."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{of}:")[1].split()[0]) / 1e3


def memory_in_child(script: str, arguments: Sequence[str]) -> float:
    """The number that a process of its own prints last."""
    command = [sys.executable, script, *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
