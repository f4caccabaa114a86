"""Half an hour of speech frame by frame: latency and resident memory of the live word search.

    OMP_NUM_THREADS=1 uv run benchmarks/decoding_stream.py [--minutes 30] [--beam 300] [--json FILE]

Lexicon, language model and emissions are those of decoding.py, about 10 % phoneme errors, sentence after sentence in
one stream of 80 ms frames, with the partial result after each. Of the search's own arrays only the words that are
committed, which no later frame can change, may grow: 12 bytes each. The caller's list of them grows as well.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from decoding_data import DATA, DIFFICULTIES, Models, speak_valid
from decoding_decoders import Ours, Settings
from decoding_measure import each_frame, percentiles, resident_mb
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mode_ssm.decode.beam_arrays import COMMITTED
from mode_ssm.decode.word_search import SearchState

FRAME_SECONDS = 0.08
CONSOLE = Console(width=120)


def main() -> int:
    arguments = _parser().parse_args()
    minute = round(60 / FRAME_SECONDS)
    with tempfile.TemporaryDirectory(prefix="mode_ssm-stream-") as temporary:
        models = Models.of(arguments.data, Path(temporary))
        with CONSOLE.status("3-gram model"):
            models.write(arguments.data)
        decoder = Ours(models).decoder(arguments.beam, Settings())
        _, testing = speak_valid(arguments.data, (0, 1500))
        sentences = [utterance.log_probs for utterance in testing[next(iter(DIFFICULTIES))]]
        log_probs = np.resize(np.concatenate(sentences), (arguments.minutes * minute, sentences[0].shape[1]))
        del sentences, testing
        decoder.decode(log_probs[:100])  # compiles
        state, rows, at_start = decoder.start(), [], resident_mb()
        for first in track(range(0, len(log_probs), minute), "minutes of speech", console=CONSOLE):
            begin = time.thread_time()
            latency = percentiles(list(each_frame(decoder, state, log_probs[first : first + minute])))
            rows.append(
                {
                    "minute": first // minute + 1,
                    "p99_ms": latency.p99,
                    "p99_processor_ms": latency.p99_processor,
                    "ms_per_frame": 1e3 * (time.thread_time() - begin) / minute,
                    "rss_mb": resident_mb(),
                    "arrays_mb": array_bytes(state) / 1e6,
                    "committed_words": int(state.search.counters[COMMITTED]),
                }
            )
        best = decoder.finalize(state)[0]
    table = Table(
        title=f"{len(log_probs)} frames, beam {arguments.beam}, {len(best.words)} words; {at_start:.1f} MB at the start"
    )
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in [*rows[:2], *rows[4::5]]:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    CONSOLE.print(table)
    if arguments.json is not None:
        arguments.json.write_text(
            json.dumps({"beam": arguments.beam, "rss_mb_at_start": at_start, "minutes": rows}, indent=2) + "\n"
        )
    return 0


def array_bytes(state: SearchState) -> int:
    """Of all arrays of the search but the committed words."""
    parts = [part for name, part in state.search._asdict().items() if name != "committed"]
    return sum(array.nbytes for part in parts for array in (part if isinstance(part, tuple) else [part]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--beam", type=int, default=300)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with lexicon/ and text/")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
