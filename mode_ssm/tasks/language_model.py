"""The language-model task: sentences of words to a Transformer over words, its objective, quick validation."""

import math
from collections.abc import Mapping
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from mode_ssm.config import PhaseConfig, TrainConfig
from mode_ssm.data.text_batches import TextBatch, TextLoader, length_sorted_batches
from mode_ssm.lm.text_file import read_texts
from mode_ssm.lm.word_tokens import TokenisedText, WordTokens
from mode_ssm.models.transformer_lm import TransformerLM
from mode_ssm.ops.lengths import length_mask
from mode_ssm.ops.linear_cross_entropy import two_level_cross_entropy, two_level_log_probs
from mode_ssm.tasks.sharding import Ranks
from mode_ssm.tasks.task import LossTerms, Objective, ResumableLoader

TERM = "cross_entropy"


def restore_language_model(
    config: TrainConfig, description: Mapping[str, Any], weights: dict[str, Tensor]
) -> tuple[TransformerLM, WordTokens]:
    """The model and the words of a checkpoint, without its texts."""
    words = WordTokens.restore(description["tokens"])
    model = TransformerLM(config.language_model, len(words))
    model.load_state_dict(weights)
    return model.eval(), words


class NextTokenObjective(Objective):
    """-log P(token | tokens before it), summed over a batch; `<s>` is given, all others are predicted."""

    model: TransformerLM

    def __init__(self, model: TransformerLM) -> None:
        super().__init__()
        self.model = model

    def counts(self, batch: TextBatch) -> dict[str, float]:
        return {TERM: float((batch.lengths - 1).sum())}

    def forward(self, batch: TextBatch) -> LossTerms:
        hidden, targets = next_token_pairs(self.model, batch)
        total = two_level_cross_entropy(hidden, *self.model.output_weights(), targets)
        return {TERM: (total, (batch.lengths - 1).sum())}


def next_token_pairs(model: TransformerLM, batch: TextBatch) -> tuple[Tensor, Tensor]:
    """Hidden vectors (N, D) and the tokens (N,) that follow them, of all sentences one after the other."""
    hidden = model(batch.tokens[:, :-1])
    inside = length_mask(batch.lengths - 1, hidden.shape[1])
    return hidden[inside], batch.tokens[:, 1:][inside]


class LanguageModelTask:
    """Implements `Task`."""

    select_metric = "val/perplexity"

    def __init__(self, config: TrainConfig, device: torch.device, progress: bool = True) -> None:
        self.config, self.device, self.progress = config, device, progress
        self.tokens: WordTokens
        self.train_text: TokenisedText
        self.valid_text: TokenisedText
        self._model: TransformerLM

    def setup(self) -> None:
        config = self.config
        sentences = list(read_texts(config.text.train))
        self.tokens = WordTokens.of_text(sentences, config.language_model.vocabulary_size)
        self.train_text = self.tokens.of_sentences(sentences)
        self.valid_text = self.tokens.of_sentences(read_texts(config.text.valid))
        torch.manual_seed(config.seed)  # the same weights on every rank
        self._model = TransformerLM(config.language_model, len(self.tokens)).to(self.device)
        if self.progress:
            print(self.headline(), flush=True)

    def headline(self) -> str:
        """One line on model and data."""
        text, parameters = self.train_text, sum(p.numel() for p in self.model.parameters())
        return (
            f"language model: {parameters:,} parameters, {len(self.tokens.words):,} words and spelling; "
            f"{len(text):,} training sentences, {text.num_words:,} words, {len(text.tokens):,} tokens; "
            f"{len(self.valid_text):,} for validation"
        )

    @property
    def model(self) -> TransformerLM:
        return self._model

    def modules(self) -> Mapping[str, nn.Module]:
        return {"language_model": self.model}

    def train_loader(self, phase: PhaseConfig, rank: int, world_size: int) -> ResumableLoader:
        text, config = self.train_text, self.config
        return TextLoader(text.tokens, text.starts, config.text.tokens_per_batch, config.seed, rank, world_size)

    def objective(self, phase: PhaseConfig) -> Objective:
        return NextTokenObjective(self.model)

    def loss_weights(self, phase: PhaseConfig) -> dict[str, float]:
        return {TERM: phase.loss.cross_entropy}

    def evaluate(self, ranks: Ranks) -> dict[str, float]:
        """`val/perplexity` per word over the validation text: all words, sentence ends counted as words."""
        text, shares = self.valid_text, ranks.gather_objects(ranks.together(lambda: self._batch_log_probs(ranks)))
        total = math.fsum(chain.from_iterable(shares))  # rounds once: the same in any order, on any number of ranks
        return {"val/perplexity": math.exp(-total / (text.num_words + len(text)))}

    @torch.inference_mode()
    def _batch_log_probs(self, ranks: Ranks) -> list[float]:
        """Log-probability of every batch of the validation text that is this rank's: each `world_size`-th."""
        text = self.valid_text
        batches = length_sorted_batches(text.tokens, text.starts, self.config.text.tokens_per_batch)
        log_probs = []
        for batch in islice(batches, ranks.rank, None, ranks.world_size):
            hidden, targets = next_token_pairs(self.model, batch.to(self.device))
            of_tokens = two_level_log_probs(hidden, *self.model.output_weights(), targets)
            log_probs.append(float(of_tokens.double().sum()))
        return log_probs

    def describe(self) -> dict[str, Any]:
        return {
            "task": self.config.task.name.value,
            "tokens": self.tokens.describe(),
            "num_parameters": sum(p.numel() for p in self.model.parameters()),
        }
