"""Any causal language model of Hugging Face behind the `BatchScorer` seam, with the `huggingface` extra.

Histories are read anew with every word, because how to cache them differs between models; whole sentences are read
once. So such a model is better after the search than inside it.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mode_ssm.lm.scorer import BatchScorer

MAX_TOKENS = 2048  # of one pass; each has a logit for every token of a large vocabulary
_BEFORE = "x"  # stands before a word, so that the tokenizer sees the space between them

Tokens = tuple[int, ...]


class HuggingFaceScorer(BatchScorer):
    """States are the tokens of a history, the last `context` of them. Words are scored as they come, in lower case."""

    def __init__(
        self,
        model: str | Path,
        device: torch.device | str = "cpu",
        *,
        end: str | None = ".",
        context: int = 128,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """
        Args:
            model: name or folder, as transformers' `from_pretrained` takes it.
            end: text that stands for the end of a sentence; None: the tokenizer's end-of-text token, which models of
                long documents find improbable after every sentence.
            context: tokens that a history keeps.
            dtype: of the weights.

        Raises `ValueError` without the `transformers` package, for a model that cannot be loaded, and for a tokenizer
        that marks no start or end of text.
        """
        try:
            transformers: Any = import_module("transformers")
        except ImportError:
            raise ValueError(
                f"{model}: Hugging Face models need the huggingface extra: uv sync --extra huggingface"
            ) from None
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(model))
            self._network = transformers.AutoModelForCausalLM.from_pretrained(str(model), dtype=dtype)
        except (OSError, ValueError) as error:
            reason = next(filter(None, (line.strip() for line in str(error).splitlines())), type(error).__name__)
            raise ValueError(f"{model}: transformers cannot load it: {reason}") from None
        self._arguments = {"end": end, "context": context, "dtype": dtype}
        self._name, self._device, self._context = model, torch.device(device), context
        self._network.to(self._device).eval().requires_grad_(False)
        start = self._tokenizer.bos_token_id
        start = self._tokenizer.eos_token_id if start is None else start
        if start is None or (end is None and self._tokenizer.eos_token_id is None):
            raise ValueError(f"{model}: its tokenizer has no token for the start or the end of a text")
        self._start: Tokens = (start,)
        self._end = (self._tokenizer.eos_token_id,) if end is None else self._following(end)
        self._words: dict[str, Tokens] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _load, (self._name, self._device, self._arguments)

    def start(self) -> Tokens:
        return self._start

    def advance(self, states: Sequence[Tokens], words: Sequence[str]) -> tuple[np.ndarray, list[Tokens]]:
        pieces = [self._of_word(word) for word in words]
        following = [(state + new)[-self._context :] for state, new in zip(states, pieces, strict=True)]
        return self._log_probs(states, pieces), following

    def end(self, states: Sequence[Tokens]) -> np.ndarray:
        return self._log_probs(states, [self._end] * len(states))

    def sentence_log_probs(self, sentences: Sequence[Sequence[str]]) -> np.ndarray:
        """Whole sentences, also where they are longer than the context of a state."""
        pieces = [sum((self._of_word(word) for word in words), ()) + self._end for words in sentences]
        return self._log_probs([self._start] * len(pieces), pieces)

    def _of_word(self, word: str) -> Tokens:
        if word not in self._words:
            self._words[word] = self._following(f" {word}")
        return self._words[word]

    def _following(self, text: str) -> Tokens:
        """The tokens of `text` where it follows something."""
        before, whole = (tuple(self._tokenizer.encode(t, add_special_tokens=False)) for t in (_BEFORE, _BEFORE + text))
        if whole[: len(before)] != before or len(whole) == len(before):
            raise ValueError(f"{self._name}: its tokenizer does not part {text!r} from what stands before it")
        return whole[len(before) :]

    @torch.inference_mode()
    def _log_probs(self, histories: Sequence[Tokens], pieces: Sequence[Tokens]) -> np.ndarray:
        """log P(pieces[i] | histories[i]) (n,) float64. Rows that the network would read twice are read once."""
        rows: dict[Tokens, list[int]] = {}
        for number, (history, new) in enumerate(zip(histories, pieces, strict=True)):
            rows.setdefault(history + new[:-1], []).append(number)
        found = np.zeros(len(histories))
        for chunk in _chunks(sorted(rows, key=len)):
            lengths = [len(row) for row in chunk]
            tokens = torch.zeros(len(chunk), max(lengths), dtype=torch.int64)
            for place, row in enumerate(chunk):
                tokens[place, : len(row)] = torch.tensor(row)
            mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
            logits = self._network(
                input_ids=tokens.to(self._device), attention_mask=mask.long().to(self._device), use_cache=False
            ).logits
            for place, row in enumerate(chunk):
                asked = max(len(pieces[number]) for number in rows[row])
                log_probs = logits[place, len(row) - asked : len(row)].float().log_softmax(-1).double().cpu().numpy()
                for number in rows[row]:
                    wanted = np.array(pieces[number])
                    found[number] = log_probs[np.arange(asked - len(wanted), asked), wanted].sum()
        return found


def _load(name: str | Path, device: torch.device, arguments: dict[str, Any]) -> HuggingFaceScorer:
    return HuggingFaceScorer(name, device, **arguments)


def _chunks(rows: Sequence[Tokens]) -> list[list[Tokens]]:
    """Rows in order of length in parts of at most `MAX_TOKENS` tokens with padding, or one row."""
    chunks: list[list[Tokens]] = []
    for row in rows:
        if chunks and (len(chunks[-1]) + 1) * len(row) <= MAX_TOKENS:
            chunks[-1].append(row)
        else:
            chunks.append([row])
    return chunks
