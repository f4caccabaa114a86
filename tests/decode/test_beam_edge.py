"""Where the compiled search and its reference keep different hypotheses: among equals at the end of the beam only.

With real n-grams, homophones and words of equal counts have equal scores, and a beam that ends between them has to
choose; the two searches list hypotheses in different orders, and round differently.
"""

import math

import numpy as np
from scorers import Walked

from mode_ssm.decode.ctc_beam import CtcWordDecoder
from mode_ssm.decode.ctc_beam_reference import _Search
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.vocab import NUM_CLASSES, SIL

WIDE, EQUAL = 10**6, 1e-9
CASES = 150


class Watched(_Search):
    """The reference, which notes whether a beam ever ended between hypotheses of equal score."""

    def __init__(self, decoder):
        super().__init__(decoder)
        self.tied = False
        self._everything = decoder.with_options(beam_size=WIDE, beam_threshold=math.inf)

    def _merge_and_prune(self, history, node, blank, label):
        decoder, self._decoder = self._decoder, self._everything
        super()._merge_and_prune(history, node, blank, label)
        self._decoder = decoder
        score = decoder.options.acoustic_scale * np.logaddexp(self._blank, self._label)
        score = np.sort(score + self._histories.fused(self._history) + decoder.look_ahead[self._node])[::-1]
        size, threshold = decoder.options.beam_size, decoder.options.beam_threshold
        self.tied |= len(score) > size and score[size - 1] - score[size] < EQUAL
        self.tied |= bool(np.any(np.abs(score - (score[:1] - threshold)) < EQUAL))
        super()._merge_and_prune(self._history, self._node, self._blank, self._label)


def random_case(seed):
    rng = np.random.default_rng(seed)
    phones = rng.integers(2, 6)
    lexicon = Lexicon(
        {
            f"w{i}": [tuple(rng.integers(1, phones, rng.integers(1, 4))) for _ in range(rng.integers(1, 3))]
            for i in range(rng.integers(1, 25))
        }
    )
    sentences = [" ".join(rng.choice(lexicon.words, rng.integers(1, 6))) for _ in range(20)]
    lm = Walked(NGramLM.estimate(sentences, int(rng.integers(1, 5)), lexicon.words))
    decoder = CtcWordDecoder(
        lexicon,
        lm,
        nbest=WIDE,
        beam_size=int(rng.choice([1, 3, 5, 20, 60, 150])),
        beam_threshold=float(rng.choice([math.inf, 5.0])),
        acoustic_scale=float(rng.choice([1.0, 0.4])),
        lm_scale=float(rng.choice([0.3, 1.0, 1.7])),
        word_bonus=float(rng.choice([0.0, 0.9, -0.5])),
    )
    log_probs = rng.normal(0, 2, (rng.integers(1, 31), NUM_CLASSES))
    log_probs[:, [1, 2, 3, 4, SIL]] += 3
    log_probs -= np.logaddexp.reduce(log_probs, axis=1, keepdims=True)
    if rng.random() < 0.5:
        log_probs[rng.random(log_probs.shape) < 0.02] = -np.inf
    return decoder, log_probs


def test_with_real_n_grams_the_search_equals_its_reference_but_for_ties_at_the_end_of_the_beam():
    tied = 0
    for seed in range(CASES):
        decoder, log_probs = random_case(seed)
        reference = Watched(decoder)
        for frame in log_probs:
            reference.step(frame)
        if reference.tied:
            tied += 1
            continue
        found = {hypothesis.words: hypothesis for hypothesis in decoder.decode(log_probs)}
        expected = {hypothesis.words: hypothesis for hypothesis in reference.finalize()}
        assert found.keys() == expected.keys(), seed
        for words, hypothesis in expected.items():
            if hypothesis.score > -math.inf:
                assert abs(found[words].score - hypothesis.score) < EQUAL, seed
                assert abs(found[words].acoustic_score - hypothesis.acoustic_score) < EQUAL, seed
    assert CASES / 10 < tied < CASES / 2  # both kinds are there
