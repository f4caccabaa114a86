"""Word error rate with a language model for each corpus beside one for all, on a mixed set in blocks of one corpus.

    OMP_NUM_THREADS=1 uv run benchmarks/corpora.py [--json FILE] [--quick]

Seven corpora: conversation and read sentences of the data folder, and the simulator's five, of which 1,000 drawn
sentences are the training text (of 50-word, which has no more, 190). Test sentences stand in no training text; they are
spoken with about 20 % phoneme errors. CMUdict, 3-grams. Two sets of models:

- texts: one model of all texts together, beside one of each text;
- tuned: the models of each text and of all interpolated, with weights that suit tuning sentences of all corpora, beside
  for each corpus its own model and that of all, with weights that suit its tuning sentences.

Every way of decoding has the acoustic scale that is best for it on the tuning sentences, spoken likewise. In impure
blocks every fifth sentence is of another corpus. Intervals are paired bootstraps over sentences, times are the CPU's.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from decoding_emissions import Utterance, speak
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mode_ssm.data.simulator_text import CORPORA, SentenceSource
from mode_ssm.decode.corpus_decoding import CorpusDecoder
from mode_ssm.decode.ctc_beam import CtcWordDecoder
from mode_ssm.decode.hypothesis import Hypothesis
from mode_ssm.decode.word_search import WordDecoder
from mode_ssm.lm.corpora import CorpusModels
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.lm.ngram_mixture import InterpolatedScorer, interpolate, tune_weights
from mode_ssm.metrics import bootstrap_interval, edit_distance, paired_bootstrap_difference
from mode_ssm.vocab import BLANK, normalise_sentence

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
REAL = ("conversation", "read")
DIFFICULTY = {"doubt": 0.24, "noise": 1.95}  # about 20 % phoneme errors
BEAM, ORDER, BLOCK = 150, 3, 15  # BLOCK: sentences of a block
SCALES = (0.7, 0.9, 1.15, 1.4)  # of the acoustic log-probabilities; the language model's weight is one over it
CONSOLE = Console(width=150)
ONE, ORACLE = "one model", "true corpus"
# How `CorpusDecoder` decodes: does a second search follow; do blocks count, and only what went before?
WAYS: dict[str, dict[str, bool]] = {
    "by sentence": {"again": True, "blocks": False, "causal": False},
    "by block": {"again": True, "blocks": True, "causal": False},
    "by block so far": {"again": True, "blocks": True, "causal": True},
    "by sentence, ranked anew": {"again": False, "blocks": False, "causal": False},
    "by block, ranked anew": {"again": False, "blocks": True, "causal": False},
}


@dataclass(frozen=True, slots=True)
class Spoken:
    """An utterance, its corpus, and its block among pure and among impure ones."""

    utterance: Utterance
    corpus: str
    block: int = 0
    impure_block: int = 0


@dataclass(frozen=True, slots=True)
class Models:
    """The model of the first pass and those of the corpora; `any_corpus`: the first is one of the latter too."""

    first: NGramLM
    corpora: dict[str, NGramLM]
    any_corpus: bool


@dataclass
class Searches:
    """Searches of all ways, each done once: n-best lists and seconds by decoder and utterance."""

    found: dict[tuple[int, int], list[Hypothesis]] = field(default_factory=dict)
    seconds: dict[tuple[int, int], float] = field(default_factory=dict)
    spent: float = 0.0  # by the calls of one way

    def decode(self, decoder: WordDecoder, inputs: Sequence[np.ndarray]) -> list[list[Hypothesis]]:
        nbests = []
        for log_probs in inputs:
            key = id(decoder), id(log_probs)
            if key not in self.found:
                begin = time.process_time()
                self.found[key] = decoder.decode(log_probs)
                self.seconds[key] = time.process_time() - begin
            self.spent += self.seconds[key]
            nbests.append(self.found[key])
        return nbests


@dataclass(frozen=True, slots=True)
class Result:
    """edits by utterance; milliseconds a frame of the first pass, of telling the corpus, of the second pass."""

    edits: list[int]
    first_ms: float
    telling_ms: float = 0.0
    second_ms: float = 0.0
    corpus_right: float | None = None  # part of the utterances


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with lexicon/ and text/")
    parser.add_argument("--blocks", type=int, default=5, help=f"test blocks of {BLOCK} sentences a corpus, at most 5")
    parser.add_argument("--quick", action="store_true", help="few sentences, one scale: does it run?")
    arguments = parser.parse_args()
    tuning_size, blocks = (6, 1) if arguments.quick else (20, arguments.blocks)
    lexicon = Lexicon.load(arguments.data / "lexicon" / "cmudict.dict")
    rng = np.random.default_rng(0)
    train, tuning_text, testing_text = _texts(arguments.data, lexicon, rng, tuning_size, BLOCK * blocks)
    tuning = _spoken(tuning_text, lexicon, rng, len(tuning_text[REAL[0]]))
    testing = _spoken(testing_text, lexicon, rng, BLOCK)
    scales = SCALES[1:2] if arguments.quick else SCALES
    content: dict[str, Any] = {"phoneme_errors": _phoneme_errors(testing), "sentences": len(testing), "rows": []}
    for name, models in _models(train, tuning_text, lexicon).items():
        chosen = _best_scales(models, lexicon, tuning, scales)
        results = _results(models, lexicon, testing, chosen)
        content["rows"] += _show(name, testing, results, chosen, content["phoneme_errors"])
    content["ms_per_frame_word_mixture"] = _word_mixture_ms(models, lexicon, testing)
    CONSOLE.print(
        f"searching with two models mixed word by word: {content['ms_per_frame_word_mixture']:.2f} ms a frame"
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0


def _texts(
    data: Path, lexicon: Lexicon, rng: np.random.Generator, num_tuning: int, num_testing: int
) -> tuple[dict[str, list[str]], ...]:
    """Training, tuning and test sentences by corpus; no sentence in two of them."""
    train: dict[str, list[str]] = {}
    tuning: dict[str, list[str]] = {}
    testing: dict[str, list[str]] = {}
    for corpus in REAL:
        train[corpus] = _lines(data, corpus, "train")
        seen = set(train[corpus])
        fresh = [s for s in dict.fromkeys(_lines(data, corpus, "valid")) if s not in seen and s.count(" ") > 1]
        fresh = [s for s in fresh if all(word in lexicon for word in s.split())]
        order = rng.permutation(len(fresh))[: num_tuning + num_testing].tolist()
        tuning[corpus] = [fresh[index] for index in order[:num_tuning]]
        testing[corpus] = [fresh[index] for index in order[num_tuning:]]
    source = SentenceSource(rng)
    for kind in CORPORA:
        corpus = f"simulated {kind}"
        number = (190 if kind == "50-word" else 1000) + num_tuning + num_testing
        drawn = [normalise_sentence(source.draw(kind)) for _ in range(number)]
        held_out = drawn[-num_tuning - num_testing :]
        train[corpus], tuning[corpus], testing[corpus] = (
            drawn[: -len(held_out)],
            held_out[:num_tuning],
            held_out[num_tuning:],
        )
    return train, tuning, testing


def _lines(data: Path, corpus: str, split: str) -> list[str]:
    return (data / "text" / f"{corpus}.{split}.txt").read_text(encoding="utf-8").splitlines()


def _spoken(texts: dict[str, list[str]], lexicon: Lexicon, rng: np.random.Generator, block_size: int) -> list[Spoken]:
    """In blocks; into impure ones every fifth sentence of a block moves to the next block of another corpus."""
    spoken = []
    blocks = [(c, first) for c in texts for first in range(0, len(texts[c]), block_size)]
    for number, (corpus, first) in enumerate(blocks):
        elsewhere = (number + len(blocks) // len(texts)) % len(blocks)
        for place, sentence in enumerate(texts[corpus][first : first + block_size]):
            utterance = speak(tuple(sentence.split()), lexicon, rng, **DIFFICULTY)
            spoken.append(Spoken(utterance, corpus, number, elsewhere if place % 5 == 4 else number))
    return spoken


def _models(train: dict[str, list[str]], tuning: dict[str, list[str]], lexicon: Lexicon) -> dict[str, Models]:
    with CONSOLE.status("language models"):
        own = {corpus: NGramLM.estimate(text, ORDER, lexicon.words) for corpus, text in train.items()}
        pooled = NGramLM.estimate(itertools.chain.from_iterable(train.values()), ORDER, lexicon.words)
        all_tuning = list(itertools.chain.from_iterable(tuning.values()))
        weights = tune_weights([*own.values(), pooled], all_tuning)
        used = [(lm, w) for lm, w in zip([*own.values(), pooled], weights, strict=True) if w >= 1e-3]
        first = interpolate([lm for lm, _ in used], [w for _, w in used])
        corpora = {}
        for corpus, lm in own.items():
            with_all = tune_weights([lm, pooled], tuning[corpus])
            corpora[corpus] = interpolate([lm, pooled], with_all) if with_all[1] >= 1e-3 else lm
    return {"texts": Models(pooled, own, True), "tuned": Models(first, corpora, False)}


def _decoders(models: Models, lexicon: Lexicon, scale: float) -> tuple[CtcWordDecoder, dict[str, CtcWordDecoder]]:
    first, *others = (
        CtcWordDecoder(lexicon, lm, beam_size=BEAM, nbest=20, acoustic_scale=scale)
        for lm in (models.first, *models.corpora.values())
    )
    return first, dict(zip(models.corpora, others, strict=True))


def _best_scales(models: Models, lexicon: Lexicon, tuning: list[Spoken], scales: Sequence[float]) -> dict[str, float]:
    """For every way of decoding the acoustic scale with the fewest errors."""
    errors: dict[str, dict[float, int]] = {}
    for scale in track(scales, "tuning", console=CONSOLE):
        decoders = _decoders(models, lexicon, scale)
        for way, result in _decoded(models, decoders, tuning, impure=False, searches=Searches()).items():
            errors.setdefault(way, {})[scale] = sum(result.edits)
    return {way: min(by_scale, key=by_scale.__getitem__) for way, by_scale in errors.items()}


def _results(
    models: Models, lexicon: Lexicon, testing: list[Spoken], chosen: dict[str, float]
) -> dict[tuple[str, bool], Result]:
    """By way, and whether blocks are impure; that matters where blocks do."""
    results: dict[tuple[str, bool], Result] = {}
    for scale in track(sorted(set(chosen.values())), "test", console=CONSOLE):
        decoders, searches = _decoders(models, lexicon, scale), Searches()
        for impure in (False, True):
            for way, result in _decoded(models, decoders, testing, impure=impure, searches=searches).items():
                if chosen[way] == scale and (not impure or WAYS.get(way, {}).get("blocks")):
                    results[way, impure] = result
    return dict(sorted(results.items(), key=lambda item: [ONE, *WAYS, ORACLE].index(item[0][0])))


def _decoded(
    models: Models,
    decoders: tuple[CtcWordDecoder, dict[str, CtcWordDecoder]],
    spoken: list[Spoken],
    *,
    impure: bool,
    searches: Searches,
) -> dict[str, Result]:
    """The result of every way of decoding."""
    first, second = decoders
    candidates = {**models.corpora, "any": models.first} if models.any_corpus else models.corpora
    inputs = [item.utterance.log_probs for item in spoken]
    blocks = [item.impure_block if impure else item.block for item in spoken]
    frames = sum(map(len, inputs))
    first.decode(inputs[0])  # loads compiled code
    searches.spent = 0.0
    nbests = searches.decode(first, inputs)
    first_ms = 1e3 * searches.spent / frames
    evidence: np.ndarray | None = None
    results = {ONE: Result(_edits(nbests, spoken), first_ms)}
    for way, options in WAYS.items():
        decoder = CorpusDecoder(
            first, CorpusModels(candidates), second if options["again"] else None, causal=options["causal"]
        )
        begin = time.process_time()
        evidence = decoder.evidence(nbests) if evidence is None else evidence
        if way == next(iter(WAYS)):
            telling_ms = 1e3 * (time.process_time() - begin) / frames
        weights = decoder.weights(evidence, blocks if options["blocks"] else None)
        searches.spent, begin = 0.0, time.process_time()
        final = decoder.second_pass(inputs, nbests, weights, searches.decode)
        spent = searches.spent if options["again"] else time.process_time() - begin
        told = [tuple(candidates)[index] for index in weights.posterior.argmax(axis=1)]
        right = float(np.mean([name == item.corpus for name, item in zip(told, spoken, strict=True)]))
        results[way] = Result(_edits(final, spoken), first_ms, telling_ms, 1e3 * spent / frames, right)
    searches.spent = 0.0
    oracle = [searches.decode(second[item.corpus], [item.utterance.log_probs])[0] for item in spoken]
    results[ORACLE] = Result(_edits(oracle, spoken), 1e3 * searches.spent / frames)
    return results


def _word_mixture_ms(models: Models, lexicon: Lexicon, spoken: list[Spoken]) -> float:
    """CPU milliseconds a frame of a search with the models of both real corpora mixed, which is asked for each word."""
    mixture = InterpolatedScorer([models.corpora[corpus] for corpus in REAL], [0.5, 0.5])
    decoder = CtcWordDecoder(lexicon, mixture, beam_size=BEAM, acoustic_scale=SCALES[1])
    inputs = [item.utterance.log_probs for item in spoken if item.corpus in REAL][::BLOCK]
    begin = time.process_time()
    for log_probs in inputs:
        decoder.decode(log_probs)
    return 1e3 * (time.process_time() - begin) / sum(map(len, inputs))


def _edits(nbests: list[list[Hypothesis]], spoken: list[Spoken]) -> list[int]:
    return [edit_distance(item.utterance.words, nbest[0].words) for nbest, item in zip(nbests, spoken, strict=True)]


def _show(
    name: str,
    spoken: list[Spoken],
    results: dict[tuple[str, bool], Result],
    chosen: dict[str, float],
    phoneme_errors: float,
) -> list[dict[str, Any]]:
    lengths = np.array([len(item.utterance.words) for item in spoken])
    of = np.array([item.corpus for item in spoken])
    corpora, real = list(dict.fromkeys(of.tolist())), np.isin(of, REAL)
    title = f"{name}: {phoneme_errors:.1%} phoneme errors, {len(spoken)} sentences, {lengths.sum()} words"
    table = Table(title=f"{title}; WER in %")
    for column in ("way", "scale", "WER", "change", "change on both real corpora", "corpus right", "CPU ms a frame"):
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
    by_corpus = Table(title=f"{name}: WER in % by corpus")
    for column in ("way", *corpora):
        by_corpus.add_column(column, justify="left" if column == "way" else "right")
    rows = []
    baseline = np.array(results[ONE, False].edits)
    for (way, impure), result in results.items():
        edits = np.array(result.edits)
        changes = [
            paired_bootstrap_difference(baseline[part].tolist(), edits[part].tolist(), lengths[part].tolist())
            for part in (np.ones(len(of), bool), real)
        ]
        row = {
            "models": name,
            "way": way,
            "impure_blocks": impure,
            "acoustic_scale": chosen[way],
            "wer": edits.sum() / lengths.sum(),
            "wer_interval": bootstrap_interval(edits.tolist(), lengths.tolist()),
            "change": changes[0],
            "change_real": changes[1],
            "wer_by_corpus": {c: edits[of == c].sum() / lengths[of == c].sum() for c in corpora},
            "corpus_right": result.corpus_right,
            "ms_per_frame": [result.first_ms, result.telling_ms, result.second_ms],
        }
        rows.append(row)
        label = f"{way}, impure" if impure else way
        shown = ["{:+.2f} ({:+.2f} to {:+.2f})".format(*(100 * part for part in change)) for change in changes]
        right = "" if result.corpus_right is None else f"{result.corpus_right:.1%}"
        times = " + ".join(f"{ms:.3f}" for ms in row["ms_per_frame"] if ms)
        table.add_row(
            label, f"{chosen[way]}", f"{100 * row['wer']:.2f}", *(shown if way != ONE else "  "), right, times
        )
        by_corpus.add_row(label, *(f"{100 * wer:.2f}" for wer in row["wer_by_corpus"].values()))
    CONSOLE.print(table, by_corpus)
    return rows


def _phoneme_errors(spoken: list[Spoken]) -> float:
    errors = 0
    for item in spoken:
        best = item.utterance.log_probs.argmax(axis=1)
        collapsed = best[np.flatnonzero(np.diff(best, prepend=-1))]
        errors += edit_distance(item.utterance.phonemes, collapsed[collapsed != BLANK].tolist())
    return errors / sum(len(item.utterance.phonemes) for item in spoken)


if __name__ == "__main__":
    sys.exit(main())
