"""The lexicon as a prefix tree over phonemes, in flat arrays.

Nodes 0 .. NUM_CLASSES - 1 are word boundaries: node 0 the start of the sentence, node c the place after a word whose
last label was class c, node SIL the silence between words. The last label is kept apart because CTC needs a blank
before the same label again. All boundaries lead to the same first phonemes, and all but SIL itself to SIL.
The nodes above are the prefixes of pronunciations, by length, then by parent, then by last phoneme: the children of a
node stand side by side. A node ends any number of words.
"""

from dataclasses import dataclass
from itertools import chain

import numpy as np

from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.vocab import NUM_CLASSES, SIL


@dataclass(frozen=True, kw_only=True, slots=True)
class LexiconTree:
    """label (N,): class emitted at a node (0 at node 0). Node n leads to child[child_start[n] : child_start[n + 1]] and
    ends the words (indices) word[word_start[n] : word_start[n + 1]]. parent (N,): -1 for boundaries, 0 for first
    phonemes. level_start: the first node of every prefix length, from 1 on, and N.
    """

    label: np.ndarray
    parent: np.ndarray
    child_start: np.ndarray
    child: np.ndarray
    word_start: np.ndarray
    word: np.ndarray
    level_start: np.ndarray

    @classmethod
    def build(cls, lexicon: Lexicon) -> "LexiconTree":
        pronunciations = [phones for word in lexicon for phones in lexicon[word]]
        of_word = np.repeat(np.arange(len(lexicon)), [len(lexicon[word]) for word in lexicon])
        lengths = np.array([len(phones) for phones in pronunciations])
        phones = np.fromiter(chain.from_iterable(pronunciations), np.int64, int(lengths.sum()))
        position = np.cumsum(lengths) - lengths
        node = np.zeros(len(lengths), np.int64)  # of each pronunciation's prefix
        labels, parents, level_start = [np.arange(NUM_CLASSES)], [np.full(NUM_CLASSES, -1)], [NUM_CLASSES]
        for depth in range(int(lengths.max(initial=0))):
            longer = np.flatnonzero(lengths > depth)
            prefix, inverse = np.unique(
                node[longer] * NUM_CLASSES + phones[position[longer] + depth], return_inverse=True
            )
            node[longer] = level_start[-1] + inverse
            parents.append(prefix // NUM_CLASSES)
            labels.append(prefix % NUM_CLASSES)
            level_start.append(level_start[-1] + len(prefix))
        parent, size = np.concatenate(parents), level_start[-1]
        num_children = np.bincount(parent[NUM_CLASSES:], minlength=size)
        first = np.arange(NUM_CLASSES, NUM_CLASSES + num_children[0])
        boundaries = [first if boundary == SIL else np.append(first, SIL) for boundary in range(NUM_CLASSES)]
        num_children[:NUM_CLASSES] = [len(children) for children in boundaries]
        return cls(
            label=np.concatenate(labels).astype(np.int8),
            parent=parent.astype(np.int32),
            child_start=_starts(num_children),
            child=np.concatenate([*boundaries, np.arange(NUM_CLASSES + len(first), size)]).astype(np.int32),
            word_start=_starts(np.bincount(node, minlength=size)),
            word=of_word[np.argsort(node, kind="stable")].astype(np.int32),
            level_start=np.array(level_start),
        )

    def __len__(self) -> int:
        return len(self.label)

    @property
    def word_node(self) -> np.ndarray:
        """The node at which each entry of `word` ends."""
        return np.repeat(np.arange(len(self)), np.diff(self.word_start))

    def best_below(self, values: np.ndarray) -> np.ndarray:
        """(N,): the largest of `values` (one a word) over the words that end strictly below a node; -inf for none."""
        below = np.full(len(self), -np.inf)
        best = np.full(len(self), -np.inf)  # the node's own words counted
        np.maximum.at(best, self.word_node, values[self.word])
        for start, stop in zip(self.level_start[-2::-1], self.level_start[:0:-1], strict=True):
            np.maximum(best[start:stop], below[start:stop], out=best[start:stop])
            np.maximum.at(below, self.parent[start:stop], best[start:stop])
        below[:NUM_CLASSES] = below[0]
        return below


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
