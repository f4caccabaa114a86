"""Word decoders behind one interface: ours and flashlight-text, each with the settings that are its own."""

import ctypes
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from mode_ssm.decode.ctc_beam import CtcWordDecoder
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.vocab import BLANK, NUM_CLASSES, SIL

Pruning = tuple[int, float]  # classes tried at every frame, and how far a hypothesis may be from the best
Decode = Callable[[np.ndarray], Sequence[str]]  # (T, V) float32 -> words


@dataclass(frozen=True, slots=True)
class Models:
    """Files that every decoder can read."""

    lexicon: Path
    mapped: Path  # our n-gram model
    arpa: Path  # the same one


class Ours:
    name = "mode_ssm"
    scales = (0.5, 0.7, 1.0, 1.4)  # acoustic scale: the language model's weight is one over it
    bonuses = (0.0, 1.0, 2.0)
    prunings: tuple[Pruning, ...] = ((NUM_CLASSES, math.inf),)

    def __init__(self, models: Models) -> None:
        self.lexicon = Lexicon.load(models.lexicon)
        self.lm = NGramLM.load(models.mapped)

    def decoder(self, beam: int, scale: float, bonus: float) -> CtcWordDecoder:
        return CtcWordDecoder(self.lexicon, self.lm, beam_size=beam, acoustic_scale=scale, word_bonus=bonus)

    def prepare(self, beam: int, scale: float, bonus: float, pruning: Pruning) -> Decode:
        decoder = self.decoder(beam, scale, bonus)
        return lambda log_probs: decoder.decode(log_probs)[0].words


class Flashlight:
    """flashlight-text: every pronunciation stands in its lexicon with and without the silence after it, homophones by
    falling unigram, since a node of its trie keeps six.
    """

    name = "flashlight-text"
    scales = Ours.scales
    bonuses = Ours.bonuses
    prunings: tuple[Pruning, ...] = ((NUM_CLASSES, math.inf), (15, 50.0), (15, 25.0), (10, 25.0))

    def __init__(self, models: Models) -> None:
        library: Any = import_module("flashlight.lib.text.decoder")
        dictionary: Any = import_module("flashlight.lib.text.dictionary").Dictionary()
        kenlm: Any = import_module("flashlight.lib.text.decoder.kenlm")
        self.library = library
        lexicon = Lexicon.load(models.lexicon)
        self.words = lexicon.words
        for word in self.words:
            dictionary.add_entry(word)
        dictionary.add_entry("<unk>")
        self.unknown = dictionary.get_index("<unk>")
        dictionary.set_default_index(self.unknown)
        self.lm = kenlm.KenLM(str(models.arpa), dictionary)
        start = self.lm.start(False)
        unigrams = np.array([self.lm.score(start, dictionary.get_index(word))[1] for word in self.words])
        self.trie = library.Trie(NUM_CLASSES, SIL)
        with _silent():  # it reports every homophone that it drops
            for index in np.argsort(-unigrams, kind="stable").tolist():
                for phones in lexicon[self.words[index]]:
                    self.trie.insert(list(phones), index, float(unigrams[index]))
                    self.trie.insert([*phones, SIL], index, float(unigrams[index]))
        self.trie.smear(library.SmearingMode.MAX)

    def prepare(self, beam: int, scale: float, bonus: float, pruning: Pruning) -> Decode:
        """Its language model speaks in base-10 logarithms."""
        options = self.library.LexiconDecoderOptions(
            beam, *pruning, math.log(10) / scale, bonus / scale, -math.inf, 0.0, False,
            self.library.CriterionType.CTC,
        )  # fmt: skip
        decoder = self.library.LexiconDecoder(options, self.trie, self.lm, SIL, BLANK, self.unknown, [], False)

        def decode(log_probs: np.ndarray) -> list[str]:
            frames = np.ascontiguousarray(log_probs, np.float32)
            best = decoder.decode(frames.ctypes.data_as(ctypes.c_void_p).value, *frames.shape)
            return [self.words[index] for index in best[0].words if 0 <= index < len(self.words)] if best else []

        return decode


@contextmanager
def _silent() -> Iterator[None]:
    """Without what compiled code writes to the standard error."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


DECODERS: dict[str, type[Ours] | type[Flashlight]] = {"ours": Ours, "flashlight": Flashlight}
