"""Back-off n-gram language models behind the `Scorer` seam."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mode_ssm.lm.arpa import read_arpa_tables, write_arpa_tables
from mode_ssm.lm.kneser_ney import check_pruning, estimate_tables
from mode_ssm.lm.ngram_automaton import BOS, EOS, UNK, NGramAutomaton, NGramTable, compile_automaton
from mode_ssm.lm.ngram_counts import count_ngrams, read_corpus
from mode_ssm.lm.ngram_file import read_automaton, write_automaton
from mode_ssm.lm.scorer import Scorer


@dataclass(frozen=True, kw_only=True, slots=True)
class Perplexity:
    """Perplexity per word, sentence ends counted as words; unknown words are left out of it and counted here."""

    perplexity: float
    num_words: int  # that the perplexity is of: known words and sentence ends
    num_unknown: int
    num_sentences: int
    most_unknown: tuple[tuple[str, int], ...]  # the ten most frequent unknown words and their counts

    @property
    def unknown_rate(self) -> float:
        """Unknown words / words."""
        words = self.num_words - self.num_sentences + self.num_unknown
        return self.num_unknown / words if words else 0.0


class NGramLM(Scorer):
    """A back-off n-gram model. States are ints; natural logarithms."""

    def __init__(self, words: Sequence[str], tables: Sequence[NGramTable]) -> None:
        """`words` names the ids in `tables`; `tables[0]` has row i for word i. `<s>` and `</s>` are among the words.

        Raises `ValueError` if an n-gram is there without its history.
        """
        self._set(compile_automaton(words, tables))

    @classmethod
    def _of(cls, automaton: NGramAutomaton, mapped: Path | None = None) -> "NGramLM":
        lm = cls.__new__(cls)
        lm._set(automaton, mapped)
        return lm

    def _set(self, automaton: NGramAutomaton, mapped: Path | None = None) -> None:
        self._automaton = automaton
        self._single: NGramAutomaton | None = None
        self._mapped = mapped
        self._ids = {word: index for word, index in automaton.word_ids.items() if word not in (BOS, EOS)}
        self._unknown = self._ids.get(UNK, -1)

    def automaton(self, *, single_precision: bool = True) -> NGramAutomaton:
        """The model as arrays that compiled code walks: float32, or as precise as the model is."""
        if single_precision and self._single is None:
            self._single = self._automaton.single_precision()
        return self._single if single_precision and self._single is not None else self._automaton

    @classmethod
    def estimate(
        cls,
        sentences: Iterable[str],
        order: int,
        vocabulary: Iterable[str] | None = None,
        *,
        max_unknown: float = 0.2,
        prune: Sequence[int] = (),
        like_lmplz: bool = False,
    ) -> "NGramLM":
        """Interpolated modified Kneser-Ney over normalised sentences (see `kneser_ney`), which are read once.

        Every word of `vocabulary` (None: the words of the sentences) gets a unigram, so that the probabilities of the
        vocabulary and the sentence end sum to one after every history. N-grams with other words are not counted.
        `prune`: the largest count with which an n-gram is left out, by order, first 0, the last for all further orders.
        `like_lmplz` gives the numbers of KenLM's lmplz: a share of the unigrams' uniform distribution for `<unk>`, and
        its rule for discounts. The order is lowered to that of the longest n-gram that the sentences hold.
        Raises `ValueError` when more than `max_unknown` of the words are not in the vocabulary: upper case, or the
        wrong lexicon.
        """
        if order < 1:
            raise ValueError(f"order of an n-gram model must be at least 1, not {order}")
        check_pruning(prune, order)
        corpus = read_corpus(sentences, vocabulary, unk=like_lmplz)
        if (num_unknown := corpus.unknown.total()) > max_unknown * corpus.num_words:
            known = set(corpus.words)
            cased = sum(count for word, count in corpus.unknown.items() if word.lower() in known)
            reason = "wrong case: lower it" if 2 * cased > num_unknown else "wrong case or wrong lexicon?"
            raise ValueError(
                f"{num_unknown} of {corpus.num_words} training words are not in the vocabulary of "
                f"{len(corpus.words) - 2 - like_lmplz} ({reason}): {', '.join(sorted(corpus.unknown)[:5])}"
            )
        counted = count_ngrams(corpus.tokens, order, len(corpus.words))
        return cls(corpus.words, estimate_tables(counted, prune=prune[: len(counted)], like_lmplz=like_lmplz))

    @classmethod
    def read_arpa(cls, path: str | Path) -> "NGramLM":
        """Read an ARPA file; its base-10 logarithms become natural here. `ValueError` names file and line."""
        words, tables = read_arpa_tables(path)
        for word in (BOS, EOS):
            if word not in words:
                raise ValueError(f"{path}: no unigram for {word}")
        try:
            return cls(words, tables)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> "NGramLM":
        """Map the file that `save` wrote (see `ngram_file`); a pickle of the model then holds its path only.

        `verify=False` skips reading all of it for its checksums.
        """
        return cls._of(read_automaton(path, verify=verify), Path(path).resolve())

    def save(self, path: str | Path, *, eight_bit: bool = False) -> float:
        """Write the form that `load` maps. Returns by how much the 8-bit form moves a log-probability at most."""
        return write_automaton(path, self._automaton, eight_bit=eight_bit)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._mapped is not None:
            return _load_mapped, (self._mapped,)
        return _of_automaton, (replace(self._automaton),)  # without the arrays that follow from others

    def write_arpa(self, path: str | Path) -> None:
        write_arpa_tables(path, self._automaton.words, self._automaton.tables())

    @property
    def order(self) -> int:
        return self._automaton.order

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The words that can be predicted, without sentence end and unknown word."""
        return tuple(word for word in self._ids if word != UNK)

    def __contains__(self, word: object) -> bool:
        return word in self._ids and word != UNK

    def start(self) -> int:
        return self._automaton.start

    def score(self, state: int, word: str) -> tuple[float, int]:
        """A word outside the vocabulary scores as `<unk>` where the model has it, else -inf, and clears the history."""
        return self._follow(state, self._ids.get(word, self._unknown))

    def end(self, state: int) -> float:
        return float(self._automaton.end_log_prob[state])

    def unigram(self, word: str) -> float:
        return self._follow(0, self._ids.get(word, self._unknown))[0]

    def perplexity(self, sentences: Iterable[str]) -> Perplexity:
        """Perplexity of normalised sentences."""
        total, num_words, num_sentences = 0.0, 0, 0
        unknown: Counter[str] = Counter()
        for sentence in sentences:
            state = self.start()
            for word in sentence.split():
                log_prob, state = self.score(state, word)
                if word in self:
                    total += log_prob
                    num_words += 1
                else:
                    unknown[word] += 1
            total += self.end(state)
            num_words += 1
            num_sentences += 1
        if num_sentences == 0:
            raise ValueError("perplexity of no sentences")
        return Perplexity(
            perplexity=math.exp(-total / num_words),
            num_words=num_words,
            num_unknown=unknown.total(),
            num_sentences=num_sentences,
            most_unknown=tuple(unknown.most_common(10)),
        )

    def _follow(self, state: int, word: int) -> tuple[float, int]:
        if word < 0:
            return -math.inf, 0
        automaton = self._automaton
        total = 0.0
        while state:
            first, last = int(automaton.arc_start[state]), int(automaton.arc_start[state + 1])
            arc = first + int(automaton.arc_word[first:last].searchsorted(word))
            if arc < last and automaton.arc_word[arc] == word:
                return total + float(automaton.arc_log_prob[arc]), int(automaton.arc_next[arc])
            total += float(automaton.backoff[state])
            state = int(automaton.backoff_state[state])
        return total + float(automaton.unigram[word]), int(automaton.arc_next[word])


def _load_mapped(path: Path) -> NGramLM:
    return NGramLM.load(path, verify=False)


def _of_automaton(automaton: NGramAutomaton) -> NGramLM:
    return NGramLM._of(automaton)
