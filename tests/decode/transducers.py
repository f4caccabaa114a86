"""Transducer heads to search with."""

import numpy as np

from mode_ssm.decode.joiner_tables import JoinerTables
from mode_ssm.vocab import NUM_CLASSES, SIL

LOUD = (1, 2, 3, SIL)  # labels that toy lexicons use


def random_tables(rng, *, context=2, d_joint=5):
    """Tables whose joiner likes the labels of toy lexicons."""
    bias = rng.normal(0, 1, NUM_CLASSES)
    bias[list(LOUD)] += 4
    return JoinerTables(
        rng.normal(0, 1, (NUM_CLASSES**context, d_joint)).astype(np.float32),
        rng.normal(0, 2, (NUM_CLASSES, d_joint)).astype(np.float32),
        bias.astype(np.float32),
    )


def spelling_tables():
    """A joiner whose projected frames are the logits themselves, whatever came before."""
    size = NUM_CLASSES
    return JoinerTables(np.zeros((size, size)), 1000.0 * np.eye(size), np.zeros(size))


def spoken(*frames):
    """Projected frames (T, J) for `spelling_tables` in which every label of a frame is as likely as the blank."""
    logits = np.full((len(frames), NUM_CLASSES), -6.0)
    logits[:, 0] = 0.0
    for t, labels in enumerate(frames):
        logits[t, list(labels)] = 0.0
    return np.arctanh(logits / 1000).astype(np.float32)
