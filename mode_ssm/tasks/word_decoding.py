"""From what the network makes of trials to words: one pass of search, or two by corpus, over processes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mode_ssm.data.batch import TrialInfo
from mode_ssm.decode.batch import decode_batch
from mode_ssm.decode.corpus_decoding import CorpusDecoder, CorpusWeights
from mode_ssm.decode.hypothesis import Hypothesis
from mode_ssm.decode.transducer_words import TransducerWordDecoder
from mode_ssm.decode.word_search import WordDecoder
from mode_ssm.tasks.progress import progress_bar
from mode_ssm.tasks.sharding import Ranks

SAMPLE_SECONDS = 0.5  # of word search, which tell how long the rest will take
WORKER_SECONDS = 4.0  # until a worker process of the word search is at work


@dataclass(frozen=True, kw_only=True, slots=True)
class WordDecoding:
    """first: the search. corpora: the second pass, where there is one; by_block: whether the sentences of a block tell
    each other's corpus."""

    first: WordDecoder
    corpora: CorpusDecoder | None = None
    by_block: bool = True

    @property
    def needs_projected(self) -> bool:
        """Whether the search reads the transducer's projected frames and not the log-probabilities of CTC."""
        return isinstance(self.first, TransducerWordDecoder)


def decode_words_of(
    words: WordDecoding,
    trials: Sequence[TrialInfo],
    own: Sequence[TrialInfo],
    inputs: Sequence[np.ndarray],
    ranks: Ranks,
    *,
    progress: bool,
) -> list[list[Hypothesis]]:
    """Word sequences of this rank's trials `own`, best first; inputs (T, ...) are what the search takes.

    `trials` are those of all ranks: in a second pass the sentences of a block tell each other's corpus, whoever decodes
    them.
    """

    corpora = words.corpora

    def first_pass() -> tuple[list[list[Hypothesis]], dict[str, np.ndarray]]:
        with progress_bar("words", len(own), progress) as advance:
            nbests = decode_words(words.first, inputs, ranks.cores, advance)
        if corpora is None:
            return nbests, {}
        return nbests, dict(zip([info.name for info in own], corpora.evidence(nbests), strict=True))

    nbests, evidence = ranks.together(first_pass)
    if corpora is None:
        return nbests
    of_all = {name: row for part in ranks.gather_objects(evidence) for name, row in part.items()}
    spoken = sorted(trials, key=lambda info: (info.session, info.block, info.trial))
    blocks = [(info.session, info.block) for info in spoken] if words.by_block else None
    weights = corpora.weights(np.array([of_all[info.name] for info in spoken]), blocks)
    place = {info.name: number for number, info in enumerate(spoken)}
    rows = [place[info.name] for info in own]
    own_weights = CorpusWeights(given_others=weights.given_others[rows], posterior=weights.posterior[rows])

    def second_pass() -> list[list[Hypothesis]]:
        with progress_bar("words by corpus", len(own), progress) as advance:
            search = partial(decode_words, processes=ranks.cores, advance=advance)
            return corpora.second_pass(inputs, nbests, own_weights, search)

    return ranks.together(second_pass)


def decode_words(
    decoder: WordDecoder,
    inputs: Sequence[np.ndarray],
    processes: int = 1,
    advance: Callable[[int], None] = lambda count: None,
) -> list[list[Hypothesis]]:
    """Word sequences of each trial, best first; inputs (T, ...) are what `decoder.decode` takes.

    The first trials are decoded here, for half a second: workers start only where they are worth their start. What is
    found does not depend on it. `advance(1)` is called after every trial.
    """
    nbest: list[list[Hypothesis]] = []
    seconds, frames = 0.0, 0
    while len(nbest) < len(inputs) and (processes == 1 or seconds < SAMPLE_SECONDS):
        started = time.monotonic()
        nbest.append(decoder.decode(inputs[len(nbest)]))
        advance(1)
        if len(nbest) > 1:  # the first loads compiled code
            seconds += time.monotonic() - started
            frames += len(inputs[len(nbest) - 1])
    rest = inputs[len(nbest) :]
    if not rest:
        return nbest
    expected = seconds / max(1, frames) * sum(len(trial) for trial in rest)
    workers = max(1, min(processes, int(expected / WORKER_SECONDS)))
    return nbest + decode_batch(decoder, rest, workers, progress=lambda done, total: advance(1))
