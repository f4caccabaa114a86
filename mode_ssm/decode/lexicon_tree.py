"""The lexicon as a prefix tree over phonemes, in flat arrays.

Nodes 0 .. NUM_CLASSES - 1 are word boundaries: node 0 the start of the sentence, node c the place after a word whose
last label was class c, node SIL the silence between words. The last label is kept apart because CTC needs a blank
before the same label again. All boundaries lead to the same first phonemes, and all but SIL itself to SIL.
The nodes above are the prefixes of pronunciations. A node ends any number of words.
"""

from dataclasses import dataclass

import numpy as np

from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.vocab import NUM_CLASSES, SIL


@dataclass(frozen=True, kw_only=True, slots=True)
class LexiconTree:
    """label (N,): class emitted at a node (0 at node 0). Node n leads to child[child_start[n] : child_start[n + 1]] and
    ends the words (indices) word[word_start[n] : word_start[n + 1]]. parent (N,): -1 for boundaries, 0 for first
    phonemes.
    """

    label: np.ndarray
    parent: np.ndarray
    child_start: np.ndarray
    child: np.ndarray
    word_start: np.ndarray
    word: np.ndarray

    @classmethod
    def build(cls, lexicon: Lexicon) -> "LexiconTree":
        children: list[dict[int, int]] = [{} for _ in range(NUM_CLASSES)]
        words: list[list[int]] = [[] for _ in range(NUM_CLASSES)]
        label = list(range(NUM_CLASSES))
        parent = [-1] * NUM_CLASSES
        for index, word in enumerate(lexicon):
            for pronunciation in lexicon[word]:
                node = 0
                for phone in pronunciation:
                    if phone not in children[node]:
                        children[node][phone] = len(label)
                        label.append(phone)
                        parent.append(node)
                        children.append({})
                        words.append([])
                    node = children[node][phone]
                words[node].append(index)
        first = children[0]
        for boundary in range(NUM_CLASSES):
            children[boundary] = first if boundary == SIL else {**first, SIL: SIL}
        return cls(
            label=np.array(label),
            parent=np.array(parent),
            child_start=np.cumsum([0, *map(len, children)]),
            child=np.array([child for nodes in children for child in nodes.values()]),
            word_start=np.cumsum([0, *map(len, words)]),
            word=np.array([word for ended in words for word in ended]),
        )

    def __len__(self) -> int:
        return len(self.label)

    def best_below(self, values: np.ndarray) -> np.ndarray:
        """(N,): the largest of `values` (one a word) over the words that end strictly below a node; -inf for none."""
        below = np.full(len(self), -np.inf)
        ended = np.full(len(self), -np.inf)
        np.maximum.at(ended, np.repeat(np.arange(len(self)), np.diff(self.word_start)), values[self.word])
        for node in range(len(self) - 1, NUM_CLASSES - 1, -1):  # children have larger numbers than their parents
            parent = self.parent[node]
            below[parent] = max(below[parent], below[node], ended[node])
        below[:NUM_CLASSES] = below[0]
        return below
