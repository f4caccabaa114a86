"""What a word search is asked for, and what it finds."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchOptions:
    """Sizes and scales of a word search.

    blank_penalty is taken off the blank's log-probability at every frame. silence_score is added to the log-probability
    of a labelling for each silence in it (at most one before and after every word); minus infinity forbids silence.
    After every frame the best beam_size hypotheses stay, of these only those whose score is within beam_threshold of
    the best. nbest: how many word sequences are returned.
    """

    beam_size: int = 100
    nbest: int = 10
    acoustic_scale: float = 1.0
    lm_scale: float = 1.0
    word_bonus: float = 0.0
    blank_penalty: float = 0.0
    silence_score: float = 0.0
    beam_threshold: float = math.inf

    def __post_init__(self) -> None:
        for key in ("beam_size", "nbest"):
            if not (isinstance(getattr(self, key), int) and getattr(self, key) >= 1):
                raise ValueError(f"{key} must be at least 1, not {getattr(self, key)}")
        if not 0 < self.acoustic_scale < math.inf:
            raise ValueError(f"acoustic_scale must be positive and finite, not {self.acoustic_scale}")
        if not self.beam_threshold > 0:
            raise ValueError(f"beam_threshold must be positive, not {self.beam_threshold}")
        for key in ("lm_scale", "word_bonus", "blank_penalty"):
            if not math.isfinite(getattr(self, key)):
                raise ValueError(f"{key} must be a finite number, not {getattr(self, key)}")
        if not self.silence_score < math.inf:
            raise ValueError(f"silence_score must be a number or minus infinity, not {self.silence_score}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Hypothesis:
    """A word sequence. score = acoustic_scale * acoustic_score + lm_scale * lm_score + word_bonus * len(words), where a
    second language model of weight w makes the middle term lm_scale * ((1 - w) * lm_score + w * late_lm_score).

    acoustic_score: log-probability of the frames, summed over pronunciations, silences and alignments (blank penalty
    and silence score included). lm_score: log-probability of the words and the sentence end; late_lm_score: by the
    second language model, if there is one. Of every word: the frame in which its first
    phoneme begins and the one after its last phoneme's, on the way through the search that had most mass; and the
    confidence, the part of the probability (softmax of the scores of all complete hypotheses in the beam) that belongs
    to those with the same word at an overlapping time.
    """

    words: tuple[str, ...]
    score: float
    acoustic_score: float
    lm_score: float
    start_frames: tuple[int, ...] = ()
    end_frames: tuple[int, ...] = ()
    confidences: tuple[float, ...] = ()
    late_lm_score: float | None = None

    @property
    def text(self) -> str:
        return " ".join(self.words)
