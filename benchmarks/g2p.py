"""Guessed pronunciations against the dictionary's: the figures that docs/performance.md quotes.

    OMP_NUM_THREADS=1 uv run python benchmarks/g2p.py cmudict.dict [--json FILE] [--order 8] [--beam 50]

Every twentieth word, by a hash of its spelling, is held out with all its pronunciations; the model learns from the
others. PER is edits over phones of the best guess against the pronunciation of the word that is nearest to it, WER the
share of words whose best guess is none of them.

For comparison, on the split of CMUdict by Chen (2003), which takes out other words, so that differences of a few tenths
mean nothing: Sequitur 5.9 % PER, 24.5 % WER (Bisani and Ney 2008); Phonetisaurus 24.4 % WER (Novak et al. 2016);
a bidirectional LSTM with alignments 5.5 % PER, 23.6 % WER (Yao and Zweig 2015).
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from mode_ssm.lm.g2p import BEAM_SIZE, ORDER, GraphemeToPhoneme
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.metrics import ErrorRate, aggregate, phoneme_errors

FOLDS = 20
ALTERNATES = 3
CONSOLE = Console(stderr=True)


def held_out(word: str) -> bool:
    """Of one word in `FOLDS`, whatever else is in the dictionary."""
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") % FOLDS == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lexicon", type=Path, help="CMUdict")
    parser.add_argument("--order", type=int, default=ORDER, help=f"of the n-gram model (default {ORDER})")
    parser.add_argument("--beam", type=int, default=BEAM_SIZE, help=f"of the search (default {BEAM_SIZE})")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parsed = parser.parse_args()
    try:
        figures = measure(parsed.lexicon, parsed.order, parsed.beam)
    except (ValueError, OSError) as error:
        print(f"g2p: {error}", file=sys.stderr)
        return 1
    table = Table("figure", "value", title=f"{parsed.lexicon.name}, order {parsed.order}, beam {parsed.beam}")
    for key, value in figures.items():
        table.add_row(key, f"{value:.4g}")
    Console().print(table)
    if parsed.json:
        parsed.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def measure(path: Path, order: int, beam_size: int) -> dict[str, float]:
    start = time.perf_counter()
    lexicon = Lexicon.read(path)
    read_seconds = time.perf_counter() - start
    Lexicon.load(path)  # compiles it if it is not there yet
    start = time.perf_counter()
    Lexicon.load(path)
    load_seconds = time.perf_counter() - start
    training = lexicon.subset(word for word in lexicon if not held_out(word))
    test = [word for word in lexicon if held_out(word)]
    with CONSOLE.status(f"training on {len(training)} words"):
        start = time.perf_counter()
        model = GraphemeToPhoneme.train(training, order)
        train_seconds = time.perf_counter() - start
    model.guess(test[0])  # compiles the search
    errors: list[ErrorRate] = []
    wrong = alternates = covered = 0
    search_seconds = 0.0
    for word in track(test, "held-out words", console=CONSOLE):
        start = time.perf_counter()
        guesses = model.guess(word, ALTERNATES, beam_size)
        search_seconds += time.perf_counter() - start
        best = guesses[0].phones if guesses else ()
        errors.append(min((phoneme_errors(p, best) for p in lexicon[word]), key=lambda e: (e.edits, -e.reference_length)))
        wrong += best not in lexicon[word]
        kept = [guess.phones for rank, guess in enumerate(guesses) if rank == 0 or guess.share >= 0.1]
        alternates += len(kept)
        covered += any(phones in lexicon[word] for phones in kept)
    return {
        "words_trained": len(training),
        "words_held_out": len(test),
        "per": aggregate(errors).rate,
        "wer": wrong / len(test),
        f"wer_of_{ALTERNATES}_alternates": 1 - covered / len(test),
        "alternates_a_word": alternates / len(test),
        "train_seconds": train_seconds,
        "ms_a_word": 1000 * search_seconds / len(test),
        "model_mb": sum(array.nbytes for array in model.pack().values()) / 1e6,
        "lexicon_read_seconds": read_seconds,
        "lexicon_load_seconds": load_seconds,
    }


if __name__ == "__main__":
    sys.exit(main())
