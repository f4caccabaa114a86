"""One language model per corpus, and which corpus a sentence is from.

Participants are cued with sentences of several kinds (conversation, 50 words, frequent words, Harvard-like, random
words), mostly one kind a block. A first pass proposes hypotheses; how probable each corpus finds them says which model
the second pass should use, the more so together with the other sentences of the block.

Shapes: C corpora, n sentences.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mode_ssm.lm.kenlm_scorer import open_scorer
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.lm.scorer import Scorer
from mode_ssm.lm.text_file import read_sentences

_RULED_OUT = -1e6


class CorpusModels:
    """Language models by the name of their corpus, with a prior. Arrays over corpora are in the order of `names`."""

    def __init__(self, models: Mapping[str, Scorer], prior: Mapping[str, float] | None = None) -> None:
        """`prior`: how often sentences are of each corpus, divided by its sum; equal shares if None.

        Raises `ValueError` without models, and unless the prior has one positive number a corpus.
        """
        if not models:
            raise ValueError("corpus-aware decoding needs at least one language model")
        self.names = tuple(models)
        self._models = tuple(models.values())
        shares = dict.fromkeys(models, 1.0) if prior is None else prior
        if shares.keys() != models.keys() or not all(0 < share < math.inf for share in shares.values()):
            raise ValueError(f"the prior needs a positive number for each of {', '.join(models)}, not {dict(shares)}")
        self.prior = np.array([float(shares[name]) for name in self.names])
        self.prior /= self.prior.sum()

    def log_probs(self, sentences: Sequence[Sequence[str]]) -> np.ndarray:
        """log P(words | corpus) of sentences with their ends: (C, n)."""
        found = [[model.sequence_log_prob(words) for words in sentences] for model in self._models]
        return np.array(found).reshape(len(self.names), len(sentences))

    def mixed_log_probs(self, sentences: Sequence[Sequence[str]], weights: np.ndarray) -> np.ndarray:
        """log sum over corpora of weight * P(words | corpus) of sentences (n,): each is of one corpus from its first
        word to its last. weights: (C,), P(corpus) before the signal of the sentence is known.
        """
        with np.errstate(divide="ignore"):
            return np.asarray(np.logaddexp.reduce(np.log(weights)[:, None] + self.log_probs(sentences), axis=0))

    def evidence(self, hypotheses: Sequence[Sequence[str]], log_weights: Sequence[float] | None = None) -> np.ndarray:
        """log P(signal | corpus) (C,) of one sentence but for a constant: log sum over hypotheses of weight P(words).

        hypotheses: the distinct word sequences of the first pass' n-best list; log_weights: log P(signal | words) of
        each, scaled as in the search and without any language model; equal if None.
        """
        if not hypotheses:
            raise ValueError("no hypotheses to infer a corpus from")
        weights = np.zeros(len(hypotheses)) if log_weights is None else np.asarray(log_weights, float)
        if len(weights) != len(hypotheses):
            raise ValueError(f"{len(hypotheses)} hypotheses but {len(weights)} weights")
        return np.asarray(np.logaddexp.reduce(weights + self.log_probs(hypotheses), axis=1))

    def posterior(self, given_others: np.ndarray, evidence: np.ndarray) -> np.ndarray:
        """P(corpus of each sentence | its signal and the others') (n, C) from `given_others` and `evidence` (n, C).

        What the others say, where no corpus can produce the sentence.
        """
        evidence = self._checked(evidence)
        with np.errstate(divide="ignore"):
            joint = np.log(given_others) + evidence
        return np.exp(joint - _log_sum(joint))

    def given_others(self, evidence: np.ndarray, *, purity: float = 0.95, causal: bool = False) -> np.ndarray:
        """P(corpus of sentence i | signals of the other sentences of its block) (n, C), given `evidence` (n, C) of all
        sentences of the block in order.

        A block has one corpus, drawn from the prior; each of its sentences is of it with probability `purity` and else
        drawn from the prior by itself: with purity 0 a sentence learns nothing from others. `causal`: sentence i sees
        the sentences before it only, as in live use.
        """
        if not 0 <= purity <= 1:
            raise ValueError(f"purity of a block must be from 0 to 1, not {purity}")
        evidence = self._checked(evidence)
        log_prior = np.log(self.prior)
        with np.errstate(divide="ignore"):
            of_block, apart = np.log(purity), np.log1p(-purity)
        # log P(signal of the sentence | corpus of the block)
        given_block = np.logaddexp(of_block + evidence, apart + _log_sum(evidence + log_prior))
        others = (given_block.cumsum(axis=0) if causal else given_block.sum(axis=0)) - given_block
        block = log_prior + others
        block -= _log_sum(block)
        return np.exp(np.logaddexp(of_block + block, apart + log_prior))

    def _checked(self, evidence: np.ndarray) -> np.ndarray:
        """Evidence relative to the best corpus. A sentence that no corpus can produce says nothing; a corpus that is
        ruled out stays a number.
        """
        if evidence.ndim != 2 or evidence.shape[1] != len(self.names) or np.isnan(evidence).any():
            raise ValueError(f"evidence must be numbers (sentences, {len(self.names)} corpora), not {evidence.shape}")
        highest = evidence.max(axis=1, keepdims=True, initial=-np.inf)
        evidence = np.where(np.isneginf(highest), 0.0, evidence)
        return np.maximum(evidence - np.where(np.isneginf(highest), 0.0, highest), _RULED_OUT)


def load_models(files: Iterable[str], vocabulary: Iterable[str], order: int) -> dict[str, Scorer]:
    """One language model a file, by the file's name without folder and ending.

    A file that ends in .txt is text, one sentence a line, to estimate a model from: of `order` and with a probability
    for every word of `vocabulary`. Any other is a model (see `open_scorer`). Raises `ValueError` naming a file that is
    missing, empty, or does not fit the vocabulary, and two of one name.
    """
    vocabulary = list(vocabulary)
    models: dict[str, Scorer] = {}
    for file in files:
        path = Path(file)
        name = path.stem
        if not path.is_file():
            raise ValueError(f"corpus {file}: no such file; expected text (.txt) or a model of scripts/train_lm.py")
        if name in models:
            raise ValueError(f"corpus {file}: another one is called {name!r} too; rename one of the files")
        if path.suffix != ".txt":
            models[name] = open_scorer(path)
            continue
        sentences = list(read_sentences(path))
        try:
            models[name] = NGramLM.estimate(sentences, order, vocabulary)
        except ValueError as error:
            raise ValueError(f"corpus {file}: {error}") from None
    return models


def _log_sum(values: np.ndarray) -> np.ndarray:
    return np.logaddexp.reduce(values, axis=1, keepdims=True)
