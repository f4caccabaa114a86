"""Word error rate with a neural language model after the search and inside it, beside the 3-gram alone.

    OMP_NUM_THREADS=1 uv run benchmarks/rescoring.py runs/lm_small/best [--json FILE]

CMUdict, a 3-gram over the training sentences of both corpora in the data folder, sentences of the conversation corpus'
validation file spoken with about 20 % phoneme errors. Scales, word bonus and the network's weight are chosen for each
way on other sentences of that file. The network must not have seen the file either; `experiment=lm_small` with
`text.train` and `text.valid` made of the training files alone sees to it. Intervals are paired bootstraps.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from decoding_emissions import Utterance, speak
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mode_ssm.decode.batch import decode_batch
from mode_ssm.decode.ctc_beam import CtcWordDecoder
from mode_ssm.decode.delayed_fusion import DelayedFusion
from mode_ssm.decode.hypothesis import Hypothesis
from mode_ssm.decode.rescoring import add_late_scores, reranked
from mode_ssm.inference_text import open_batch_scorer
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.lm.scorer import BatchScorer
from mode_ssm.metrics import bootstrap_interval, edit_distance, paired_bootstrap_difference

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
DIFFICULTIES = {"10 %": {"doubt": 0.14, "noise": 1.7}, "20 %": {"doubt": 0.24, "noise": 1.95}}  # by phoneme errors
CONSOLE = Console(width=120)
SCALES = (0.75, 1.0, 1.3, 1.7)
BONUSES = (-2.0, -1.0, 0.0, 1.0)
WEIGHTS = (0.2, 0.35, 0.5, 0.65, 0.8)
NBEST = 100


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen on the tuning sentences. weight: the network's; every: frames between its turns."""

    acoustic_scale: float
    word_bonus: float
    weight: float = 0.0
    every: int | None = None  # None: after the search, on n-best lists


@dataclass(frozen=True, slots=True)
class Result:
    edits: list[int]  # by sentence
    ms_per_frame: float


class Bench:
    """The searches that are compared, over any set of utterances."""

    def __init__(self, decoder: CtcWordDecoder, neural: BatchScorer, processes: int) -> None:
        self.decoder, self.processes = decoder, processes
        self.neural = Remembering(neural)

    def decode(self, choice: Choice, utterances: Sequence[Utterance]) -> list[list[Hypothesis]]:
        decoder = self.decoder
        if choice.every is not None:
            decoder = decoder.with_options(delayed=DelayedFusion(self.neural.model, choice.weight, choice.every))
        decoder = decoder.with_options(acoustic_scale=choice.acoustic_scale, word_bonus=choice.word_bonus)
        return decode_batch(decoder, [utterance.log_probs for utterance in utterances], self.processes)

    def result(self, choice: Choice, utterances: Sequence[Utterance]) -> Result:
        begin = time.perf_counter()
        nbests = self.decode(choice, utterances)
        if choice.every is None and choice.weight > 0:
            nbests = self.ranked(add_late_scores(nbests, self.neural.model), choice.weight)
        elapsed = time.perf_counter() - begin
        frames = sum(len(utterance.log_probs) for utterance in utterances)
        return Result(errors_of(nbests, utterances), 1e3 * elapsed / frames)

    def ranked(self, nbests: Sequence[Sequence[Hypothesis]], weight: float) -> list[list[Hypothesis]]:
        lm_scale = self.decoder.options.lm_scale
        return [reranked(nbest, lm_scale=lm_scale, weight=weight) for nbest in nbests]

    def tuned(self, utterances: Sequence[Utterance]) -> dict[str, Choice]:
        """The best settings of each way; the 3-gram's come from the same searches as those of the n-best lists."""
        errors: dict[Choice, int] = {}
        points = list(itertools.product(SCALES, BONUSES))
        for scale, bonus in track(points, "tuning on n-best lists", console=CONSOLE):
            nbests = self.decode(Choice(scale, bonus), utterances)
            errors[Choice(scale, bonus)] = sum(errors_of(nbests, utterances))
            late = add_late_scores(nbests, self.neural)
            for weight in WEIGHTS:
                errors[Choice(scale, bonus, weight)] = sum(errors_of(self.ranked(late, weight), utterances))
        alone = min((choice for choice in errors if choice.weight == 0), key=errors.__getitem__)
        after = min(errors, key=errors.__getitem__)
        inside: dict[Choice, int] = {}
        near = [(s, after.word_bonus, w) for s in _around(SCALES, after.acoustic_scale) for w in (after.weight,)]
        near += [(after.acoustic_scale, after.word_bonus, w) for w in _around(WEIGHTS, after.weight)]
        for scale, bonus, weight in track(list(dict.fromkeys(near)), "tuning inside the search", console=CONSOLE):
            choice = Choice(scale, bonus, weight, every=15)
            inside[choice] = self.errors(choice, utterances)
        best = min(inside, key=inside.__getitem__)
        return {
            "3-gram": alone,
            f"network on {NBEST}-best lists": after,
            **{f"network every {n} frames": replace(best, every=n) for n in (30, 15)},
        }

    def errors(self, choice: Choice, utterances: Sequence[Utterance]) -> int:
        return sum(errors_of(self.decode(choice, utterances), utterances))


