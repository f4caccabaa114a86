"""One language model per corpus, and which corpus a sentence is from.

Participants are cued with sentences of several kinds (conversation, 50 words, frequent words, Harvard-like, random
words), mostly one kind a block. A first pass proposes hypotheses; how probable each corpus finds them says which model
the second pass should use, the more so together with the other sentences of the block.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mode_ssm.lm.ngram_mixture import InterpolatedScorer
from mode_ssm.lm.scorer import Scorer

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
        log_probs = [[model.sequence_log_prob(words) for words in hypotheses] for model in self._models]
        return np.logaddexp.reduce(weights + np.array(log_probs), axis=1)

    def posterior(self, evidence: np.ndarray) -> np.ndarray:
        """P(corpus | signal) (C,) of a sentence for itself; the prior where no corpus can produce it."""
        return self.block_posteriors(evidence[None], purity=0.0)[0]

    def block_posteriors(self, evidence: np.ndarray, *, purity: float = 0.95, causal: bool = False) -> np.ndarray:
        """P(corpus of sentence i | signals of the block) (n, C) from `evidence` (n, C) of its sentences in order.

        A block has one corpus, drawn from the prior; each of its sentences is of it with probability `purity` and else
        drawn from the prior by itself. `causal`: sentence i sees the sentences before it only, as in live use.
        """
        if not 0 <= purity <= 1:
            raise ValueError(f"purity of a block must be from 0 to 1, not {purity}")
        if evidence.ndim != 2 or evidence.shape[1] != len(self.names) or np.isnan(evidence).any():
            raise ValueError(f"evidence must be numbers (sentences, {len(self.names)} corpora), not {evidence.shape}")
        # A sentence that no corpus can produce says nothing; a corpus that is ruled out stays a number.
        highest = evidence.max(axis=1, keepdims=True, initial=-np.inf)
        evidence = np.where(np.isneginf(highest), 0.0, evidence)
        evidence = np.maximum(evidence - np.where(np.isneginf(highest), 0.0, highest), _RULED_OUT)
        log_prior = np.log(self.prior)
        with np.errstate(divide="ignore"):
            of_block, apart = np.log(purity), np.log1p(-purity)
        # log P(signal of the sentence | corpus of the block)
        given_block = np.logaddexp(of_block + evidence, apart + _log_sum(evidence + log_prior))
        others = (given_block.cumsum(axis=0) if causal else given_block.sum(axis=0)) - given_block
        block = log_prior + others
        block -= _log_sum(block)
        joint = evidence + np.logaddexp(of_block + block, apart + log_prior)
        return np.exp(joint - _log_sum(joint))

    def mixture(self, posterior: np.ndarray, *, floor: float = 1e-3) -> Scorer:
        """The models interpolated with the posterior (C,); those below `floor` are left out."""
        kept = [index for index in range(len(self.names)) if posterior[index] >= min(floor, posterior.max())]
        if len(kept) == 1:
            return self._models[kept[0]]
        return InterpolatedScorer([self._models[i] for i in kept], [float(posterior[i]) for i in kept])

    def choice(self, posterior: np.ndarray) -> Scorer:
        """The model of the most probable corpus; of the first in order among equals."""
        return self._models[int(np.argmax(posterior))]


def _log_sum(values: np.ndarray) -> np.ndarray:
    return np.logaddexp.reduce(values, axis=1, keepdims=True)
