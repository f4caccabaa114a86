"""Emissions of a simulated phoneme recogniser, harder than a test and easier to make than a trained network.

Shapes: T frames, V classes.
"""

from dataclasses import dataclass

import numpy as np

from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.vocab import BLANK, CLASS_ID, NUM_CLASSES, PHONEMES, SIL

# Phonemes that are easily taken for each other share a line.
_ALIKE = """
    P B T D K G
    S Z SH ZH F V TH DH HH
    M N NG
    L R W Y ER
    IY IH EY EH AE AY
    AA AO AH UH OW UW AW OY
    CH JH SH T
"""
_BLANK_LIFT = 1.5  # what a blank has more than other wrong classes: networks doubt in its favour


@dataclass(frozen=True, slots=True)
class Utterance:
    words: tuple[str, ...]
    phonemes: tuple[int, ...]  # classes, SIL among them where it was spoken
    log_probs: np.ndarray  # (T, V) float32


def confusable() -> list[list[int]]:
    """For every class the classes that it is taken for."""
    groups = [[CLASS_ID[name] for name in line.split()] for line in _ALIKE.strip().splitlines()]
    table: list[list[int]] = [[] for _ in range(NUM_CLASSES)]
    for name in PHONEMES:
        own = CLASS_ID[name]
        table[own] = sorted({other for group in groups if own in group for other in group if other != own})
    return table


def speak(
    words: tuple[str, ...],
    lexicon: Lexicon,
    rng: np.random.Generator,
    *,
    doubt: float,
    noise: float,
    peak: float = 8.0,
    silence_dropped: float = 0.3,
    repeated: float = 0.35,
) -> Utterance:
    """Any pronunciation of each word; SIL after a word but for a part `silence_dropped` of the gaps; a phoneme lasts
    one frame, and with probability `repeated` a second, a third ...; up to three blanks after it.

    `doubt`: probability that another phoneme has about as much evidence as the right one. `noise`: standard deviation
    of all logits. `peak`: logit of the class that is spoken.
    """
    alike = confusable()
    phonemes: list[int] = []
    for word in words:
        pronunciations = lexicon[word]
        phonemes += pronunciations[rng.integers(len(pronunciations))]
        if rng.random() >= silence_dropped:
            phonemes.append(SIL)
    frames: list[tuple[int, int]] = [(BLANK, -1)] * int(rng.integers(2, 6))
    for phoneme in phonemes:
        if frames[-1][0] == phoneme:
            frames.append((BLANK, -1))
        rival = int(rng.choice(alike[phoneme])) if phoneme != SIL and rng.random() < doubt else -1
        frames.append((phoneme, rival))
        while rng.random() < repeated:
            frames.append((phoneme, rival))
        frames += [(BLANK, -1)] * int(rng.integers(0, 4))
    frames += [(BLANK, -1)] * int(rng.integers(2, 6))
    logits = rng.normal(0, noise, (len(frames), NUM_CLASSES))
    logits[:, BLANK] += _BLANK_LIFT
    shift = rng.normal(0, 1, len(frames))
    for t, (spoken, rival) in enumerate(frames):
        logits[t, spoken] += peak
        if rival >= 0:
            logits[t, rival] += peak + shift[t]
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return Utterance(words, tuple(phonemes), log_probs.astype(np.float32))
