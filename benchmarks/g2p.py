"""Guessed pronunciations against the dictionary's: the figures that docs/performance.md quotes.

    OMP_NUM_THREADS=1 uv run --with phonetisaurus python benchmarks/g2p.py cmudict.dict [--json FILE] [--words 1/1]

Every twentieth word, by a hash of its spelling, is held out with all its pronunciations; the model learns from the
others, or from a part of them. PER is edits over phones of the best guess against the pronunciation of the word that is
nearest to it, WER the share of words whose best guess is none of them. Phonetisaurus (Novak et al. 2016; joint n-gram
of order 8 too) learns from the same words and guesses the same ones where it is installed.

Published, on another split of CMUdict, so that differences of a few tenths mean nothing: Sequitur 5.9 % PER, 24.5 % WER
(Bisani and Ney 2008), a bidirectional LSTM 5.5 % and 23.6 % (Yao and Zweig 2015).
"""

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from mode_ssm.lm.g2p import BEAM_SIZE, ORDER, GraphemeToPhoneme
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.lexicon_file import Pronunciation
from mode_ssm.metrics import ErrorRate, aggregate, phoneme_errors
from mode_ssm.vocab import ids_to_phonemes, phonemes_to_ids

FOLDS = 20
ALTERNATES = 3
MIN_SHARE = 0.1
CONSOLE = Console(stderr=True)
Figures = dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lexicon", type=Path, help="CMUdict")
    parser.add_argument("--words", type=Fraction, default=Fraction(1), help="part of the words to learn from, e.g. 1/2")
    parser.add_argument("--order", type=int, default=ORDER, help=f"of the n-gram model (default {ORDER})")
    parser.add_argument("--beam", type=int, default=BEAM_SIZE, help=f"of the search (default {BEAM_SIZE})")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parsed = parser.parse_args()
    try:
        figures = _lexicon_figures(parsed.lexicon)
        lexicon = Lexicon.read(parsed.lexicon)
        test = [word for word in lexicon if _hash(word) % FOLDS == 0]
        part = parsed.words
        training = lexicon.subset(
            word for word in lexicon if _hash(word) % FOLDS and _hash(word) // FOLDS % part.denominator < part.numerator
        )
        figures |= {"words_trained": len(training), "words_held_out": len(test)}
        figures |= _ours(lexicon, training, test, parsed.order, parsed.beam)
        try:
            peer = import_module("phonetisaurus")
        except ImportError:
            CONSOLE.print("phonetisaurus is not installed: no comparison")
        else:
            figures |= _phonetisaurus(peer, lexicon, training, test)
    except (ValueError, OSError) as error:
        print(f"g2p: {error}", file=sys.stderr)
        return 1
    table = Table("figure", "value", title=f"{parsed.lexicon.name}, order {parsed.order}, beam {parsed.beam}")
    for key, value in figures.items():
        table.add_row(key, f"{value:.5g}")
    Console().print(table)
    if parsed.json:
        parsed.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def _hash(word: str) -> int:
    """The same for a word whatever else is in the dictionary."""
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")


def _lexicon_figures(path: Path) -> Figures:
    start = time.perf_counter()
    Lexicon.read(path)
    read = time.perf_counter()
    Lexicon.load(path)  # compiles it if it is not there yet
    compiled = time.perf_counter()
    Lexicon.load(path)
    return {"lexicon_read_seconds": read - start, "lexicon_load_seconds": time.perf_counter() - compiled}


def _ours(lexicon: Lexicon, training: Lexicon, test: Sequence[str], order: int, beam_size: int) -> Figures:
    with CONSOLE.status(f"training on {len(training)} words"):
        start = time.perf_counter()
        model = GraphemeToPhoneme.train(training, order)
        train_seconds = time.perf_counter() - start
    model.guess(test[0])  # compiles the search
    best: dict[str, Pronunciation] = {}
    alternates = covered = 0
    search_seconds = 0.0
    for word in track(test, "held-out words", console=CONSOLE):
        start = time.perf_counter()
        guesses = model.guess(word, ALTERNATES, beam_size)
        search_seconds += time.perf_counter() - start
        kept = [guess.phones for rank, guess in enumerate(guesses) if rank == 0 or guess.share >= MIN_SHARE]
        if kept:
            best[word] = kept[0]
        alternates += len(kept)
        covered += any(phones in lexicon[word] for phones in kept)
    return {
        **_errors(lexicon, test, best, ""),
        f"wer_of_{ALTERNATES}_alternates": 1 - covered / len(test),
        "alternates_a_word": alternates / len(test),
        "train_seconds": train_seconds,
        "ms_a_word": 1000 * search_seconds / len(test),
        "model_mb": sum(array.nbytes for array in model.pack().values()) / 1e6,
    }


def _phonetisaurus(peer: Any, lexicon: Lexicon, training: Lexicon, test: Sequence[str]) -> Figures:
    entries = {word: [ids_to_phonemes(phones) for phones in training[word]] for word in training}
    best: dict[str, Pronunciation] = {}
    with tempfile.TemporaryDirectory() as folder, CONSOLE.status("phonetisaurus"):
        start = time.perf_counter()
        peer.train(entries, Path(folder) / "model.fst")
        train_seconds = time.perf_counter() - start
        start = time.perf_counter()
        for word, phonemes in peer.predict(test, Path(folder) / "model.fst"):
            best.setdefault(word, tuple(phonemes_to_ids(phonemes)))
        search_seconds = time.perf_counter() - start
    return {
        **_errors(lexicon, test, best, "_phonetisaurus"),
        "train_seconds_phonetisaurus": train_seconds,
        "ms_a_word_phonetisaurus": 1000 * search_seconds / len(test),
    }


def _errors(lexicon: Lexicon, test: Sequence[str], best: Mapping[str, Pronunciation], suffix: str) -> Figures:
    errors: list[ErrorRate] = []
    for word in test:
        compared = (phoneme_errors(phones, best.get(word, ())) for phones in lexicon[word])
        errors.append(min(compared, key=lambda error: (error.edits, -error.reference_length)))
    wrong = sum(error.edits > 0 for error in errors)
    return {f"per{suffix}": aggregate(errors).rate, f"wer{suffix}": wrong / len(test)}


if __name__ == "__main__":
    sys.exit(main())
