"""Back-off n-gram language models behind the `Scorer` seam.

The model is an automaton. A state is a history: state 0 the empty one, and one for every n-gram that is shorter than
the order. An arc is an n-gram: it leaves the state of its history and enters that of the longest history that remains.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mode_ssm.lm.arpa import read_arpa_tables, write_arpa_tables
from mode_ssm.lm.kneser_ney import NGramTable, estimate_tables
from mode_ssm.lm.scorer import Scorer

BOS, EOS, UNK = "<s>", "</s>", "<unk>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Perplexity:
    """Perplexity per word, sentence ends counted as words; unknown words are left out of it and counted here."""

    perplexity: float
    num_words: int
    num_unknown: int


class NGramLM(Scorer):
    """A back-off n-gram model. States are ints; natural logarithms."""

    def __init__(self, words: Sequence[str], tables: Sequence[NGramTable]) -> None:
        """`words` names the ids in `tables`; `tables[0]` has row i for word i. `<s>` and `</s>` are among the words.

        Raises `ValueError` if an n-gram is there without its history.
        """
        self.words = tuple(words)
        self.tables = tuple(tables)
        self._ids = {word: index for index, word in enumerate(self.words)}
        self._unknown = self._ids.get(UNK, -1)
        self._compile()

    @classmethod
    def estimate(
        cls,
        sentences: Iterable[str],
        order: int,
        vocabulary: Iterable[str] | None = None,
        *,
        max_unknown: float = 0.2,
    ) -> "NGramLM":
        """Interpolated modified Kneser-Ney over normalised sentences (see `kneser_ney`).

        Every word of `vocabulary` (None: the words of the sentences) gets a unigram, so that the probabilities of the
        vocabulary and the sentence end sum to one after every history. N-grams with other words are not counted.
        Raises `ValueError` when more than `max_unknown` of the words are not in the vocabulary: upper case, or the
        wrong lexicon. The order is lowered to that of the longest n-gram that the sentences hold.
        """
        if order < 1:
            raise ValueError(f"order of an n-gram model must be at least 1, not {order}")
        split = [sentence.split() for sentence in sentences]
        known = set(vocabulary) if vocabulary is not None else {word for words in split for word in words}
        if reserved := known & {BOS, EOS, UNK}:
            raise ValueError(f"reserved word(s) in the vocabulary: {', '.join(sorted(reserved))}")
        words = (BOS, EOS, *sorted(known))
        word_ids = {word: index for index, word in enumerate(words)}
        tables, num_words, num_unknown = estimate_tables(split, order, word_ids, bos=0, eos=1)
        if num_unknown > max_unknown * num_words:
            unknown = sorted({word for sentence in split for word in sentence if word not in known})
            raise ValueError(
                f"{num_unknown} of {num_words} training words are not in the vocabulary of {len(known)} "
                f"(wrong case or wrong lexicon?): {', '.join(unknown[:5])}"
            )
        return cls(words, tables)

    @classmethod
    def read_arpa(cls, path: str | Path) -> "NGramLM":
        """Read an ARPA file; its base-10 logarithms become natural here. `ValueError` names file and line."""
        words, tables = read_arpa_tables(path)
        for word in (BOS, EOS):
            if word not in words:
                raise ValueError(f"{path}: no unigram for {word}")
        return cls(words, tables)

    def write_arpa(self, path: str | Path) -> None:
        write_arpa_tables(path, self.words, self.tables)

    @property
    def order(self) -> int:
        return len(self.tables)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The words that can be predicted, without sentence end and unknown word."""
        return tuple(word for word in self.words if word not in (BOS, EOS, UNK))

    def __contains__(self, word: object) -> bool:
        return word in self._ids and word not in (BOS, EOS, UNK)

    def start(self) -> int:
        return self._start

    def score(self, state: int, word: str) -> tuple[float, int]:
        """A word outside the vocabulary scores as `<unk>` where the model has it, else -inf, and clears the history."""
        return self._follow(state, self._ids.get(word, self._unknown))

    def end(self, state: int) -> float:
        return self._follow(state, self._ids[EOS])[0]

    def unigram(self, word: str) -> float:
        return self._follow(0, self._ids.get(word, self._unknown))[0]

    def perplexity(self, sentences: Iterable[str]) -> Perplexity:
        """Perplexity of normalised sentences."""
        total, counted, unknown = 0.0, 0, 0
        for sentence in sentences:
            state = self.start()
            for word in sentence.split():
                log_prob, state = self.score(state, word)
                if word in self:
                    total += log_prob
                    counted += 1
                else:
                    unknown += 1
            total += self.end(state)
            counted += 1
        if counted == 0:
            raise ValueError("perplexity of no sentences")
        return Perplexity(perplexity=math.exp(-total / counted), num_words=counted, num_unknown=unknown)

    def _follow(self, state: int, word: int) -> tuple[float, int]:
        if word < 0:
            return -math.inf, 0
        total = 0.0
        while True:
            key = state * len(self.words) + word
            arc = int(self._arc_key.searchsorted(key))
            if arc < len(self._arc_key) and self._arc_key[arc] == key:
                return total + float(self._arc_log_prob[arc]), int(self._arc_target[arc])
            total += float(self._backoff[state])
            state = int(self._shorter[state])

    def _compile(self) -> None:
        num_words = len(self.words)
        keys = [np.arange(num_words)]  # by order: prefix row * num_words + last word, ascending
        first_state = [1]  # state of row 0, by order
        prefixes = [np.zeros(num_words, np.int64)]
        for table in self.tables[1:]:
            prefix = self._rows(keys, table.ids[:, :-1])
            if len(prefix) and prefix.min() < 0:
                ngram = " ".join(self.words[i] for i in table.ids[int(prefix.argmin())])
                raise ValueError(f"n-gram {ngram!r} is in the model without its history")
            keys.append(prefix * num_words + table.ids[:, -1])
            first_state.append(first_state[-1] + len(keys[-2]))
            prefixes.append(prefix)
        sources, targets = [], []
        shorter = [np.zeros(1, np.int64)]
        for k, table in enumerate(self.tables, start=1):
            sources.append(prefixes[k - 1] + (first_state[k - 2] if k > 1 else 0))
            suffix = np.zeros(len(table.ids), np.int64)  # state of the longest proper suffix that is a history
            for length in range(1, k):
                rows = self._rows(keys[:length], table.ids[:, k - length :])
                suffix = np.where(rows >= 0, rows + first_state[length - 1], suffix)
            if k < self.order:
                targets.append(first_state[k - 1] + np.arange(len(table.ids)))
                shorter.append(suffix)
            else:
                targets.append(suffix)
        self._arc_key = np.concatenate(sources) * num_words + np.concatenate([t.ids[:, -1] for t in self.tables])
        self._arc_target = np.concatenate(targets)
        self._arc_log_prob = np.concatenate([table.log_prob for table in self.tables])
        self._shorter = np.concatenate(shorter)
        self._backoff = np.concatenate([np.zeros(1), *(table.backoff for table in self.tables[:-1])])
        self._start = 1 + self._ids[BOS] if self.order > 1 else 0
        assert bool(np.all(np.diff(self._arc_key) > 0))

    def _rows(self, keys: Sequence[np.ndarray], ngrams: np.ndarray) -> np.ndarray:
        """Row of each of `ngrams` (n, k) in the table of its order, -1 where it is not there."""
        rows = ngrams[:, 0]
        for position in range(1, ngrams.shape[1]):
            wanted = np.where(rows >= 0, rows * len(self.words) + ngrams[:, position], -1)
            found = np.searchsorted(keys[position], wanted)
            rows = np.where(np.append(keys[position], -2)[found] == wanted, found, -1)
        return rows
