"""Scores of a language model that compiled code cannot walk: it is asked once for each new state and word."""

from collections.abc import Hashable

import numpy as np

from mode_ssm.decode.beam_arrays import HISTORIES, WANTED, SearchArrays, empty_arcs
from mode_ssm.decode.history_kernel import add_arcs
from mode_ssm.decode.lm_fusion import LmFusion

_FEW = 1024


class AskedScores:
    """Numbers for the language model's states, and how many scores `SearchArrays.arcs` holds."""

    def __init__(self, start: Hashable) -> None:
        self.states: list[Hashable] = [start]
        self._number: dict[Hashable, int] = {start: 0}
        self._count = 0

    def ask(self, search: SearchArrays, fusion: LmFusion, words: tuple[str, ...]) -> SearchArrays:
        """The scores that the search wants; returns it with arrays that hold them.

        States that no history has are forgotten first where they are many; the search then wants again.
        """
        histories = int(search.counters[HISTORIES])
        if len(self.states) > _FEW + 4 * histories:
            search.histories.lm_state[:histories] = self._keep(search.histories.lm_state[:histories])
            return search._replace(arcs=empty_arcs(4 * _FEW))
        keys = np.unique(search.wanted[: search.counters[WANTED]])
        states, word_ids = keys >> 32, keys & 0xFFFFFFFF
        scored = [
            fusion.word(self.states[state], words[word])
            for state, word in zip(states.tolist(), word_ids.tolist(), strict=True)
        ]
        log_probs = np.array([log_prob for log_prob, _ in scored], np.float64)
        numbers = np.array([self._intern(state) for _, state in scored], np.int32)
        self._count += len(keys)
        if 2 * self._count > len(search.arcs.key):
            old = search.arcs
            search = search._replace(arcs=empty_arcs(1 << (4 * self._count).bit_length()))
            used = old.key >= 0
            add_arcs(search.arcs, old.key[used], old.log_prob[used], old.next_state[used])
        add_arcs(search.arcs, keys, log_probs, numbers)
        return search

    def _intern(self, state: Hashable) -> int:
        number = self._number.setdefault(state, len(self.states))
        if number == len(self.states):
            self.states.append(state)
        return number

    def _keep(self, numbers: np.ndarray) -> np.ndarray:
        """Forget all states but those of `numbers`; returns their new numbers."""
        kept, new = np.unique(numbers, return_inverse=True)
        self.states = [self.states[number] for number in kept.tolist()]
        self._number = {state: number for number, state in enumerate(self.states)}
        self._count = 0
        return new
