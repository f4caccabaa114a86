"""The adapter for Hugging Face models, on a tiny one with random weights and a tokenizer made by hand."""

import itertools
import math
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mode_ssm.lm.huggingface_scorer import HuggingFaceScorer

TOKENS = ("<|endoftext|>", "x", ".", "Ġthe", "Ġdog", "Ġcat", "Ġdo", "gs", "s")
SENTENCES = [["the", "dog"], [], ["dogs", "the", "cat"], ["the", "dog"], ["cats"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2 with two small layers and a BPE whose words are tokens with a leading space, saved as from the hub."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    letters = sorted({letter for token in TOKENS[1:] for letter in token})
    vocabulary = {token: n for n, token in enumerate(dict.fromkeys([*TOKENS, *letters]))}
    merges = [("Ġ", "d"), ("Ġd", "o"), ("Ġdo", "g"), ("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("Ġ", "c"), ("Ġc", "a"),
              ("Ġca", "t")]  # fmt: skip
    for first, second in merges:
        vocabulary.setdefault(first + second, len(vocabulary))
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    end = "<|endoftext|>"
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(vocabulary), n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def scorer(folder: Path) -> HuggingFaceScorer:
    return HuggingFaceScorer(folder)


def chain(scorer: HuggingFaceScorer, words: list[str]) -> float:
    states, total = [scorer.start()], 0.0
    for word in words:
        log_probs, states = scorer.advance(states, [word])
        total += log_probs[0]
    return total + scorer.end(states)[0]


def by_hand(scorer: HuggingFaceScorer, text: str) -> float:
    """log P of all tokens of a text behind the start, one row through the network."""
    network: Any = scorer._network
    tokens = torch.tensor([[0, *scorer._tokenizer.encode(text)]])
    with torch.no_grad():
        log_probs = network(tokens).logits[0].log_softmax(-1)
    return float(log_probs[:-1].gather(1, tokens[0, 1:, None]).sum())


def test_words_are_tokens_with_the_space_before_them(scorer: HuggingFaceScorer) -> None:
    names = scorer._tokenizer.convert_ids_to_tokens
    assert names(scorer._of_word("the")) == ["Ġthe"]
    assert names(scorer._of_word("dogs")) == ["Ġdog", "s"]
    assert names(scorer._end) == ["."]


def test_a_sentence_is_scored_as_its_text(scorer: HuggingFaceScorer) -> None:
    found = scorer.sentence_log_probs(SENTENCES)
    assert (found.dtype, found.shape) == (np.float64, (5,))
    for words, log_prob in zip(SENTENCES, found, strict=True):
        text = "".join(f" {word}" for word in words) + "."
        assert log_prob == pytest.approx(by_hand(scorer, text), abs=1e-4)


def test_a_word_at_a_time_equals_the_whole_sentence_in_any_company(
    scorer: HuggingFaceScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scorer.sentence_log_probs(SENTENCES)
    assert [chain(scorer, words) for words in SENTENCES] == pytest.approx(whole.tolist(), abs=1e-5)
    monkeypatch.setattr("mode_ssm.lm.huggingface_scorer.MAX_TOKENS", 5)
    assert scorer.sentence_log_probs(SENTENCES).tolist() == pytest.approx(whole.tolist(), abs=1e-5)


def test_many_words_after_one_state_are_read_together(scorer: HuggingFaceScorer) -> None:
    state = scorer.advance([scorer.start()], ["the"])[1][0]
    words = ["dog", "dogs", "cat", "dog"]
    together, states = scorer.advance([state] * 4, words)
    alone = [scorer.advance([state], [word])[0][0] for word in words]
    assert together.tolist() == pytest.approx(alone, abs=1e-5)
    assert states[0] == states[3] != states[1]


def test_probabilities_sum_to_at_most_one(scorer: HuggingFaceScorer) -> None:
    words = ["the", "dog", "cat", *map("".join, itertools.product("xs.", repeat=2))]
    log_probs, _ = scorer.advance([scorer.start()] * len(words), words)
    total = np.exp(log_probs).sum() + math.exp(scorer.end([scorer.start()])[0])
    assert 0.01 < total < 1


def test_the_end_of_text_may_end_a_sentence(folder: Path) -> None:
    scorer = HuggingFaceScorer(folder, end=None)
    assert scorer.sentence_log_probs([["the"]])[0] == pytest.approx(by_hand(scorer, " the<|endoftext|>"), abs=1e-4)


def test_a_history_keeps_its_last_tokens(folder: Path) -> None:
    scorer = HuggingFaceScorer(folder, context=3)
    state = scorer.start()
    for word in ("the", "dogs", "cat"):
        _, (state,) = scorer.advance([state], [word])
    assert scorer._tokenizer.convert_ids_to_tokens(state) == ["Ġdog", "s", "Ġcat"]


def test_it_can_be_sent_to_another_process(scorer: HuggingFaceScorer) -> None:
    again = pickle.loads(pickle.dumps(scorer))
    assert again.sentence_log_probs(SENTENCES).tolist() == scorer.sentence_log_probs(SENTENCES).tolist()


def test_a_model_that_is_not_there_is_named_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="transformers cannot load it") as error:
        HuggingFaceScorer(tmp_path)
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="gpt2: Hugging Face models need the huggingface extra: uv sync --extra hugg"):
        HuggingFaceScorer("gpt2")
