"""Word error rate, time and memory of the word search beside other decoders, on simulated emissions.

    OMP_NUM_THREADS=1 uv run --group bench benchmarks/decoding.py [--json FILE] [--folder DIR] [--quick]

CMUdict, a 3-gram over the training sentences of both corpora in the data folder, sentences of their validation files
spoken with about 10 % and 20 % phoneme errors, SIL dropped in 30 % of the gaps, phonemes repeated. Each decoder uses
the settings that are best for it on other sentences. All take turns utterance by utterance in one process, and times
are the processor's, so that busy neighbours matter little; memory is the peak of a process that runs one of them alone.
Beams wider than 300 are run on every fourth utterance. With --folder, models, settings and finished rows are kept
there, and a run that was stopped goes on.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from decoding_data import DATA, Models, speak_valid
from decoding_decoders import DECODERS, Ours, Settings, WordDecoder
from decoding_emissions import Utterance
from decoding_measure import (
    Latency,
    Measured,
    best_settings,
    live_latency,
    measure,
    memory_in_child,
    resident_mb,
    tuning_cost,
)
from rapidfuzz.distance import Levenshtein
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mode_ssm.vocab import BLANK

BEAMS = (50, 150, 300, 500, 1000, 1500)
QUOTED = 300
SPARSE = 4  # of the utterances, one in this many for beams that are wider
CONSOLE = Console(width=140)


class Record:
    """What is done, written to disk after every step."""

    def __init__(self, folder: Path, request: dict[str, Any]) -> None:
        self._path = folder / "record.json"
        self.content: dict[str, Any] = {"request": request, "memory": {}, "settings": {}, "rows": []}
        if self._path.exists():
            self.content = json.loads(self._path.read_text())
            if self.content["request"] != request:
                raise SystemExit(f"error: {folder} holds a run of {self.content['request']}, not of {request}")

    def save(self) -> None:
        self._path.write_text(json.dumps(self.content))

    def settings(self, difficulty: str) -> dict[str, Settings]:
        return {name: Settings(**found) for name, found in self.content["settings"].get(difficulty, {}).items()}

    def rows(self) -> dict[tuple[str, str, int], Measured]:
        """By difficulty, decoder and beam."""
        return {(difficulty, name, beam): _measured(**row) for difficulty, name, beam, row in self.content["rows"]}


def _measured(live: dict[str, float] | None, **row: Any) -> Measured:
    return Measured(**row, live=Latency(**live) if live else None)


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.memory_of:
        print(_peak_memory(arguments.memory_of, Models.of(arguments.data, arguments.folder)))
        return 0
    with tempfile.TemporaryDirectory(prefix="mode_ssm-decoding-") as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        _benchmark(arguments, folder)
    return 0


def _benchmark(arguments: argparse.Namespace, folder: Path) -> None:
    counts = (3, 6) if arguments.quick else (20, arguments.utterances)
    beams = (50, QUOTED) if arguments.quick else BEAMS
    models = Models.of(arguments.data, folder)
    with CONSOLE.status("3-gram model"):
        models.write(arguments.data)
        tuning, testing = speak_valid(arguments.data, counts)
    np.savez(folder / "emissions.npz", *(u.log_probs for u in testing["20 %"][:20]))
    decoders, notes = _open(arguments.only, models)
    record = Record(folder, {"decoders": list(decoders), "beams": list(beams), "counts": list(counts)})
    for name in decoders.keys() - record.content["memory"]:
        with CONSOLE.status(f"{name}: memory"):
            of = ["--memory-of", name, "--folder", str(folder), "--data", str(arguments.data)]
            record.content["memory"][name] = memory_in_child(__file__, of)
            record.save()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=CONSOLE) as bar:
        work = sum(map(tuning_cost, decoders.values())) * sum(map(len, tuning.values()))
        work += sum(beam * len(_share(u, beam)) * len(decoders) for u in testing.values() for beam in beams)
        task = bar.add_task("", total=work)
        for difficulty, utterances in testing.items():
            for name, decoder in decoders.items():
                bar.update(task, description=f"{difficulty} phoneme errors: settings of {name}")
                if name in record.settings(difficulty):
                    bar.advance(task, tuning_cost(decoder) * len(tuning[difficulty]))
                    continue
                best = best_settings(decoder, tuning[difficulty], partial(bar.advance, task))
                record.content["settings"].setdefault(difficulty, {})[name] = asdict(best)
                record.save()
            settings = record.settings(difficulty)
            for beam in beams:
                bar.update(task, description=f"{difficulty} phoneme errors, beam {beam}")
                share, step = _share(utterances, beam), beam * len(decoders)
                if (difficulty, "ours", beam) in record.rows():
                    bar.advance(task, step * len(share))
                    continue
                prepared = {name: decoder.prepare(beam, settings[name]) for name, decoder in decoders.items()}
                found = measure(prepared, share, partial(bar.advance, task, step))
                ours = decoders["ours"]
                assert isinstance(ours, Ours)
                live = ours.decoder(beam, settings["ours"])
                found["ours"].live = live_latency(live, (utterance.log_probs for utterance in share))
                record.content["rows"] += [(difficulty, name, beam, asdict(row)) for name, row in found.items()]
                record.save()
                _write_figures(arguments, record, notes)
    _write_figures(arguments, record, notes)
    for difficulty, utterances in testing.items():
        _show(difficulty, utterances, record)


def _write_figures(arguments: argparse.Namespace, record: Record, notes: dict[str, str]) -> None:
    if arguments.json is not None:
        content = {**_figures(record), "notes": notes, "quick": arguments.quick}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


def _open(names: Sequence[str], models: Models) -> tuple[dict[str, WordDecoder], dict[str, str]]:
    """The decoders that are installed, and why the others are not measured."""
    decoders: dict[str, WordDecoder] = {}
    notes: dict[str, str] = {}
    for name in dict.fromkeys(["ours", *names]):
        try:
            with CONSOLE.status(f"{name} reads its models; kaldi-decoder's graph takes minutes to build"):
                decoders[name] = DECODERS[name](models)
        except ImportError as error:
            notes[name] = f"not measured: {error}"
            CONSOLE.print(f"{name}: {notes[name]}", markup=False)
    return decoders, notes


def _share(utterances: list[Utterance], beam: int) -> list[Utterance]:
    return utterances if beam <= QUOTED else utterances[::SPARSE]


def _figures(record: Record) -> dict[str, Any]:
    """Both difficulties together at the quoted beam; all rows as details. null: not measured (yet)."""
    rows = record.rows()
    of: dict[str, Measured] = {}
    for (_, name, beam), row in rows.items():
        if beam == QUOTED:
            total = of.setdefault(name, Measured())
            total.errors, total.words = total.errors + row.errors, total.words + row.words
            total.ms_per_frame += row.ms_per_frame
    live = [row.live for (_, _, beam), row in rows.items() if beam == QUOTED and row.live is not None]
    return {
        "ms_per_frame_b300": float(np.median(of["ours"].ms_per_frame)) if of else None,
        "p99_ms_live_b300": max((latency.p99 for latency in live), default=None),
        "p99_processor_ms_live_b300": max((latency.p99_processor for latency in live), default=None),
        "rss_mb": record.content["memory"]["ours"],
        "time_vs_flashlight": _time_ratio(of, "flashlight"),
        "time_vs_kaldi": _time_ratio(of, "kaldi"),
        "wer": of["ours"].wer if of else None,
        "wer_flashlight": of["flashlight"].wer if "flashlight" in of else None,
        "wer_kaldi": of["kaldi"].wer if "kaldi" in of else None,
        "settings": record.content["settings"],
        "details": [
            {
                "phoneme_errors": difficulty,
                "decoder": name,
                "beam": beam,
                "utterances": len(row.ms_per_frame),
                "wer": row.wer,
                "ms_per_frame": float(np.median(row.ms_per_frame)),
                "live_ms": asdict(row.live) if row.live else None,
                "peak_mb": record.content["memory"][name],
            }
            for (difficulty, name, beam), row in rows.items()
        ],
    }


def _time_ratio(of: dict[str, Measured], peer: str) -> float | None:
    """Median over utterances of our time over the peer's."""
    if peer not in of:
        return None
    return float(np.median(np.divide(of["ours"].ms_per_frame, of[peer].ms_per_frame)))


