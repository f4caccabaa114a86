"""A second language model over finished n-best lists: what `delayed_fusion` does at the end of a sentence only.

It cannot bring back a sentence that the beam has lost, but costs one pass of the network over short lists.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from mode_ssm.decode.hypothesis import Hypothesis
from mode_ssm.lm.scorer import BatchScorer

_TOGETHER = 64  # n-best lists scored in one call


def add_late_scores(
    nbests: Sequence[Sequence[Hypothesis]],
    scorer: BatchScorer,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Hypothesis]]:
    """The same lists with `late_lm_score`; a sentence is scored once in however many lists it stands.

    `progress(done, total)` is called as lists are done.
    """
    scored: list[list[Hypothesis]] = []
    for first in range(0, len(nbests), _TOGETHER):
        part = nbests[first : first + _TOGETHER]
        sentences = list(dict.fromkeys(hypothesis.words for nbest in part for hypothesis in nbest))
        log_probs = scorer.sentence_log_probs(sentences) if sentences else np.zeros(0)
        late = dict(zip(sentences, log_probs.tolist(), strict=True))
        scored += [[replace(h, late_lm_score=late[h.words]) for h in nbest] for nbest in part]
        if progress is not None:
            progress(len(scored), len(nbests))
    return scored


def reranked(nbest: Sequence[Hypothesis], *, lm_scale: float, weight: float) -> list[Hypothesis]:
    """An n-best list with late scores in its new order: of the language model score, which had been scaled by
    `lm_scale` in the search, the part `weight` is now the second model's.

    Confidences are the first pass'. Raises `ValueError` for a weight outside of 0 to 1 and for lists without late
    scores.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"the weight of the second language model must be from 0 to 1, not {weight}")
    moved = []
    for hypothesis in nbest:
        if hypothesis.late_lm_score is None:
            raise ValueError("hypotheses without late_lm_score cannot be ranked by it; add_late_scores gives them")
        change = 0.0
        if weight > 0 and hypothesis.score > -np.inf:
            change = lm_scale * weight * (hypothesis.late_lm_score - hypothesis.lm_score)
        moved.append(replace(hypothesis, score=hypothesis.score + change))
    return sorted(moved, key=lambda hypothesis: (-hypothesis.score, hypothesis.words))
