"""The search graph of a Kaldi decoder: CTC topology, lexicon and n-gram model composed into one transducer.

T o min(det(L o G)) as in EESEN (Miao et al. 2015, "EESEN: End-to-end speech recognition using deep RNN models and
WFST-based decoding"). L has an optional silence before, between and after words, at no cost, and a disambiguation
symbol for each homophone and each word that begins another; T lets the symbols pass. Backing off is an arc that
consumes nothing, so that a word may also take the back-off path where that is the better one.
"""

from collections import Counter
from importlib import import_module
from typing import Any

import numpy as np
from decoding_data import Models

from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.vocab import BLANK, NUM_CLASSES, SIL

_BACKOFF = NUM_CLASSES + 1  # input label of backing off; those that tell homophones apart come after it
_NUM_ARCS_AT = 57  # place in OpenFst's header of a const transducer with standard arcs
_ARC = np.dtype([("input", "<i4"), ("output", "<i4"), ("cost", "<f4"), ("next", "<i4")])


class KaldiGraph:
    """Input labels are classes + 1, output labels places in the lexicon + 1. Minutes and gigabytes to build, once."""

    def __init__(self, models: Models) -> None:
        self._fst: Any = import_module("kaldifst")
        self._path = models.folder / "graph.fst"
        if not self._path.exists():
            lexicon, lm = Lexicon.load(models.lexicon), NGramLM.load(models.mapped)
            unfinished = self._path.with_suffix(".unfinished")
            self._build(lexicon, lm).write(str(unfinished))
            unfinished.rename(self._path)

    def read(self, bonus: float) -> Any:
        """The graph in which each word costs `bonus` less."""
        if not bonus:
            return self._fst.StdConstFst.read(str(self._path))
        changed = self._path.with_suffix(".bonus")
        content = np.fromfile(self._path, np.uint8)
        num_arcs = int(content[_NUM_ARCS_AT : _NUM_ARCS_AT + 8].view("<i8")[0])
        arcs = content[-num_arcs * _ARC.itemsize :].view(_ARC)  # they come last
        arcs["cost"][arcs["output"] > 0] -= np.float32(bonus)
        content.tofile(changed)
        del content, arcs
        try:
            return self._fst.StdConstFst.read(str(changed))
        finally:
            changed.unlink()

    def _build(self, lexicon: Lexicon, lm: NGramLM) -> Any:
        spoken, num_symbols = self._lexicon(lexicon)
        graph = self._fst.compose(spoken, self._grammar(lexicon.words, lm), match_side="left")
        graph = self._fst.StdVectorFst(graph)
        del spoken
        self._fst.determinize_star(graph)
        self._fst.minimize_encoded(graph)
        self._fst.arcsort(graph, "ilabel")
        return self._fst.StdConstFst(self._fst.compose(self._ctc(num_symbols), graph, match_side="left"))

    def _grammar(self, words: tuple[str, ...], lm: NGramLM) -> Any:
        automaton, arc = lm.automaton(), self._fst.StdArc
        label = {word: place for place, word in enumerate(words, start=1)}
        labels = [label.get(word, 0) for word in automaton.words]
        grammar = self._states(len(automaton.backoff), automaton.start)
        starts = automaton.arc_start.tolist()
        arcs = list(
            zip(
                automaton.arc_word.tolist(),
                (-automaton.arc_log_prob).tolist(),
                automaton.arc_next.tolist(),
                strict=True,
            )
        )
        rows = zip(automaton.backoff_state.tolist(), (-automaton.backoff).tolist(), strict=True)
        for state, (shorter, cost) in enumerate(rows):
            for word, word_cost, following in arcs[starts[state] : starts[state + 1]]:
                if labels[word]:
                    grammar.add_arc(state, arc(labels[word], labels[word], word_cost, following))
            if state:
                grammar.add_arc(state, arc(len(words) + 1, 0, cost, shorter))
            grammar.set_final(state, -float(automaton.end_log_prob[state]))
        self._fst.arcsort(grammar, "ilabel")
        return grammar

    def _lexicon(self, lexicon: Lexicon) -> tuple[Any, int]:
        """The transducer and the number of symbols that are no classes."""
        arc = self._fst.StdArc
        words, between = 0, 1  # states
        spoken = self._states(2, between)
        spoken.add_arc(between, arc(0, 0, 0.0, words))
        spoken.add_arc(between, arc(SIL + 1, 0, 0.0, words))
        spoken.add_arc(words, arc(_BACKOFF, len(lexicon) + 1, 0.0, words))
        spoken.set_final(words, 0.0)
        homophones = Counter(phones for word in lexicon for phones in lexicon[word])
        beginnings = {phones[:length] for phones in homophones for length in range(1, len(phones))}
        told_apart: Counter[tuple[int, ...]] = Counter()
        for label, word in enumerate(lexicon, start=1):
            for phones in lexicon[word]:
                inputs = [phone + 1 for phone in phones]
                if homophones[phones] > 1 or phones in beginnings:
                    told_apart[phones] += 1
                    inputs.append(_BACKOFF + told_apart[phones])
                state = words
                for place, symbol in enumerate(inputs):
                    following = between if place == len(inputs) - 1 else spoken.add_state()
                    spoken.add_arc(state, arc(symbol, 0 if place else label, 0.0, following))
                    state = following
        self._fst.arcsort(spoken, "olabel")
        return spoken, 1 + max(told_apart.values(), default=0)

    def _ctc(self, num_symbols: int) -> Any:
        """State c: the last frame was class c."""
        arc = self._fst.StdArc
        topology = self._states(NUM_CLASSES, BLANK)
        for last in range(NUM_CLASSES):
            topology.set_final(last, 0.0)
            for label in range(NUM_CLASSES):
                silent = label in (BLANK, last)
                topology.add_arc(last, arc(label + 1, 0 if silent else label + 1, 0.0, label))
            for symbol in range(num_symbols):
                topology.add_arc(last, arc(0, _BACKOFF + symbol, 0.0, last))
        self._fst.arcsort(topology, "olabel")
        return topology

    def _states(self, count: int, start: int) -> Any:
        transducer = self._fst.StdVectorFst()
        for _ in range(count):
            transducer.add_state()
        transducer.start = start
        return transducer
