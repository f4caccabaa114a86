"""How well a language model predicts text, beside an n-gram model on the same words."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mode_ssm.data.text_batches import length_sorted_batches
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.lm.text_file import read_sentences, read_texts
from mode_ssm.lm.word_tokens import WordTokens
from mode_ssm.models.transformer_lm import TransformerLM
from mode_ssm.ops.linear_cross_entropy import two_level_log_probs
from mode_ssm.tasks.language_model import next_token_pairs

BASELINE_ORDER = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPerplexity:
    """Perplexities per word of one text, sentence ends counted as words. An n-gram model says nothing about words that
    it does not know, so the two are compared on those that it knows."""

    text: str
    num_sentences: int
    num_words: int
    num_unknown: int  # to the n-gram model
    perplexity: float  # of all words
    perplexity_known: float  # of the words that the n-gram model knows
    ngram_perplexity: float  # of the same words

    @property
    def reduction(self) -> float:
        """By how much the perplexity lies below the n-gram model's, as a fraction of that."""
        return 1 - self.perplexity_known / self.ngram_perplexity


@torch.inference_mode()
def text_perplexity(
    model: TransformerLM,
    tokens: WordTokens,
    path: str | Path,
    baseline: NGramLM,
    device: torch.device,
    tokens_per_batch: int,
) -> TextPerplexity:
    """Perplexities of the text file `path`. Raises `ValueError` where it holds no sentence."""
    sentences = list(read_sentences(path))
    ngram = baseline.perplexity(sentences)
    text = tokens.of_sentences(sentences)
    known = [np.zeros(0, np.int64)]  # by token: does the n-gram model know its word?
    for sentence in sentences:
        words = sentence.split()
        by_word = [True, *(word in baseline for word in words), True]  # <s> and </s> too
        known.append(np.repeat(by_word, [1, *(len(tokens.of_word(word)) for word in words), 1]))
    by_token = np.concatenate(known)
    total = total_known = 0.0
    for batch, of_known in zip(
        length_sorted_batches(text.tokens, text.starts, tokens_per_batch),
        length_sorted_batches(by_token, text.starts, tokens_per_batch),
        strict=True,
    ):
        hidden, targets = next_token_pairs(model, batch.to(device))
        log_probs = two_level_log_probs(hidden, *model.output_weights(), targets).double().cpu()
        inside = torch.arange(batch.tokens.shape[1] - 1) < batch.lengths[:, None] - 1
        total += float(log_probs.sum())
        total_known += float(log_probs @ of_known.tokens[:, 1:][inside].double())
    return TextPerplexity(
        text=Path(path).name,
        num_sentences=len(text),
        num_words=text.num_words,
        num_unknown=ngram.num_unknown,
        perplexity=math.exp(-total / (text.num_words + len(text))),
        perplexity_known=math.exp(-total_known / ngram.num_words),
        ngram_perplexity=ngram.perplexity,
    )


def evaluate_texts(
    model: TransformerLM,
    tokens: WordTokens,
    train: Sequence[str],
    valid: Sequence[str],
    device: torch.device,
    tokens_per_batch: int,
) -> dict[str, Any]:
    """The JSON-able summary: for every text of `valid` its perplexity, beside that of a Kneser-Ney model of `train`."""
    baseline = NGramLM.estimate(read_texts(train), BASELINE_ORDER)
    found = [text_perplexity(model, tokens, path, baseline, device, tokens_per_batch) for path in valid]
    return {
        "task": "language_model",
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "num_words_with_token": len(tokens.words),
        "baseline": f"{baseline.order}-gram, interpolated modified Kneser-Ney, estimated from the training text",
        "texts": [asdict(result) | {"reduction": result.reduction} for result in found],
    }
