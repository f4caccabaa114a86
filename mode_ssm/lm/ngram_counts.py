"""From sentences to token ids to the distinct n-grams of a corpus and their counts."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mode_ssm.lm.ngram_automaton import BOS, EOS, UNK

BOS_ID, EOS_ID = 0, 1
UNKNOWN_ID = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Sentences as ids: words names them, `<s>` 0 and `</s>` 1 first, the others sorted.

    tokens (n,) int32 of all sentences one after the other, each between `<s>` and `</s>`; -1 for a word that is not in
    the vocabulary; `unknown` counts those.
    """

    words: tuple[str, ...]
    tokens: np.ndarray
    num_words: int  # without <s> and </s>
    unknown: Counter[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Distinct k-grams of a corpus, sorted: ids (n, k) int32, how often each occurs (n,) int64, and the rows (n,) of
    the first and of the last k-1 words of each in the table of order k-1."""

    ids: np.ndarray
    counts: np.ndarray
    prefix: np.ndarray
    suffix: np.ndarray


def read_corpus(sentences: Iterable[str], vocabulary: Iterable[str] | None = None, *, unk: bool = False) -> Corpus:
    """Number the words of normalised sentences, read once. `vocabulary` None: all words that occur are in it.

    With `unk` the words hold `<unk>`, which no token is. Raises `ValueError` for a sentence or a vocabulary that holds
    a reserved word, and where there is no sentence.
    """
    first_word = EOS_ID + 1
    closed = vocabulary is not None
    known = sorted(set(vocabulary)) if vocabulary is not None else []
    ids = {BOS: BOS_ID, EOS: EOS_ID}
    ids.update((word, index) for index, word in enumerate(known, start=first_word))
    if reserved := [word for word in (BOS, EOS, UNK) if word in known]:
        raise ValueError(f"reserved word(s) in the vocabulary: {', '.join(reserved)}")
    flat: list[np.ndarray] = []
    buffer: list[int] = []
    unknown: Counter[str] = Counter()
    num_sentences = num_tokens = 0
    for sentence in sentences:
        words = sentence.split()
        try:
            row = [ids[word] for word in words]
        except KeyError:
            if closed:
                row = [ids.get(word, UNKNOWN_ID) for word in words]
                unknown.update(word for word in words if word not in ids)
            else:
                row = [ids.setdefault(word, len(ids)) for word in words]
        if BOS_ID in row or EOS_ID in row:
            raise ValueError(f"a training sentence holds <s> or </s> as a word: {sentence.strip()!r}")
        buffer.append(BOS_ID)
        buffer += row
        buffer.append(EOS_ID)
        num_sentences += 1
        num_tokens += len(row)
        if len(buffer) > 1 << 16:
            flat.append(np.array(buffer, np.int32))
            buffer.clear()
    if num_sentences == 0:
        raise ValueError("cannot estimate a language model from no sentences")
    tokens = np.concatenate([*flat, np.array(buffer, np.int32)])
    if not closed:
        if UNK in ids:
            raise ValueError(f"reserved word(s) in the vocabulary: {UNK}")
        known = sorted(word for word in ids if word not in (BOS, EOS))
        rank = {word: index for index, word in enumerate((BOS, EOS, *known))}
        tokens = np.array([rank[word] for word in ids], np.int32)[tokens]
    # <unk> comes last, so that it does not shift the ids of the words.
    words_of_ids = (BOS, EOS, *known, *([UNK] if unk else []))
    return Corpus(words=words_of_ids, tokens=tokens, num_words=num_tokens, unknown=unknown)


def count_ngrams(tokens: np.ndarray, order: int, vocabulary_size: int) -> list[Counts]:
    """The k-grams without unknown words, k = 1 .. order, as far as there are any; all words as 1-grams."""
    rows = tokens  # row of the k-gram that starts at each position, -1 where there is none
    zeros = np.zeros(vocabulary_size, np.int64)
    counts = np.bincount(tokens[tokens >= 0], minlength=vocabulary_size)
    ids = np.arange(vocabulary_size, dtype=np.int32)[:, None]
    counted = [Counts(ids=ids, counts=counts, prefix=zeros, suffix=zeros)]
    for k in range(2, order + 1):
        last = tokens[k - 1 :]
        positions = np.flatnonzero((rows[: len(last)] >= 0) & (last >= 0) & (last != BOS_ID))
        if len(positions) == 0:
            break
        keys = rows[positions].astype(np.int64) * vocabulary_size + last[positions]
        in_order = np.argsort(keys)
        keys, positions = keys[in_order], positions[in_order]
        is_new = np.ones(len(keys), bool)
        is_new[1:] = keys[1:] != keys[:-1]
        firsts = np.flatnonzero(is_new)
        prefix, word = np.divmod(keys[firsts], vocabulary_size)
        counted.append(
            Counts(
                ids=np.column_stack([counted[-1].ids[prefix], word.astype(np.int32)]),
                counts=np.diff(firsts, append=len(keys)),
                prefix=prefix,
                suffix=rows[positions[firsts] + 1].astype(np.int64),
            )
        )
        rows = np.full(len(tokens), -1, np.int32)
        rows[positions] = np.cumsum(is_new) - 1
    return counted