class Remembering:
    """Whole sentences are scored once in all of the tuning."""

    def __init__(self, model: BatchScorer) -> None:
        self.model = model
        self._known: dict[tuple[str, ...], float] = {}

    def sentence_log_probs(self, sentences: Sequence[Sequence[str]]) -> np.ndarray:
        new = [words for words in dict.fromkeys(map(tuple, sentences)) if words not in self._known]
        if new:
            self._known.update(zip(new, self.model.sentence_log_probs(new).tolist(), strict=True))
        return np.array([self._known[tuple(words)] for words in sentences])


def sentences_of(data: Path, corpus: str, split: str) -> list[str]:
    return (data / "text" / f"{corpus}.{split}.txt").read_text(encoding="utf-8").splitlines()


def errors_of(nbests: Sequence[Sequence[Hypothesis]], utterances: Sequence[Utterance]) -> list[int]:
    return [edit_distance(u.words, nbest[0].words) for nbest, u in zip(nbests, utterances, strict=True)]


def _around(grid: Sequence[float], value: float) -> list[float]:
    place = grid.index(value)
    return list(grid[max(0, place - 1) : place + 2])


def main() -> int:
    arguments = _parser().parse_args()
    lexicon = Lexicon.load(arguments.data / "lexicon" / "cmudict.dict")
    with CONSOLE.status("3-gram model"):
        train = [s for corpus in ("conversation", "read") for s in sentences_of(arguments.data, corpus, "train")]
        lm = NGramLM.estimate(train, 3, lexicon.words)
    spoken = dict.fromkeys(tuple(s.split()) for s in sentences_of(arguments.data, "conversation", "valid"))
    known = [words for words in spoken if len(words) > 2 and all(word in lexicon for word in words)]
    rng = np.random.default_rng(arguments.seed)
    chosen = [known[index] for index in rng.permutation(len(known))[: arguments.tuning + arguments.sentences]]
    utterances = [speak(words, lexicon, rng, **DIFFICULTIES[arguments.difficulty]) for words in chosen]
    tuning, testing = utterances[: arguments.tuning], utterances[arguments.tuning :]
    decoder = CtcWordDecoder(lexicon, lm, beam_size=arguments.beam, nbest=NBEST)
    bench = Bench(decoder, open_batch_scorer(arguments.neural), arguments.processes)
    choices = bench.tuned(tuning)
    results = {
        name: bench.result(choice, testing) for name, choice in track(choices.items(), "testing", console=CONSOLE)
    }
    content = _figures(results, choices, testing)
    _show(content)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({**content, "arguments": vars(arguments)}, indent=2, default=str) + "\n")
    return 0


def _figures(results: dict[str, Result], choices: dict[str, Choice], testing: Sequence[Utterance]) -> dict[str, Any]:
    lengths = [len(utterance.words) for utterance in testing]
    alone = results["3-gram"]
    after = results[f"network on {NBEST}-best lists"]
    rows: dict[str, Any] = {}
    for name, result in results.items():
        rate = sum(result.edits) / sum(lengths)
        rows[name] = {
            "wer": rate,
            "interval": bootstrap_interval(result.edits, lengths),
            "relative_to_3gram": rate * sum(lengths) / sum(alone.edits) - 1,
            "minus_3gram": paired_bootstrap_difference(alone.edits, result.edits, lengths),
            "minus_lists": paired_bootstrap_difference(after.edits, result.edits, lengths),
            "ms_per_frame": result.ms_per_frame,
            "choice": str(choices[name]),
        }
    return {"sentences": len(testing), "words": sum(lengths), "rows": rows}


def _show(content: dict[str, Any]) -> None:
    table = Table(title=f"{content['sentences']} sentences, {content['words']} words; 95 % intervals")
    for column in ("", "WER", "interval", "relative", "minus the 3-gram's", "minus the lists'", "ms a frame"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in content["rows"].items():
        differences = (row["minus_3gram"], row["minus_lists"])
        changes = [f"{change.value:+.2%} ({change.low:+.2%}, {change.high:+.2%})" for change in differences]
        interval = f"{row['interval'].low:.1%}-{row['interval'].high:.1%}"
        table.add_row(
            name, f"{row['wer']:.2%}", interval, f"{row['relative_to_3gram']:+.1%}", *changes,
            f"{row['ms_per_frame']:.2f}",
        )  # fmt: skip
        CONSOLE.print(f"{name}: {row['choice']}", highlight=False)
    CONSOLE.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("neural", help="a checkpoint of task=language_model, or hf:<name or folder>")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with lexicon/ and text/")
    parser.add_argument("--difficulty", choices=DIFFICULTIES, default="20 %", help="phoneme errors")
    parser.add_argument("--sentences", type=int, default=400, help="to test on")
    parser.add_argument("--tuning", type=int, default=120, help="sentences to tune on")
    parser.add_argument("--beam", type=int, default=300)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
