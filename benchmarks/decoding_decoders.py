"""Word decoders behind one interface: ours, flashlight-text, kaldi-decoder; and the settings to try for each."""

import ctypes
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, ClassVar, Protocol

import numpy as np
from decoding_data import Models
from decoding_kaldi import KaldiGraph

from mode_ssm.decode.ctc_beam import CtcWordDecoder
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.vocab import BLANK, NUM_CLASSES, SIL

Decode = Callable[[np.ndarray], Sequence[str]]  # (T, V) float32 -> words


@dataclass(frozen=True, slots=True)
class Settings:
    """What is tuned. scale: of the log-probabilities, the language model's weight is one over it; classes, threshold:
    how many classes are tried at a frame, and how far a hypothesis may be from the best; log_add: sums, not maxima."""

    scale: float = 1.0
    bonus: float = 0.0  # for each word, natural logarithm
    log_add: bool = False
    classes: int = NUM_CLASSES
    threshold: float = math.inf


_GRID = tuple(Settings(scale, bonus) for bonus in (0.0, 1.0, 2.0) for scale in (0.5, 0.7, 1.0, 1.4))
_THRESHOLDS = tuple({"threshold": threshold} for threshold in (math.inf, 30.0, 20.0, 14.0))


class WordDecoder(Protocol):
    name: ClassVar[str]
    grid: ClassVar[Sequence[Settings]]  # tried first, with a narrow beam
    prunings: ClassVar[Sequence[dict[str, Any]]]  # tried for the best of them; the first prunes nothing

    def __init__(self, models: Models) -> None: ...

    def prepare(self, beam: int, settings: Settings) -> Decode: ...


class Ours(WordDecoder):
    name = "mode_ssm"
    grid = _GRID
    prunings = _THRESHOLDS

    def __init__(self, models: Models) -> None:
        self._decoder = CtcWordDecoder(Lexicon.load(models.lexicon), NGramLM.load(models.mapped))

    def decoder(self, beam: int, settings: Settings) -> CtcWordDecoder:
        return self._decoder.with_options(
            beam_size=beam,
            acoustic_scale=settings.scale,
            word_bonus=settings.bonus,
            beam_threshold=settings.threshold,
            nbest=1,
        )

    def prepare(self, beam: int, settings: Settings) -> Decode:
        decoder = self.decoder(beam, settings)
        return lambda log_probs: decoder.decode(log_probs)[0].words


class Flashlight(WordDecoder):
    """flashlight-text: every pronunciation stands in its lexicon with and without the silence after it, homophones by
    falling unigram, since a node of its trie keeps six."""

    name = "flashlight-text"
    grid = tuple(replace(s, log_add=log_add, classes=15, threshold=50.0) for log_add in (False, True) for s in _GRID)
    prunings = tuple(
        {"classes": classes, "threshold": threshold}
        for classes, threshold in ((NUM_CLASSES, math.inf), (15, 50.0), (15, 25.0), (10, 25.0))
    )

    def __init__(self, models: Models) -> None:
        library: Any = import_module("flashlight.lib.text.decoder")
        dictionary: Any = import_module("flashlight.lib.text.dictionary").Dictionary()
        kenlm: Any = import_module("flashlight.lib.text.decoder.kenlm")
        self._library = library
        lexicon = Lexicon.load(models.lexicon)
        self._words = lexicon.words
        for word in self._words:
            dictionary.add_entry(word)
        dictionary.add_entry("<unk>")
        self._unknown = dictionary.get_index("<unk>")
        dictionary.set_default_index(self._unknown)
        with _silent():
            self._lm = kenlm.KenLM(str(models.arpa), dictionary)
        start = self._lm.start(False)
        unigrams = np.array([self._lm.score(start, dictionary.get_index(word))[1] for word in self._words])
        self._trie = library.Trie(NUM_CLASSES, SIL)
        with _silent():  # it reports every homophone that it drops
            for index in np.argsort(-unigrams, kind="stable").tolist():
                for phones in lexicon[self._words[index]]:
                    self._trie.insert(list(phones), index, float(unigrams[index]))
                    self._trie.insert([*phones, SIL], index, float(unigrams[index]))
        self._trie.smear(library.SmearingMode.MAX)

    def prepare(self, beam: int, settings: Settings) -> Decode:
        """Its language model speaks in base-10 logarithms."""
        options = self._library.LexiconDecoderOptions(
            beam, settings.classes, settings.threshold, math.log(10) / settings.scale, settings.bonus / settings.scale,
            -math.inf, 0.0, settings.log_add, self._library.CriterionType.CTC,
        )  # fmt: skip
        decoder = self._library.LexiconDecoder(options, self._trie, self._lm, SIL, BLANK, self._unknown, [], False)

        def decode(log_probs: np.ndarray) -> list[str]:
            frames = np.ascontiguousarray(log_probs, np.float32)
            best = decoder.decode(frames.ctypes.data_as(ctypes.c_void_p).value, *frames.shape)
            return [self._words[index] for index in best[0].words if 0 <= index < len(self._words)] if best else []

        return decode


class Kaldi(WordDecoder):
    """kaldi-decoder: best path through the whole graph of CTC, lexicon and language model, which is built once.

    The beam is its number of active states, the threshold its beam.
    """

    name = "kaldi-decoder"
    grid = _GRID
    prunings = _THRESHOLDS

    def __init__(self, models: Models) -> None:
        self._library: Any = import_module("kaldi_decoder")
        self._fst: Any = import_module("kaldifst")
        self._words = Lexicon.load(models.lexicon).words
        self._graph = KaldiGraph(models)
        self._loaded: tuple[float, Any] = (math.nan, None)  # one graph at a time: a word bonus needs its own

    def prepare(self, beam: int, settings: Settings) -> Decode:
        if self._loaded[0] != settings.bonus:
            self._loaded = (settings.bonus, self._graph.read(settings.bonus))
        graph = self._loaded[1]
        options = self._library.FasterDecoderOptions(beam=min(settings.threshold, 1e9), max_active=beam)

        def decode(log_probs: np.ndarray) -> list[str]:
            decoder = self._library.FasterDecoder(graph, options)
            decoder.decode(self._library.DecodableCtc(np.float32(settings.scale) * log_probs))
            found, path = decoder.get_best_path()
            return [self._words[label - 1] for label in self._fst.get_linear_symbol_sequence(path)[2]] if found else []

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


DECODERS: dict[str, type[WordDecoder]] = {"ours": Ours, "flashlight": Flashlight, "kaldi": Kaldi}
