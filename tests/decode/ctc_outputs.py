"""CTC log-probabilities to search in, and the score of every word sequence by summing over all frame labellings."""

import itertools
import math
from collections import defaultdict

import numpy as np
from word_sequences import brute_force, phones_of

from mode_ssm.vocab import BLANK, NUM_CLASSES, SIL


def random_log_probs(rng, frames, sharpness=2.0):
    logits = rng.normal(0, sharpness, (frames, NUM_CLASSES))
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def emissions(labels, *, confidence=0.99):
    """Log-probabilities that spell out one frame labelling."""
    probs = np.full((len(labels), NUM_CLASSES), (1 - confidence) / (NUM_CLASSES - 1))
    probs[np.arange(len(labels)), labels] = confidence
    return np.log(probs).astype(np.float32)


def collapse(labels):
    merged = [label for label, _ in itertools.groupby(labels)]
    return tuple(label for label in merged if label != BLANK)


def label_string_probs(log_probs, classes):
    """P(label string) by summing over all frame labellings."""
    total = defaultdict(float)
    for labels in itertools.product(classes, repeat=len(log_probs)):
        total[collapse(labels)] += math.exp(sum(log_probs[t, c] for t, c in enumerate(labels)))
    return total


def ctc_brute_force(log_probs, lexicon, lm, *, blank_penalty=0.0, silence_score=0.0, **scales):
    log_probs = log_probs.astype(np.float64)
    log_probs[:, BLANK] -= blank_penalty
    probs = label_string_probs(log_probs, [BLANK, SIL, *phones_of(lexicon)])

    def log_prob(labels):
        silences = labels.count(SIL)
        return math.log(probs[labels]) + (silences * silence_score if silences else 0.0)

    return brute_force(probs, log_prob, lexicon, lm, **scales)
