"""Word error rate, time and memory of the word search beside other decoders, on simulated emissions.

    OMP_NUM_THREADS=1 uv run --with flashlight-text --with kenlm benchmarks/decoding.py [--json FILE] [--quick]

CMUdict, a 3-gram over the training sentences of both corpora in the data folder, sentences of their validation files
spoken with about 10 % and 20 % phoneme errors, SIL dropped in 30 % of the gaps, phonemes repeated. Each decoder uses
the scales that are best for it on other sentences, and the strongest pruning that costs no errors there. All take turns
utterance by utterance in one process, so that a busy neighbour slows all of them; memory is the peak of a process that
runs one of them alone.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from decoding_decoders import DECODERS, Decode, Flashlight, Models, Ours, Pruning
from decoding_emissions import Utterance, speak
from rapidfuzz.distance import Levenshtein
from rich.console import Console
from rich.table import Table

from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.vocab import BLANK

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
DIFFICULTIES = {"10 %": {"doubt": 0.14, "noise": 1.7}, "20 %": {"doubt": 0.24, "noise": 1.95}}  # by phoneme errors
BEAMS = (50, 150, 300, 500, 1000, 1500)
QUOTED, TUNED = 300, 150
CONSOLE = Console(width=140)
Settings = tuple[float, float, Pruning]  # acoustic scale, word bonus


@dataclass
class Measured:
    """One decoder at one beam on one set of utterances."""

    errors: int = 0
    words: int = 0
    ms_per_frame: list[float] = field(default_factory=list)  # by utterance
    live_ms: list[float] = field(default_factory=list)  # by frame

    @property
    def wer(self) -> float:
        return self.errors / self.words


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.memory_of:
        print(_peak_memory(arguments.memory_of, Path(arguments.folder)))
        return 0
    with tempfile.TemporaryDirectory(prefix="mode_ssm-decoding-") as folder:
        content = _benchmark(arguments, Path(folder))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0


def _benchmark(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    counts = (3, 6) if arguments.quick else (25, arguments.utterances)
    beams = (50, QUOTED) if arguments.quick else BEAMS
    models = _write_models(arguments.data, folder)
    tuning, testing = _utterances(arguments.data, counts)
    np.savez(folder / "emissions.npz", *(u.log_probs for u in testing["20 %"][:20]))
    decoders: dict[str, Ours | Flashlight] = {}
    notes: dict[str, str] = {}
    for name, kind in DECODERS.items():
        try:
            with CONSOLE.status(f"{name} reads its models"):
                decoders[name] = kind(models)
        except ImportError as error:
            notes[name] = f"not measured: {error}"
            CONSOLE.print(f"{name}: {notes[name]}", markup=False)
    memory = {name: _memory_in_child(name, folder) for name in decoders}
    rows: dict[tuple[str, str, int], Measured] = {}
    for difficulty, utterances in testing.items():
        settings = {name: _best_settings(d, tuning[difficulty]) for name, d in decoders.items()}
        notes[f"scale, bonus, pruning at {difficulty}"] = str(settings)
        for beam in beams:
            with CONSOLE.status(f"{difficulty} phoneme errors, beam {beam}"):
                prepared = {name: d.prepare(beam, *settings[name]) for name, d in decoders.items()}
                for name, measured in _measure(prepared, utterances).items():
                    rows[difficulty, name, beam] = measured
                live = decoders["ours"]
                assert isinstance(live, Ours)
                rows[difficulty, "ours", beam].live_ms = _live(live, beam, settings["ours"], utterances)
        _show(difficulty, utterances, rows, memory)
    return {**_figures(rows, memory, beams), "notes": notes, "quick": arguments.quick}


def _figures(
    rows: dict[tuple[str, str, int], Measured], memory: dict[str, float], beams: Iterable[int]
) -> dict[str, object]:
    """Both difficulties together at the quoted beam; all rows as details."""
    at_quoted: dict[str, Measured] = {}
    for (_, name, beam), row in rows.items():
        if beam == QUOTED:
            total = at_quoted.setdefault(name, Measured())
            total.errors, total.words = total.errors + row.errors, total.words + row.words
            total.ms_per_frame += row.ms_per_frame
            total.live_ms += row.live_ms
    ours, peer = at_quoted["ours"], at_quoted.get("flashlight")
    return {
        "ms_per_frame_b300": float(np.median(ours.ms_per_frame)),
        "p99_ms_live_b300": float(np.percentile(ours.live_ms, 99)),
        "rss_mb": memory["ours"],
        "time_vs_flashlight": float(np.median(np.divide(ours.ms_per_frame, peer.ms_per_frame))) if peer else None,
        "wer": ours.wer,
        "wer_flashlight": peer.wer if peer else None,
        "details": [
            {
                "phoneme_errors": difficulty,
                "decoder": name,
                "beam": beam,
                "wer": row.wer,
                "ms_per_frame": float(np.median(row.ms_per_frame)),
                "p99_ms_live": float(np.percentile(row.live_ms, 99)) if row.live_ms else None,
                "peak_mb": memory[name],
            }
            for (difficulty, name, beam), row in rows.items()
        ],
    }


def _write_models(data: Path, folder: Path) -> Models:
    models = Models(data / "lexicon" / "cmudict.dict", folder / "lm.bin", folder / "lm.arpa")
    with CONSOLE.status("3-gram model"):
        lexicon = Lexicon.load(models.lexicon)
        sentences = [s for corpus in ("conversation", "read") for s in _sentences(data, corpus, "train")]
        lm = NGramLM.estimate(sentences, 3, lexicon.words)
        lm.save(models.mapped)
        lm.write_arpa(models.arpa)
    return models


def _sentences(data: Path, corpus: str, split: str) -> list[str]:
    return (data / "text" / f"{corpus}.{split}.txt").read_text(encoding="utf-8").splitlines()


def _utterances(data: Path, counts: tuple[int, int]) -> tuple[dict[str, list[Utterance]], dict[str, list[Utterance]]]:
    """Utterances to tune on and to test on, by difficulty; half of each corpus, and none in both."""
    lexicon = Lexicon.load(data / "lexicon" / "cmudict.dict")
    rng = np.random.default_rng(0)
    chosen: list[list[tuple[str, ...]]] = [[], []]
    for corpus in ("conversation", "read"):
        spoken = dict.fromkeys(tuple(s.split()) for s in _sentences(data, corpus, "valid"))
        known = [words for words in spoken if len(words) > 2 and all(word in lexicon for word in words)]
        order = rng.permutation(len(known))[: sum(counts)].tolist()
        for place, index in enumerate(order):
            chosen[place >= counts[0]].append(known[index])
    parts = []
    for sentences in chosen:
        parts.append(
            {name: [speak(words, lexicon, rng, **d) for words in sentences] for name, d in DIFFICULTIES.items()}
        )
    return parts[0], parts[1]


def _best_settings(decoder: Ours | Flashlight, utterances: list[Utterance]) -> Settings:
    """The acoustic scale and the word bonus with the fewest errors; then the fastest pruning that costs none."""
    grid = [(scale, bonus, decoder.prunings[0]) for scale in decoder.scales for bonus in decoder.bonuses]
    measured = {point: _measure({"": decoder.prepare(TUNED, *point)}, utterances)[""] for point in grid}
    best = min(grid, key=lambda point: measured[point].errors)
    allowed = measured[best].errors
    for pruning in decoder.prunings[1:]:
        point = (*best[:2], pruning)
        measured[point] = _measure({"": decoder.prepare(TUNED, *point)}, utterances)[""]
    as_good = [point for point in measured if point[:2] == best[:2] and measured[point].errors <= allowed]
    return min(as_good, key=lambda point: np.median(measured[point].ms_per_frame))


def _measure(decoders: dict[str, Decode], utterances: list[Utterance]) -> dict[str, Measured]:
    """All decoders in turns; a first, uncounted utterance compiles and warms up."""
    rows = {name: Measured() for name in decoders}
    for decode in decoders.values():
        decode(utterances[0].log_probs)
    for utterance in utterances:
        for name, decode in decoders.items():
            begin = time.perf_counter()
            words = decode(utterance.log_probs)
            elapsed = time.perf_counter() - begin
            row = rows[name]
            row.ms_per_frame.append(1e3 * elapsed / len(utterance.log_probs))
            row.errors += Levenshtein.distance(list(words), list(utterance.words))
            row.words += len(utterance.words)
    return rows


def _live(ours: Ours, beam: int, settings: Settings, utterances: list[Utterance]) -> list[float]:
    """Milliseconds of every frame that comes alone, with the partial result after it."""
    decoder, taken = ours.decoder(beam, *settings[:2]), []
    for utterance in utterances:
        state = decoder.start()
        for frame in utterance.log_probs:
            begin = time.perf_counter()
            decoder.step(state, frame)
            decoder.partial(state)
            taken.append(1e3 * (time.perf_counter() - begin))
    return taken


def _memory_in_child(name: str, folder: Path) -> float:
    command = [sys.executable, __file__, "--memory-of", name, "--folder", str(folder), "--data", str(DATA)]
    with CONSOLE.status(f"{name}: memory"):
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _peak_memory(name: str, folder: Path) -> float:
    """Peak resident megabytes of this process after some utterances at the quoted beam."""
    models = Models(DATA / "lexicon" / "cmudict.dict", folder / "lm.bin", folder / "lm.arpa")
    decode = DECODERS[name](models).prepare(QUOTED, 1.0, 0.0, DECODERS[name].prunings[0])
    for log_probs in np.load(folder / "emissions.npz").values():
        decode(log_probs)
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


def _show(
    difficulty: str,
    utterances: list[Utterance],
    rows: dict[tuple[str, str, int], Measured],
    memory: dict[str, float],
) -> None:
    frames = sum(len(u.log_probs) for u in utterances)
    table = Table(
        title=f"{_phoneme_errors(utterances):.1%} phoneme errors, {len(utterances)} utterances, {frames} frames"
    )
    for column in ("decoder", "beam", "WER", "ms a frame", "live p99 ms", "peak MB"):
        table.add_column(column, justify="left" if column == "decoder" else "right")
    for (of, name, beam), row in rows.items():
        if of == difficulty:
            live = f"{np.percentile(row.live_ms, 99):.2f}" if row.live_ms else ""
            cells = (f"{row.wer:.2%}", f"{np.median(row.ms_per_frame):.3f}", live, f"{memory[name]:.0f}")
            table.add_row(DECODERS[name].name, str(beam), *cells)
    CONSOLE.print(table)


def _phoneme_errors(utterances: list[Utterance]) -> float:
    errors = 0
    for utterance in utterances:
        best = utterance.log_probs.argmax(axis=1)
        collapsed = best[np.flatnonzero(np.diff(best, prepend=-1))]
        errors += Levenshtein.distance(collapsed[collapsed != BLANK].tolist(), list(utterance.phonemes))
    return errors / sum(len(utterance.phonemes) for utterance in utterances)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with lexicon/ and text/")
    parser.add_argument("--utterances", type=int, default=100, help="to test on, of each corpus and difficulty")
    parser.add_argument("--quick", action="store_true", help="a few utterances, two beams: does it run?")
    parser.add_argument("--memory-of", choices=DECODERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