def _peak_memory(name: str, models: Models) -> float:
    """Peak resident megabytes of this process after some utterances at the quoted beam."""
    decode = DECODERS[name](models).prepare(QUOTED, Settings())
    for log_probs in np.load(models.folder / "emissions.npz").values():
        decode(log_probs)
    return resident_mb("VmHWM")


def _show(difficulty: str, utterances: list[Utterance], record: Record) -> None:
    frames = sum(len(u.log_probs) for u in utterances)
    table = Table(
        title=f"{_phoneme_errors(utterances):.1%} phoneme errors, {len(utterances)} utterances, {frames} frames",
        caption="\n".join(f"{DECODERS[n].name}: {s}" for n, s in record.settings(difficulty).items()),
    )
    for column in ("decoder", "beam", "utterances", "WER", "ms a frame", "live p99 ms (processor)", "peak MB"):
        table.add_column(column, justify="left" if column == "decoder" else "right")
    for (of, name, beam), row in record.rows().items():
        if of == difficulty:
            live = f"{row.live.p99:.2f} ({row.live.p99_processor:.2f})" if row.live else ""
            cells = (f"{row.wer:.2%}", f"{np.median(row.ms_per_frame):.3f}", live)
            memory = f"{record.content['memory'][name]:.0f}"
            table.add_row(DECODERS[name].name, str(beam), str(len(row.ms_per_frame)), *cells, memory)
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
    parser.add_argument("--json", type=Path, help="write the figures here, after every row")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with lexicon/ and text/")
    parser.add_argument("--folder", type=Path, help="keep models and finished rows here, and go on from them")
    parser.add_argument("--utterances", type=int, default=100, help="to test on, of each corpus and difficulty")
    parser.add_argument("--only", nargs="+", choices=DECODERS, default=list(DECODERS), help="decoders beside ours")
    parser.add_argument("--quick", action="store_true", help="a few utterances, two beams: does it run?")
    parser.add_argument("--memory-of", choices=DECODERS, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
