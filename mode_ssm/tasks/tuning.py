"""How many word errors does the search make with other scales? A study decodes the same log-probabilities with many.

Shapes: N utterances, T frames, V classes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields, replace
from typing import NamedTuple

import numpy as np

from mode_ssm.decode.hypothesis import Hypothesis
from mode_ssm.decode.rescoring import reranked
from mode_ssm.decode.word_search import WordDecoder
from mode_ssm.decode.worker_pool import shared_object, worker_pool
from mode_ssm.lm.scorer import BatchScorer
from mode_ssm.metrics import word_errors

PIECE = 32  # utterances a worker takes at a time


@dataclass(frozen=True, order=True, slots=True)
class Setting:
    """What is tuned. The language model's scale is not: only the others' ratio to it matters.

    neural_weight: the second language model's part of the language model score, 0 where there is none.
    """

    acoustic_scale: float
    word_bonus: float
    blank_penalty: float
    neural_weight: float = 0.0

    @classmethod
    def of(cls, decoder: WordDecoder) -> "Setting":
        options, delayed = decoder.options, decoder.delayed
        weight = 0.0 if delayed is None else delayed.weight
        return cls(options.acoustic_scale, options.word_bonus, options.blank_penalty, weight)

    def decoder(self, decoder: WordDecoder) -> WordDecoder:
        """`decoder` with this setting; lexicon and language models are shared."""
        delayed = decoder.delayed
        return decoder.with_options(
            delayed=None if delayed is None else replace(delayed, weight=self.neural_weight),
            acoustic_scale=self.acoustic_scale,
            word_bonus=self.word_bonus,
            blank_penalty=self.blank_penalty,
        )


AXES = tuple(field.name for field in fields(Setting))


class Task(NamedTuple):
    """To decode `PIECE` utterances from `start` on."""

    setting: Setting
    start: int


Search = Callable[[Sequence[Task]], Iterator[list[list[Hypothesis]]]]


class Study:
    """Word errors of settings on one set of utterances. Made by `open_study`.

    trials: {setting: edits of every utterance (N,)}. axes: the values of each field of `Setting` to begin with, its
    range for random draws. default: the setting that a better one has to beat. planned: trials, with those to come.
    """

    def __init__(
        self,
        search: Search,
        references: Sequence[str],
        default: Setting,
        axes: Mapping[str, Sequence[float]],
        trials: Mapping[Setting, np.ndarray],
        on_trial: Callable[["Study"], None],
        rescoring: "Rescoring | None",
    ) -> None:
        self.default = default
        self.axes = {name: sorted(set(axes[name])) for name in AXES}
        self.trials = dict(trials)
        self.planned = len(self.trials)
        self.references = references
        self.lengths = np.array([word_errors(reference, "").reference_length for reference in references])
        self._search = search
        self._on_trial = on_trial
        self._rescoring = rescoring
        self._known_edits: dict[tuple[int, str], int] = {}

    def run(self, settings: Sequence[Setting]) -> None:
        """Decode with the settings that no trial has yet.

        Where the second language model comes last, settings that differ in its weight only share one search.
        """
        new = [setting for setting in dict.fromkeys(settings) if setting not in self.trials]
        by_search: dict[Setting, list[Setting]] = {}
        for setting in new:
            searched = setting if self._rescoring is None else replace(setting, neural_weight=0.0)
            by_search.setdefault(searched, []).append(setting)
        self.planned = len(self.trials) + len(new)
        starts = range(0, len(self.references), PIECE)
        pieces = self._search([Task(searched, start) for searched in by_search for start in starts])
        for group in by_search.values():
            lists = [nbest for _ in starts for nbest in next(pieces)]
            if self._rescoring is not None:
                lists = self._rescoring.scored(lists)
            for setting in group:
                best = lists if self._rescoring is None else self._rescoring.ordered(lists, setting.neural_weight)
                self.trials[setting] = np.array([self._edits(n, nbest[0].text) for n, nbest in enumerate(best)])
            self._on_trial(self)

    def wer(self, setting: Setting) -> float:
        return float(self.trials[setting].sum() / self.lengths.sum())

    def best(self, among: Iterable[Setting] | None = None, part: np.ndarray | None = None) -> Setting:
        """The setting with the fewest errors, of `among` if given, on the utterances `part` (N,) bool if given; of
        several the one nearest to the default."""
        counted = np.ones(len(self.lengths), bool) if part is None else part
        return min(
            self.trials if among is None else among,
            key=lambda setting: (int(self.trials[setting][counted].sum()), self.distance(setting), setting),
        )

    def distance(self, setting: Setting) -> float:
        """From the default: differences along the axes, each as a part of the axis, summed."""
        spans = [(values[-1] - values[0]) or 1.0 for values in self.axes.values()]
        differences = np.subtract(astuple(setting), astuple(self.default))
        return float(np.sum(np.abs(differences) / spans))

    def _edits(self, utterance: int, text: str) -> int:
        key = (utterance, text)
        if key not in self._known_edits:
            self._known_edits[key] = word_errors(self.references[utterance], text).edits
        return self._known_edits[key]


class Rescoring:
    """A second language model that comes last: a sentence is scored once in however many searches it is found."""

    def __init__(self, scorer: BatchScorer, lm_scale: float) -> None:
        self._scorer = scorer
        self._lm_scale = lm_scale
        self._log_probs: dict[tuple[str, ...], float] = {}

    def scored(self, nbests: Sequence[Sequence[Hypothesis]]) -> list[list[Hypothesis]]:
        for first in range(0, len(nbests), PIECE):
            found = dict.fromkeys(h.words for nbest in nbests[first : first + PIECE] for h in nbest)
            if new := [words for words in found if words not in self._log_probs]:
                self._log_probs.update(zip(new, self._scorer.sentence_log_probs(new).tolist(), strict=True))
        return [[replace(h, late_lm_score=self._log_probs[h.words]) for h in nbest] for nbest in nbests]

    def ordered(self, nbests: Sequence[Sequence[Hypothesis]], weight: float) -> list[list[Hypothesis]]:
        return [reranked(nbest, lm_scale=self._lm_scale, weight=weight) for nbest in nbests]


class Searcher:
    """Decodes a piece of the utterances with one setting after the other; worker processes share it."""

    def __init__(self, decoder: WordDecoder, log_probs: Sequence[np.ndarray]) -> None:
        self.log_probs = log_probs
        self._decoder = decoder
        self._setting = Setting.of(decoder)

    def __call__(self, task: Task) -> list[list[Hypothesis]]:
        if task.setting != self._setting:
            self._decoder, self._setting = task.setting.decoder(self._decoder), task.setting
        return [self._decoder.decode(utterance) for utterance in self.log_probs[task.start : task.start + PIECE]]


def _search_in_worker(task: Task) -> list[list[Hypothesis]]:
    searcher: Searcher = shared_object()
    return searcher(task)


@contextmanager
def open_study(
    decoder: WordDecoder,
    log_probs: Sequence[np.ndarray],
    references: Sequence[str],
    axes: Mapping[str, Sequence[float]],
    *,
    trials: Mapping[Setting, np.ndarray] | None = None,
    processes: int = 1,
    on_trial: Callable[[Study], None] = lambda study: None,
) -> Iterator[Study]:
    """A study that decodes `log_probs` (T, V) with variants of `decoder`, whose own setting is the default.

    `trials` of an earlier study are not decoded again. Worker processes share lexicon, language models and
    log-probabilities; the result does not depend on their number. `on_trial` is called after every search.
    """
    default, delayed = Setting.of(decoder), decoder.delayed
    rescoring, nbest = None, 1
    if delayed is not None and delayed.every == 0:
        rescoring, nbest = Rescoring(delayed.scorer, decoder.options.lm_scale), decoder.options.beam_size
        decoder = decoder.with_options(delayed=None)
    searcher = Searcher(decoder.with_options(nbest=nbest), log_probs)

    def study(search: Search) -> Study:
        return Study(search, references, default, axes, trials or {}, on_trial, rescoring)

    if processes == 1:
        yield study(lambda tasks: map(searcher, tasks))
    else:
        with worker_pool(searcher, processes) as pool:
            yield study(lambda tasks: pool.map(_search_in_worker, tasks))
