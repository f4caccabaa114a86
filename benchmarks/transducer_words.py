"""Words from the transducer head: search against greedy phonemes and nearest words, on a checkpoint.

    OMP_NUM_THREADS=1 uv run python benchmarks/transducer_words.py [runs/quickstart/best] [--split val] [--json FILE]

Four ways from the same encoder frames to words: greedy phonemes of the transducer, or those of its beam search, split
at silences, each part replaced by the word whose pronunciation is nearest in phoneme edits (ties: the more frequent
word); the word search of the transducer; and that of CTC. Both word searches have the same lexicon, n-gram model and
beam. Their scales are chosen on one half of the sentences and used on the other, and the other way round, so that every
sentence is decoded with scales that have not seen it. WER with 95 % bootstrap intervals; a difference is that of the
same resampled sentences. Milliseconds a frame (the median utterance's) are CPU time of search, without the encoder.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mode_ssm.decode.ctc_beam import CtcWordDecoder
from mode_ssm.decode.transducer_beam import beam_transducer, greedy_transducer
from mode_ssm.decode.transducer_tables import joiner_tables, projected
from mode_ssm.decode.transducer_words import TransducerWordDecoder
from mode_ssm.inference import load
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.metrics import bootstrap_interval, paired_bootstrap_difference, word_errors
from mode_ssm.models.mode_ssm import MODE_SSM
from mode_ssm.tasks.decoding import HeadTransducer
from mode_ssm.tasks.transcription_data import TranscriptionData
from mode_ssm.train.checkpoint import load_checkpoint
from mode_ssm.train.distributed import Distributed
from mode_ssm.vocab import SIL

CONSOLE = Console(stderr=True)
# A transducer has one blank for every frame, so that a penalty on it changes nothing; CTC has any number.
CTC_GRID = {
    "acoustic_scale": (0.4, 0.6, 0.8, 1.0, 1.4),
    "blank_penalty": (0.0, 0.5, 1.0, 2.0),
    "word_bonus": (0.0, 1.0, 2.0),
}
RNNT_GRID = {"acoustic_scale": (0.8, 1.0, 1.4, 2.0), "word_bonus": (0.0, 2.0, 4.0, 6.0, 8.0)}
ILM_SCALES = (0.0, 0.2, 0.4, 0.6)
Options = dict[str, Any]
Grid = Mapping[str, Sequence[float]]
Decode = Callable[["Utterance"], str]


@dataclass(frozen=True, slots=True)
class Utterance:
    sentence: str
    log_probs: np.ndarray  # (T, V) of the CTC head
    projected: np.ndarray  # (T, J) encoder frames of the transducer head


@dataclass(slots=True)
class Measured:
    edits: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    ms_per_frame: list[float] = field(default_factory=list)

    def add(self, utterance: Utterance, decode: Decode) -> None:
        begin = time.process_time()
        words = decode(utterance)
        self.ms_per_frame.append(1e3 * (time.process_time() - begin) / len(utterance.log_probs))
        errors = word_errors(utterance.sentence, words)
        self.edits.append(errors.edits)
        self.lengths.append(errors.reference_length)

    def take(self, other: "Measured", utterance: int) -> None:
        self.edits.append(other.edits[utterance])
        self.lengths.append(other.lengths[utterance])
        self.ms_per_frame.append(other.ms_per_frame[utterance])

    @property
    def wer(self) -> float:
        return sum(self.edits) / sum(self.lengths)


def main() -> int:
    parsed = _parser().parse_args()
    try:
        if not parsed.checkpoint.exists():
            raise ValueError(f"{parsed.checkpoint}: no such checkpoint; `uv run train.py` makes runs/quickstart/best")
        figures = _measure(parsed)
    except (ValueError, OSError) as error:
        CONSOLE.print(f"error: {error}", markup=False)
        return 1
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def _measure(parsed: argparse.Namespace) -> dict[str, Any]:
    checkpoint = load_checkpoint(parsed.checkpoint)
    loaded = load(checkpoint, checkpoint.config, Distributed(rank=0, world_size=1, device=torch.device("cpu")))
    model = loaded.model.eval()
    if not isinstance(model, MODE_SSM):
        raise ValueError(f"{parsed.checkpoint}: this model has no transducer head; model=mode_ssm has one")
    utterances = _utterances(model, loaded.data, parsed.split)
    config = loaded.config
    lexicon = Lexicon.load(config.lm.lexicon or Path(config.data.root) / "lexicon.txt")
    lm = NGramLM.estimate(loaded.data.training_sentences(), config.lm.order, lexicon.words)
    nearest = NearestWords(lexicon, lm)
    head = HeadTransducer(model)
    max_symbols, beam = config.decode.rnnt_max_symbols, config.decode.rnnt_beam_size
    tables = joiner_tables(model.predictor, model.joiner)
    common: dict[str, Any] = {"beam_size": parsed.beam, "nbest": 1}
    ctc = CtcWordDecoder(lexicon, lm, **common)
    rnnt = TransducerWordDecoder(lexicon, lm, tables, max_symbols=max_symbols, **common)

    def greedy(utterance: Utterance) -> str:
        frames = torch.from_numpy(utterance.projected)[None]
        return nearest(greedy_transducer(head, frames, torch.tensor([frames.shape[1]]), max_symbols)[0])

    def phoneme_beam(utterance: Utterance) -> str:
        return nearest(beam_transducer(head, torch.from_numpy(utterance.projected), beam, max_symbols)[0].labels)

    rows = {
        "greedy RNN-T, nearest words": _fixed(greedy, utterances),
        f"RNN-T beam {beam}, nearest words": _fixed(phoneme_beam, utterances),
    }
    chosen: dict[str, list[Options]] = {}
    searches: dict[str, tuple[Callable[[Options], Decode], Grid]] = {
        "RNN-T word search": (_rnnt_search(rnnt), RNNT_GRID),
        "RNN-T word search, ILM taken off": (_rnnt_search(rnnt), {**RNNT_GRID, "ilm_scale": ILM_SCALES}),
        "CTC word search": (_ctc_search(ctc), CTC_GRID),
    }
    for name, (prepare, grid) in searches.items():
        rows[name], chosen[name] = _tuned(name, prepare, grid, utterances)
    _show(rows, utterances, parsed)
    return _figures(rows, chosen, utterances, parsed)


def _utterances(model: MODE_SSM, data: TranscriptionData, split: str) -> list[Utterance]:
    trials = data.trials(split)
    found: dict[str, Utterance] = {}
    with torch.inference_mode():
        for batch in data.batches(trials):
            output = model(batch.features, batch.feature_lengths, batch.session_ids)
            log_probs = output.phoneme_logits.float().log_softmax(-1).numpy()
            for row, info in enumerate(batch.trials):
                frames = int(output.lengths[row])
                found[info.name] = Utterance(
                    data.reference(info).sentence,
                    log_probs[row, :frames],
                    projected(model.joiner, output.encoder_out[row, :frames]),
                )
    return [found[info.name] for info in trials]


class NearestWords:
    """Phonemes -> words, each part between silences for itself."""

    def __init__(self, lexicon: Lexicon, lm: NGramLM) -> None:
        ordered = sorted(lexicon, key=lambda word: -lm.unigram(word))
        self._words = [(word, phones) for word in ordered for phones in lexicon[word]]
        self._known: dict[tuple[int, ...], str] = {}

    def __call__(self, phonemes: Sequence[int]) -> str:
        parts: list[list[int]] = [[]]
        for phoneme in phonemes:
            if phoneme == SIL:
                parts.append([])
            else:
                parts[-1].append(phoneme)
        return " ".join(self._nearest(tuple(part)) for part in parts if part)

    def _nearest(self, part: tuple[int, ...]) -> str:
        if part not in self._known:
            self._known[part] = min(self._words, key=lambda entry: Levenshtein.distance(part, entry[1]))[0]
        return self._known[part]


def _rnnt_search(decoder: TransducerWordDecoder) -> Callable[[Options], Decode]:
    def prepare(options: Options) -> Decode:
        prepared = decoder.with_options(**options)
        return lambda utterance: prepared.decode(utterance.projected)[0].text

    return prepare


def _ctc_search(decoder: CtcWordDecoder) -> Callable[[Options], Decode]:
    def prepare(options: Options) -> Decode:
        prepared = decoder.with_options(**options)
        return lambda utterance: prepared.decode(utterance.log_probs)[0].text

    return prepare


def _fixed(decode: Decode, utterances: Sequence[Utterance]) -> Measured:
    measured = Measured()
    for utterance in utterances:
        measured.add(utterance, decode)
    return measured


def _tuned(
    name: str,
    prepare: Callable[[Options], Decode],
    grid: Grid,
    utterances: Sequence[Utterance],
) -> tuple[Measured, list[Options]]:
    """Every utterance decoded with the options that are best for the half that it is not in; those of each half."""
    points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    measured = [
        _fixed(prepare(point), utterances) for point in track(points, description=name, console=CONSOLE, transient=True)
    ]
    best: list[int] = []
    for half in (0, 1):
        tuned_on = range(1 - half, len(utterances), 2)
        best.append(min(range(len(points)), key=lambda p: sum(measured[p].edits[u] for u in tuned_on)))
    tested = Measured()
    for u in range(len(utterances)):
        tested.take(measured[best[u % 2]], u)
    return tested, [points[p] for p in best]


def _show(rows: dict[str, Measured], utterances: Sequence[Utterance], parsed: argparse.Namespace) -> None:
    table = Table(title=f"{parsed.checkpoint}, {parsed.split}: {len(utterances)} sentences; beam {parsed.beam}")
    for column in ("", "WER %", "95 %", "against greedy", "ms a frame"):
        table.add_column(column, justify="left" if not column else "right")
    greedy = next(iter(rows.values()))
    for name, row in rows.items():
        low, high = bootstrap_interval(row.edits, row.lengths)
        value, least, most = paired_bootstrap_difference(greedy.edits, row.edits, row.lengths)
        table.add_row(
            name,
            f"{100 * row.wer:.1f}",
            f"{100 * low:.1f}-{100 * high:.1f}",
            f"{100 * value:+.1f} ({100 * least:+.1f} to {100 * most:+.1f})" if row is not greedy else "",
            f"{np.median(row.ms_per_frame):.3f}",
        )
    CONSOLE.print(table)


def _figures(
    rows: dict[str, Measured],
    chosen: dict[str, list[Options]],
    utterances: Sequence[Utterance],
    parsed: argparse.Namespace,
) -> dict[str, Any]:
    greedy = next(iter(rows.values()))
    return {
        "checkpoint": str(parsed.checkpoint),
        "split": parsed.split,
        "sentences": len(utterances),
        "beam_size": parsed.beam,
        "rows": {
            name: {
                "wer": row.wer,
                "interval": bootstrap_interval(row.edits, row.lengths),
                "difference_to_greedy": paired_bootstrap_difference(greedy.edits, row.edits, row.lengths),
                "ms_per_frame": float(np.median(row.ms_per_frame)),
                "options_by_half": chosen.get(name),
            }
            for name, row in rows.items()
        },
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=Path("runs/quickstart/best"))
    parser.add_argument("--split", default="val", help="of the checkpoint's data")
    parser.add_argument("--beam", type=int, default=100, help="of both word searches")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
