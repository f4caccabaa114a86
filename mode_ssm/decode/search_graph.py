"""Lexicon tree and language model in the form that the compiled search walks.

Shapes: N tree nodes, E word entries, W words.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mode_ssm.decode.beam_arrays import LmArrays, TreeArrays
from mode_ssm.decode.lexicon_tree import LexiconTree
from mode_ssm.decode.lm_fusion import LmFusion
from mode_ssm.vocab import NUM_CLASSES


@dataclass(frozen=True, slots=True)
class SearchGraph:
    tree: TreeArrays
    lm: LmArrays

    @classmethod
    def build(
        cls,
        tree: LexiconTree,
        fusion: LmFusion,
        words: tuple[str, ...],
        look_ahead: np.ndarray,
        acoustic_scale: float,
    ) -> "SearchGraph":
        """`look_ahead` (N,) is what a hypothesis inside of a word is charged; 0 at boundaries."""
        order = np.argsort(tree.word, kind="stable")
        word_node = tree.word_node
        word_label = tree.label[word_node]
        _, same, counts = np.unique(
            tree.word.astype(np.int64) * NUM_CLASSES + word_label, return_inverse=True, return_counts=True
        )
        siblings = counts[same]
        # The mass of a word is at most that of its best pronunciation times their number.
        word_bound = fusion.most(words)[tree.word] + acoustic_scale * np.log(siblings)
        num_children = np.diff(tree.child_start)[NUM_CLASSES:]
        num_first = int(np.count_nonzero(tree.parent == 0))
        first_child = np.full(len(tree) + 1, NUM_CLASSES + num_first)
        first_child[0] = NUM_CLASSES
        first_child[NUM_CLASSES + 1 :] += np.cumsum(num_children)
        enter_bound = np.full(len(tree), -np.inf)
        np.maximum.at(enter_bound, word_node, word_bound)
        enter_bound[NUM_CLASSES:] = np.where(
            num_children > 0, np.maximum(enter_bound, look_ahead)[NUM_CLASSES:], enter_bound[NUM_CLASSES:]
        )
        leave_bound = np.full(len(tree), -np.inf)
        np.maximum.at(leave_bound, tree.parent[NUM_CLASSES:], enter_bound[NUM_CLASSES:])
        arrays = TreeArrays(
            label=tree.label,
            parent=tree.parent,
            first_child=first_child,
            word_start=tree.word_start,
            word=tree.word,
            word_label=word_label,
            siblings=siblings,
            pron_start=np.searchsorted(tree.word[order], np.arange(len(words) + 1)),
            pron_node=word_node[order],
            look_ahead=look_ahead,
            word_bound=word_bound,
            enter_bound=enter_bound,
            leave_bound=leave_bound,
            lm_word=fusion.lm_words(words),
        )
        automaton = fusion.automaton
        lm = LmArrays(*(np.zeros(0) if automaton is None else getattr(automaton, name) for name in LmArrays._fields))
        return cls(arrays, lm).read_only()

    def read_only(self) -> "SearchGraph":
        """The same arrays, seen as the one kind that the search is compiled for; unpickled ones have lost it."""
        tree = TreeArrays(*map(_read_only, self.tree, _TREE_TYPES))
        return SearchGraph(tree, LmArrays(*map(_read_only, self.lm, _LM_TYPES)))


_TREE_TYPES = (np.int8, *4 * (np.int32,), np.int8, *3 * (np.int32,), *4 * (np.float64,), np.int32)
_LM_TYPES = (np.int32, np.float32, np.int64, np.int32, np.float32, np.int32, np.float32)


def _read_only(array: np.ndarray, dtype: Any) -> np.ndarray:
    view = np.ascontiguousarray(np.asarray(array), dtype).view()
    view.flags.writeable = False
    return view
