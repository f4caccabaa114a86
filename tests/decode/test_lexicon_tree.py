import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mode_ssm.decode.lexicon_tree import LexiconTree
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.vocab import NUM_CLASSES, SIL

pronunciations = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple), min_size=1, max_size=3)


def children(tree, node):
    return tree.child[tree.child_start[node] : tree.child_start[node + 1]].tolist()


def ended(tree, node):
    return tree.word[tree.word_start[node] : tree.word_start[node + 1]].tolist()


def spelled(tree, boundary):
    """(word, labels) of every word that can be reached from a boundary."""
    found = []
    open_nodes = [(child, (int(tree.label[child]),)) for child in children(tree, boundary) if child != SIL]
    while open_nodes:
        node, labels = open_nodes.pop()
        found += [(word, labels) for word in ended(tree, node)]
        open_nodes += [(child, (*labels, int(tree.label[child]))) for child in children(tree, node)]
    return sorted(found)


@given(st.lists(pronunciations, min_size=1, max_size=12))
def test_every_word_and_pronunciation_is_reached_from_every_boundary(entries):
    lexicon = Lexicon({f"w{i}": entry for i, entry in enumerate(entries)})
    tree = LexiconTree.build(lexicon)
    expected = sorted((index, phones) for index, word in enumerate(lexicon) for phones in lexicon[word])
    for boundary in (0, 3, SIL):
        assert spelled(tree, boundary) == expected
        assert (SIL in children(tree, boundary)) == (boundary != SIL)
    prefixes = {phones[:n] for word in lexicon for phones in lexicon[word] for n in range(1, len(phones) + 1)}
    assert len(tree) == NUM_CLASSES + len(prefixes)


def test_twelve_homophones_stand_at_one_node():
    tree = LexiconTree.build(Lexicon({f"w{i}": [(5, 6)] for i in range(12)}))
    assert [ended(tree, node) for node in range(NUM_CLASSES, len(tree))] == [[], list(range(12))]


def test_best_below_is_the_best_word_still_to_come():
    tree = LexiconTree.build(Lexicon({"a": [(1,)], "ab": [(1, 2)], "abc": [(1, 2, 3)], "d": [(4,), (1, 4)]}))
    best = tree.best_below(np.array([-1.0, -2.0, -3.0, -2.5]))
    node = {}
    for n in range(NUM_CLASSES, len(tree)):
        node[(*node.get(tree.parent[n], ()), int(tree.label[n]))] = best[n]
        node[n] = (*node.get(tree.parent[n], ()), int(tree.label[n]))
    assert {key: value for key, value in node.items() if isinstance(key, tuple)} == {
        (1,): -2.0,
        (1, 2): -3.0,
        (1, 2, 3): -np.inf,
        (4,): -np.inf,
        (1, 4): -np.inf,
    }
    assert set(best[:NUM_CLASSES]) == {-1.0}
