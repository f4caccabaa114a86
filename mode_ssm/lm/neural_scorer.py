"""A neural language model behind the `BatchScorer` seam: rescoring of n-best lists, and delayed fusion.

A state remembers the keys and values of its history, one piece a word, shared by all states that grew from it. A
state's own word is read by the network only when something is asked about what follows it, so hypotheses that die
before their next word cost nothing. Histories are bounded by the network's `context`: memory stays flat.

Shapes: N states, T new tokens, P cached tokens, L layers, D width.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from mode_ssm.lm.scorer import BatchScorer, Scorer
from mode_ssm.lm.word_tokens import BOS, EOS, LETTERS, WordTokens
from mode_ssm.ops.lengths import few_sizes, length_mask
from mode_ssm.ops.linear_cross_entropy import two_level_log_probs

MAX_STATES = 256  # that one pass reads
MAX_TOKENS = 4096  # of whole sentences in one pass

Item = TypeVar("Item")


class TokenNetwork(Protocol):
    """What a scorer needs of a network over `WordTokens`; `mode_ssm.models.transformer_lm` has the contract."""

    context: int

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        """(L, 2, D) of the keys and values of one token."""
        ...

    def __call__(self, tokens: Tensor) -> Tensor: ...

    def step(
        self, tokens: Tensor, first_positions: Tensor, past: Tensor, past_lengths: Tensor
    ) -> tuple[Tensor, Tensor]: ...

    def output_weights(self) -> tuple[Tensor, Tensor]: ...


@dataclass(eq=False, slots=True)
class NeuralState:
    """A history. What it stands for never changes; `hidden` and `past` of its own tokens are filled in when needed.

    past: keys and values (t, L, 2, D) of the words before its own tokens, as far back as the context reaches.
    """

    past: tuple[Tensor, ...]
    position: int  # of the first of its own tokens
    tokens: tuple[int, ...]  # its last word, or <s>
    hidden: Tensor | None = field(default=None)  # (D,) after its tokens
    cached: Tensor | None = field(default=None)  # (t, L, 2, D) of its tokens


class NeuralScorer(BatchScorer):
    """Scores by a `TokenNetwork`. Sets no global threads or precision; can be pickled into worker processes.

    A word that `WordTokens` cannot spell has probability zero; it leaves the history as it was.
    """

    def __init__(self, network: TokenNetwork, tokens: WordTokens, device: torch.device | str = "cpu") -> None:
        """`network` is in evaluation mode and lies on `device`."""
        self.network, self.tokens, self.device = network, tokens, torch.device(device)
        with torch.no_grad():
            self._frequent, self._rare = network.output_weights()

    def __reduce__(self) -> tuple[Any, ...]:
        return NeuralScorer, (self.network, self.tokens, self.device)

    def start(self) -> NeuralState:
        return NeuralState(past=(), position=0, tokens=(BOS,))

    @torch.inference_mode()
    def advance(self, states: Sequence[NeuralState], words: Sequence[str]) -> tuple[np.ndarray, list[NeuralState]]:
        """A pair of state and word that comes twice is computed once and gives the same state."""
        pairs, places = _distinct(list(zip(states, words, strict=True)))
        paths = [self._path(word) for _, word in pairs]
        found = np.full(len(pairs), -math.inf)
        spellable = [number for number, path in enumerate(paths) if path]
        firsts = self._log_probs([pairs[number][0] for number in spellable], [paths[number][0] for number in spellable])
        found[spellable] = firsts
        following = [self._after(state, path) if path else state for (state, _), path in zip(pairs, paths, strict=True)]
        spelled = [number for number in spellable if len(paths[number]) > 1]
        found[spelled] += self._read_spelled([following[number] for number in spelled])
        return found[places], [following[place] for place in places]

    @torch.inference_mode()
    def end(self, states: Sequence[NeuralState]) -> np.ndarray:
        distinct, places = _distinct(states)
        return self._log_probs(distinct, [EOS] * len(distinct))[places]

    @torch.inference_mode()
    def sentence_log_probs(self, sentences: Sequence[Sequence[str]]) -> np.ndarray:
        distinct, places = _distinct([tuple(words) for words in sentences])
        found = np.full(len(distinct), -math.inf)
        spellable = [n for n, words in enumerate(distinct) if all(self._path(word) for word in words)]
        tokens = {n: self.tokens.of_sentence(distinct[n]) for n in spellable}
        longest = max((len(path) for path in tokens.values()), default=1)
        for rows in _chunks(sorted(spellable, key=lambda n: len(tokens[n])), max(1, MAX_TOKENS // longest)):
            padded, lengths = self._padded([tokens[n] for n in rows])
            found[rows] = self._behind_first(self.network(padded), padded, lengths)[: len(rows)]
        return found[places]

    def one_by_one(self) -> "OneByOneScorer":
        """The same model as a `Scorer`."""
        return OneByOneScorer(self)

    def _path(self, word: str) -> tuple[int, ...]:
        """The tokens of a word; none for one that cannot be spelled."""
        try:
            return self.tokens.of_word(word) if word else ()
        except ValueError:
            return ()

    def _after(self, state: NeuralState, path: tuple[int, ...]) -> NeuralState:
        """The state after a state that has been read and the tokens of a word."""
        assert state.cached is not None
        past = (*state.past, state.cached)
        num_tokens = sum(map(len, past))
        while num_tokens - len(past[0]) >= self.network.context - 1:
            num_tokens -= len(past[0])
            past = past[1:]
        return NeuralState(past=past, position=state.position + len(state.tokens), tokens=path)

    def _of_hidden(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return two_level_log_probs(hidden, self._frequent, self._rare, tokens).double()

    def _log_probs(self, states: Sequence[NeuralState], tokens: Sequence[int]) -> np.ndarray:
        """log P(tokens[i] | states[i]) (N,) float64."""
        if not states:
            return np.zeros(0)
        unread, _ = _distinct([state for state in states if state.hidden is None])
        for rows in _chunks(unread, MAX_STATES):
            self._read(rows)
        hidden = torch.stack([state.hidden for state in states if state.hidden is not None])
        return self._of_hidden(hidden, torch.tensor(tokens, device=self.device)).cpu().numpy()

    def _read_spelled(self, states: Sequence[NeuralState]) -> np.ndarray:
        """Read states whose word is spelled; log P(letters, end of word | history, <spell>) (N,) float64."""
        found = np.zeros(len(states))
        order = sorted(range(len(states)), key=lambda n: len(states[n].tokens))
        for rows in _chunks(order, MAX_STATES):
            hidden, tokens, lengths = self._read([states[n] for n in rows])
            found[rows] = self._behind_first(hidden, tokens, lengths)[: len(rows)]
        return found

    def _behind_first(self, hidden: Tensor, tokens: Tensor, lengths: Tensor) -> np.ndarray:
        """log P of all tokens of a row behind its first (N,) float64, from hidden (N, T, D)."""
        inside = length_mask(lengths - 1, tokens.shape[1] - 1)
        log_probs = torch.zeros(inside.shape, dtype=torch.float64, device=self.device)
        log_probs[inside] = self._of_hidden(hidden[:, :-1][inside], tokens[:, 1:][inside])
        return log_probs.sum(1).cpu().numpy()

    def _read(self, states: Sequence[NeuralState]) -> tuple[Tensor, Tensor, Tensor]:
        """Let the network read the states' own tokens; hidden (N, T, D), the tokens (N, T), and lengths (N,)."""
        tokens, lengths = self._padded([state.tokens for state in states])
        past_lengths = [sum(map(len, state.past)) for state in states]
        past = self._frequent.new_zeros(len(tokens), few_sizes(max(past_lengths)), *self.network.cache_shape)
        for row, (state, length) in enumerate(zip(states, past_lengths, strict=True)):
            if length:
                past[row, -length:] = torch.cat(state.past)
        none = [0] * (len(tokens) - len(states))
        hidden, cached = self.network.step(
            tokens,
            torch.tensor([*(state.position for state in states), *none], device=self.device),
            past,
            torch.tensor([*past_lengths, *none], device=self.device),
        )
        for row, state in enumerate(states):
            # Copies: a view would keep the whole batch alive as long as one of its states lives.
            state.hidden = hidden[row, len(state.tokens) - 1].clone()
            state.cached = cached[row, : len(state.tokens)].clone()
        return hidden, tokens, lengths

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """(tokens (N, T), zeros behind each row's end; lengths (N,)), with empty rows up to one of a few sizes."""
        lengths = np.zeros(few_sizes(len(rows)), np.int64)
        lengths[: len(rows)] = [len(row) for row in rows]
        padded = np.zeros((len(lengths), few_sizes(int(lengths.max()))), np.int64)
        for number, row in enumerate(rows):
            padded[number, : len(row)] = row
        return torch.from_numpy(padded).to(self.device), torch.from_numpy(lengths).to(self.device)


