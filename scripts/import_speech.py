"""Turn a folder of recorded words, `{word}_{speaker}_{index}.wav`, into a dataset in the T15 layout.

    uv run scripts/import_speech.py recordings/ --lexicon cmudict.dict --root data/spoken_digits

Writes one session a speaker, `truth.jsonl` and `lexicon.txt` (every pronunciation of the vocabulary).
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mode_ssm.compose import run_main
from mode_ssm.data.log_mel import BIN_SECONDS
from mode_ssm.data.speech import Sentence, SpeechOptions, compose_sentences, read_recordings, write_dataset
from mode_ssm.data.t15_format import SPLITS
from mode_ssm.lm.lexicon import Lexicon


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = _parser().parse_args(arguments)
    corpus = parsed.name or parsed.folder.resolve().name
    options = SpeechOptions(
        feature_dim=parsed.feature_dim,
        repeats=parsed.repeats,
        test_below=parsed.test_below,
        val_below=parsed.val_below,
        hold_out=tuple(parsed.hold_out),
        seed=parsed.seed,
    )
    sentences = _import(parsed.folder, parsed.root, parsed.lexicon, corpus, options)
    Console().print(_summary(parsed.root, corpus, sentences))


def _parser() -> argparse.ArgumentParser:
    defaults = SpeechOptions()
    parser = argparse.ArgumentParser(
        description="Turn recorded words, {word}_{speaker}_{index}.wav, into a dataset in the T15 layout.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder of mono WAV files of one sample rate")
    parser.add_argument("--root", type=Path, required=True, help="dataset to write; must not exist")
    parser.add_argument("--lexicon", type=Path, required=True, help="pronunciation dictionary in CMUdict's format")
    parser.add_argument("--name", help="corpus name, first part of every session's name; the folder's if not given")
    parser.add_argument(
        "--feature-dim", type=int, default=defaults.feature_dim, help="features a bin: two stacked log-mel frames"
    )
    parser.add_argument(
        "--repeats", type=int, default=defaults.repeats, help="how often training hears a recording, in new sentences"
    )
    parser.add_argument("--test-below", type=int, default=defaults.test_below, help="recording indices below are test")
    parser.add_argument("--val-below", type=int, default=defaults.val_below, help="further indices below are val")
    parser.add_argument(
        "--hold-out",
        action="append",
        default=[],
        metavar="SPEAKER",
        help="keep all recordings of this speaker for test; may be given several times",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the order of the recordings")
    return parser


def _import(folder: Path, root: Path, lexicon_path: Path, corpus: str, options: SpeechOptions) -> list[Sentence]:
    """Build the dataset beside `root` and move it there whole."""
    if root.exists():
        raise ValueError(f"{root} exists already; choose another --root or remove it")
    sentences = compose_sentences(read_recordings(folder), options)
    vocabulary = sorted({recording.word for sentence in sentences for recording in sentence.recordings})
    lexicon = Lexicon.read(lexicon_path).subset(vocabulary)
    pronunciations = {word: lexicon[word] for word in lexicon}
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}."))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            bar = progress.add_task("sentences", total=len(sentences))
            write_dataset(partial, corpus, sentences, pronunciations, options, lambda: progress.advance(bar))
        lexicon.write(partial / "lexicon.txt")
        partial.chmod(0o755)
        os.rename(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sentences


def _summary(root: Path, corpus: str, sentences: Sequence[Sentence]) -> Table:
    table = Table(title=f"{root}: sentences (recordings, minutes)")
    table.add_column("session")
    for split in SPLITS:
        table.add_column(split, justify="right")
    for speaker in sorted({sentence.speaker for sentence in sentences}):
        cells = []
        for split in SPLITS:
            own = [s for s in sentences if (s.speaker, s.split) == (speaker, split)]
            recordings = len({(r.word, r.index) for s in own for r in s.recordings})
            minutes = sum(len(s.samples) / s.recordings[0].sample_rate for s in own) / 60
            cells.append(f"{len(own)} ({recordings}, {minutes:.1f})" if own else "-")
        table.add_row(f"{corpus}.{speaker}", *cells)
    table.caption = f"bins of {BIN_SECONDS * 1000:.0f} ms; test labels are in truth.jsonl only"
    return table


if __name__ == "__main__":
    run_main(main)
