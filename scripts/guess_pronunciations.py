"""Guess how the words that a lexicon does not have are pronounced, and print lines for its dictionary.

    uv run scripts/guess_pronunciations.py --lexicon cmudict.dict zyxel blorfing
    uv run scripts/guess_pronunciations.py --lexicon cmudict.dict --text corpus.txt --output missing.txt
    cat cmudict.dict missing.txt > lexicon.txt

The model is learned from the lexicon itself: half a minute for CMUdict at the first time, then it is kept in the cache.
The number behind a guess is its share of the probability of all pronunciations considered. On held-out words of CMUdict
it is close to how often such guesses are right: read those below about 0.5 before you use them.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mode_ssm.compose import run_main
from mode_ssm.lm.g2p import ORDER, GraphemeToPhoneme
from mode_ssm.lm.g2p_guesses import GuessReport, guess_missing
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.vocab import normalise_sentence


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _parser()
    parsed = parser.parse_args(arguments)
    if not parsed.words and not parsed.text:
        parser.error("give words, or a file of them with --text")
    report, known = _guess(parsed)
    for path in (parsed.output, parsed.report):
        if path is not None:
            report.write(path)
    if parsed.output is None:
        print("\n".join(report.lines()))
    guessed = len({guess.word for guess in report.guesses})
    summary = f"{guessed} word(s) guessed, {len(report.failed)} failed, {known} in the lexicon already"
    print(summary, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="words to pronounce")
    parser.add_argument("--text", type=Path, action="append", default=[], help="UTF-8 file of words or sentences")
    parser.add_argument("--lexicon", type=Path, required=True, help="dictionary to learn from, e.g. CMUdict")
    parser.add_argument("--output", type=Path, help="dictionary file to write instead of printing")
    parser.add_argument("--report", type=Path, help="the same with scores; JSON where the name ends in .json")
    parser.add_argument("--alternates", type=int, default=1, help="most pronunciations of a word (default 1)")
    parser.add_argument(
        "--min-share", type=float, default=0.1, help="alternates after the first need this share (default 0.1)"
    )
    parser.add_argument("--order", type=int, default=ORDER, help=f"order of the n-gram model (default {ORDER})")
    return parser


def _guess(parsed: argparse.Namespace) -> tuple[GuessReport, int]:
    """The report, and how many of the words the lexicon has."""
    words = _words(parsed.words, parsed.text)
    console = Console(stderr=True)
    lexicon = Lexicon.load(parsed.lexicon)
    missing = [word for word in words if word not in lexicon]
    with console.status(f"learning from the spelling of {len(lexicon)} words, or reading what was learned"):
        model = GraphemeToPhoneme.load(lexicon, parsed.order)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        tracked = progress.track(missing, description="words")
        report = guess_missing(lexicon, tracked, model, alternates=parsed.alternates, min_share=parsed.min_share)
    return report, len(words) - len(missing)


def _words(given: Sequence[str], files: Iterable[Path]) -> list[str]:
    """Distinct words as the benchmark spells them, in the order in which they come."""
    lines = list(given)
    for path in files:
        try:
            lines += path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    words = list(dict.fromkeys(word for line in lines for word in normalise_sentence(line).split()))
    if not words:
        raise ValueError("no words: after normalising nothing is left of what was given")
    return words


if __name__ == "__main__":
    run_main(main)
