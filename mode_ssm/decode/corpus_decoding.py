"""Word search in two passes: what one language model for all finds tells the corpus of a sentence, whose model then
searches again or ranks what was found.

Shapes: n sentences, C corpora.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mode_ssm.decode.batch import decode_batch
from mode_ssm.decode.hypothesis import Hypothesis
from mode_ssm.decode.word_search import WordDecoder
from mode_ssm.lm.corpora import CorpusModels

Decode = Callable[[WordDecoder, Sequence[np.ndarray]], list[list[Hypothesis]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusWeights:
    """P(corpus) of every sentence (n, C): as the other sentences of its block say, and by its own signal as well."""

    given_others: np.ndarray
    posterior: np.ndarray


class CorpusDecoder:
    """Decodes sentences that may be of several corpora. `decode` does all; the other methods are its steps, for callers
    that spread the sentences over processes which see only their own.
    """

    def __init__(
        self,
        first: WordDecoder,
        corpora: CorpusModels,
        second: Mapping[str, WordDecoder] | None = None,
        *,
        purity: float = 0.95,
        causal: bool = False,
    ) -> None:
        """first: the decoder of the first pass, whose n-best lists tell the corpus; ten hypotheses are enough.

        second: by corpus the decoder that searches again where that corpus is the most probable; the others keep what
        the first pass found. Without any, the n-best lists are ranked anew by the mixture of all models, which cannot
        bring back a sentence that the first pass has lost. purity, causal: see `CorpusModels.given_others`. Raises
        `ValueError` for a decoder of an unknown corpus and for a first pass that takes no language model into account.
        """
        for name in second or ():
            if name not in corpora.names:
                raise ValueError(f"no language model of corpus {name!r}; there are {', '.join(corpora.names)}")
        if not first.options.lm_scale > 0:
            raise ValueError(f"corpus-aware decoding needs lm_scale above 0, not {first.options.lm_scale}")
        self.first = first
        self.corpora = corpora
        self.second = dict(second or {})
        self.purity = purity
        self.causal = causal

    def decode(
        self,
        inputs: Sequence[np.ndarray],
        blocks: Sequence[Hashable] | None = None,
        decode: Decode = decode_batch,
    ) -> list[list[Hypothesis]]:
        """The best word sequences of each sentence, best first, in the order of `inputs`, which the decoders take.

        blocks: what tells the block of each sentence, such as (session, number); sentences of a block come in the order
        in which they were spoken. None: each sentence is on its own. `decode` runs a decoder over many sentences.
        """
        nbests = decode(self.first, inputs)
        return self.second_pass(inputs, nbests, self.weights(self.evidence(nbests), blocks), decode)

    def evidence(self, nbests: Sequence[Sequence[Hypothesis]]) -> np.ndarray:
        """log P(signal | corpus) but for a constant of each sentence, from its n-best list: (n, C)."""
        options, rows = self.first.options, []
        for nbest in nbests:
            heard = [
                (options.acoustic_scale * h.acoustic_score + options.word_bonus * len(h.words)) / options.lm_scale
                for h in nbest
            ]
            rows.append(self.corpora.evidence([h.words for h in nbest], heard))
        return np.array(rows).reshape(len(nbests), len(self.corpora.names))

    def weights(self, evidence: np.ndarray, blocks: Sequence[Hashable] | None = None) -> CorpusWeights:
        """From the evidence (n, C) of all sentences; blocks as for `decode`."""
        if blocks is None:
            given_others = self.corpora.given_others(evidence, purity=0.0)
        elif len(blocks) != len(evidence):
            raise ValueError(f"{len(evidence)} sentences but {len(blocks)} blocks")
        else:
            given_others = np.empty_like(evidence)
            places_of: dict[Hashable, list[int]] = {}
            for place, block in enumerate(blocks):
                places_of.setdefault(block, []).append(place)
            for places in places_of.values():
                given_others[places] = self.corpora.given_others(
                    evidence[places], purity=self.purity, causal=self.causal
                )
        return CorpusWeights(given_others=given_others, posterior=self.corpora.posterior(given_others, evidence))

    def second_pass(
        self,
        inputs: Sequence[np.ndarray],
        nbests: Sequence[list[Hypothesis]],
        weights: CorpusWeights,
        decode: Decode = decode_batch,
    ) -> list[list[Hypothesis]]:
        """The final n-best lists, of the second search or the first one's in their new order."""
        if not self.second:
            return [self._ranked(nbest, row) for nbest, row in zip(nbests, weights.given_others, strict=True)]
        final = list(nbests)
        chosen = weights.posterior.argmax(axis=1)
        for corpus, name in enumerate(self.corpora.names):
            places = np.flatnonzero(chosen == corpus).tolist()
            if places and name in self.second:
                found = decode(self.second[name], [inputs[place] for place in places])
                for place, nbest in zip(places, found, strict=True):
                    final[place] = nbest
        return final

    def _ranked(self, nbest: list[Hypothesis], weights: np.ndarray) -> list[Hypothesis]:
        """The list with the mixture's lm_score in its new order; confidences are the first pass'."""
        delayed = self.first.delayed
        scale = self.first.options.lm_scale * (1.0 if delayed is None else 1.0 - delayed.weight)
        lm_scores = self.corpora.mixed_log_probs([hypothesis.words for hypothesis in nbest], weights).tolist()
        moved = []
        for hypothesis, lm_score in zip(nbest, lm_scores, strict=True):
            score = hypothesis.score
            if scale > 0 and score > -np.inf:
                score += scale * (lm_score - hypothesis.lm_score)
            moved.append(replace(hypothesis, lm_score=lm_score, score=score))
        return sorted(moved, key=lambda hypothesis: (-hypothesis.score, hypothesis.words))
