"""Estimate an n-gram language model from text, one sentence a line, and write it mapped or as ARPA.

    uv run scripts/train_lm.py conversation.txt read.txt --order 3 --lexicon cmudict.dict --output lm.ngram
    uv run scripts/train_lm.py *.txt --order 4 --prune 0 0 1 --arpa lm.arpa.gz --valid held_out.txt
    uv run scripts/train_lm.py conversation.txt read.txt --interpolate tuning.txt --output lm.ngram --eight-bit

Interpolated modified Kneser-Ney. Lines are normalised as sentences are for the word error rate: lower case, letters,
hyphens and apostrophes. A mapped model opens at once and is shared by all processes that read it.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from mode_ssm.compose import run_main
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.lm.ngram_mixture import interpolate, tune_weights
from mode_ssm.lm.ngram_pruning import entropy_prune
from mode_ssm.lm.text_file import read_lines, read_sentences, read_texts


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = _parser().parse_args(arguments)
    if parsed.output is None and parsed.arpa is None and not parsed.valid:
        raise ValueError("nothing to write: give --output, --arpa, or --valid to see a perplexity only")
    if parsed.interpolate and len(parsed.texts) < 2:
        raise ValueError("--interpolate mixes one model a text; give two texts or more")
    began = perf_counter()
    vocabulary = _vocabulary(parsed)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[now]}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("sentences", total=sum(_size(path) for path in parsed.texts), now="")
        lm = _estimate(parsed, vocabulary, progress, task)
        if parsed.entropy is not None:
            progress.update(task, now="pruning")
            lm = entropy_prune(lm, parsed.entropy)
        progress.update(task, now="writing")
        if parsed.arpa is not None:
            lm.write_arpa(parsed.arpa)
        moved = lm.save(parsed.output, eight_bit=parsed.eight_bit) if parsed.output is not None else 0.0
        progress.update(task, now="done")
    console = Console()
    console.print(_summary(lm, parsed, moved, perf_counter() - began), soft_wrap=True, highlight=False)
    if parsed.valid:
        console.print(_perplexities(lm, parsed.valid))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, nargs="+", help="UTF-8 text, one sentence a line, plain or .gz")
    parser.add_argument("--order", type=int, default=3, help="words an n-gram, 1 to 6 (default 3)")
    parser.add_argument(
        "--prune",
        type=int,
        nargs="+",
        default=[],
        metavar="COUNT",
        help="by order, the largest count with which an n-gram is left out; the first is 0, the last for all further "
        "orders: 0 0 1 leaves out 3-grams and longer that occur once",
    )
    parser.add_argument(
        "--entropy",
        type=float,
        metavar="THRESHOLD",
        help="leave out n-grams whose loss raises the model's perplexity by less than this part, such as 1e-8",
    )
    parser.add_argument(
        "--like-lmplz",
        action="store_true",
        help="the numbers of KenLM's lmplz, with <unk>: what other toolkits expect of an ARPA file",
    )
    known = parser.add_mutually_exclusive_group()
    known.add_argument("--lexicon", type=Path, help="pronunciation dictionary; each of its words gets a probability")
    known.add_argument("--vocabulary", type=Path, help="a word a line, instead of a lexicon")
    parser.add_argument("--output", type=Path, help="mapped model to write")
    parser.add_argument("--eight-bit", action="store_true", help="8-bit probabilities in the mapped model")
    parser.add_argument("--arpa", type=Path, help="ARPA file to write; compressed where it ends in .gz")
    parser.add_argument(
        "--interpolate",
        type=Path,
        nargs="+",
        metavar="TEXT",
        help="estimate one model a text and mix them with the weights that suit this held-out text best",
    )
    parser.add_argument("--valid", type=Path, nargs="+", default=[], help="text to measure perplexity on")
    return parser


def _vocabulary(parsed: argparse.Namespace) -> list[str] | None:
    if parsed.lexicon is not None:
        return list(Lexicon.read(parsed.lexicon).words)
    if parsed.vocabulary is not None:
        return [word for line in read_lines(parsed.vocabulary) for word in line.split()]
    return None


def _estimate(parsed: argparse.Namespace, vocabulary: list[str] | None, progress: Progress, task: TaskID) -> NGramLM:
    def sentences(paths: Sequence[Path]) -> Iterator[str]:
        for path in paths:
            progress.update(task, now=path.name)
            yield from read_sentences(path, partial(progress.advance, task))
        progress.update(task, now=f"estimating {parsed.order}-grams")

    def estimate(paths: Sequence[Path]) -> NGramLM:
        return NGramLM.estimate(
            sentences(paths), parsed.order, vocabulary, prune=parsed.prune, like_lmplz=parsed.like_lmplz
        )

    if not parsed.interpolate:
        return estimate(parsed.texts)
    models = [estimate([path]) for path in parsed.texts]
    progress.update(task, now="tuning weights")
    parsed.weights = tune_weights(models, read_texts(parsed.interpolate))
    progress.update(task, now="interpolating")
    return interpolate(models, parsed.weights)


def _size(path: Path) -> int:
    """Characters, about; a compressed text is taken as four times its file."""
    return path.stat().st_size * (4 if path.suffix == ".gz" else 1)


def _summary(lm: NGramLM, parsed: argparse.Namespace, moved: float, seconds: float) -> str:
    numbers = (f"{arcs.stop - arcs.start:,} {k}-grams" for k, arcs in enumerate(lm.automaton().arcs_by_order(), 1))
    lines = [f"{', '.join(numbers)} of {', '.join(path.name for path in parsed.texts)} in {seconds:.1f} s"]
    if parsed.interpolate:
        weights = (f"{weight:.3f} {path.name}" for weight, path in zip(parsed.weights, parsed.texts, strict=True))
        lines.append(f"weights: {', '.join(weights)}")
    for path in filter(None, (parsed.output, parsed.arpa)):
        lines.append(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    if moved:
        lines.append(f"8 bits move no log-probability by more than {moved:.3f}")
    return "\n".join(lines)


def _perplexities(lm: NGramLM, paths: Sequence[Path]) -> Table:
    table = Table(title="perplexity, unknown words left out")
    for name in ("text", "perplexity", "words", "unknown %", "most frequent unknown words"):
        table.add_column(name, justify="left" if name in ("text", "most frequent unknown words") else "right")
    for path in paths:
        found = lm.perplexity(read_sentences(path))
        unknown = ", ".join(f"{word} {count}" for word, count in found.most_unknown[:5])
        table.add_row(
            path.name, f"{found.perplexity:.2f}", f"{found.num_words:,}", f"{100 * found.unknown_rate:.2f}", unknown
        )
    return table


if __name__ == "__main__":
    run_main(main)