class OneByOneScorer(Scorer):
    """A `NeuralScorer` one word at a time."""

    def __init__(self, scorer: NeuralScorer) -> None:
        self._scorer = scorer
        tokens = scorer.tokens
        total = sum(tokens.counts) + tokens.num_spelled + 1
        self._unigrams = {w: math.log(n / total) for w, n in zip(tokens.words, tokens.counts, strict=True)}
        self._spell = math.log((tokens.num_spelled + 1) / total)
        self._letter = -math.log(len(LETTERS) + 1)

    def start(self) -> NeuralState:
        return self._scorer.start()

    def score(self, state: Any, word: str) -> tuple[float, NeuralState]:
        log_probs, states = self._scorer.advance([state], [word])
        return float(log_probs[0]), states[0]

    def end(self, state: Any) -> float:
        return float(self._scorer.end([state])[0])

    def unigram(self, word: str) -> float:
        """From counts of training; words without a token share what is theirs as if all letters were equally likely."""
        return self._unigrams.get(word, self._spell + (len(word) + 1) * self._letter)


def _distinct(items: Sequence[Item]) -> tuple[list[Item], list[int]]:
    """The different ones in the order in which they come, and the place of every item among them."""
    places: dict[Item, int] = {}
    found = [places.setdefault(item, len(places)) for item in items]
    return list(places), found


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[first : first + size] for first in range(0, len(items), size))
