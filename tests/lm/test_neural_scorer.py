"""The neural scorer: one word at a time equals whole sentences, in any company, with flat memory."""

import itertools
import math
import multiprocessing
import pickle

import numpy as np
import pytest
import torch

from mode_ssm.config import LanguageModelConfig
from mode_ssm.lm.neural_scorer import NeuralScorer
from mode_ssm.lm.word_tokens import WordTokens
from mode_ssm.models.transformer_lm import TransformerLM

TEXT = ["the cat saw the dog", "the dog saw the cat", "a dog is a dog", "it is it"]
SENTENCES = [
    ["the", "dog", "saw", "it"],
    ["a", "zebra", "saw", "the", "dog"],  # zebra is spelled
    [],
    ["it"],
    ["the", "dog", "saw", "it"],
    ["o'neil", "is", "a", "cat-dog", "the"],
]


def build(context: int = 128, frequent_tokens: int = 36) -> NeuralScorer:
    torch.manual_seed(0)
    tokens = WordTokens.of_text(TEXT, 100)
    config = LanguageModelConfig(
        d_model=16, n_layers=2, n_heads=2, d_hidden=24, context=context, frequent_tokens=frequent_tokens
    )
    network = TransformerLM(config, len(tokens)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return NeuralScorer(network, tokens)


def chain(scorer: NeuralScorer, words: list[str]) -> float:
    """log P of a sentence, a word at a time."""
    states, total = [scorer.start()], 0.0
    for word in words:
        log_probs, states = scorer.advance(states, [word])
        total += log_probs[0]
    return total + scorer.end(states)[0]


@pytest.mark.parametrize("context", [3, 128])
def test_a_word_at_a_time_equals_the_whole_sentence(context: int) -> None:
    scorer = build(context)
    whole = scorer.sentence_log_probs(SENTENCES)
    assert (whole.dtype, whole.shape) == (np.float64, (len(SENTENCES),))
    assert whole[0] == whole[4]
    assert [chain(scorer, words) for words in SENTENCES] == pytest.approx(whole.tolist(), abs=1e-5)


def test_whole_sentences_equal_the_network_by_hand() -> None:
    scorer = build()
    for words in SENTENCES:
        tokens = torch.tensor([scorer.tokens.of_sentence(words)])
        with torch.no_grad():
            hidden = scorer.network(tokens[:, :-1])[0]
            frequent, rare = scorer.network.output_weights()
            first, second = (hidden @ frequent.T).log_softmax(-1), (hidden @ rare.T).log_softmax(-1)
        total = 0.0
        for place, token in enumerate(tokens[0, 1:].tolist()):
            if token < len(frequent) - 1:
                total += float(first[place, token])
            else:
                total += float(first[place, -1] + second[place, token - len(frequent) + 1])
        assert scorer.sentence_log_probs([words])[0] == pytest.approx(total, abs=1e-4)


def test_company_in_a_batch_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = build()
    alone = [chain(scorer, words) for words in SENTENCES]
    whole = scorer.sentence_log_probs(SENTENCES)
    for size in (1, 2, 100):
        monkeypatch.setattr("mode_ssm.lm.neural_scorer.MAX_STATES", size)
        monkeypatch.setattr("mode_ssm.lm.neural_scorer.MAX_TOKENS", 20 * size)
        totals = np.zeros(len(SENTENCES))
        states = [scorer.start()] * len(SENTENCES)
        for place in range(max(map(len, SENTENCES))):
            going = [n for n, words in enumerate(SENTENCES) if place < len(words)]
            log_probs, following = scorer.advance([states[n] for n in going], [SENTENCES[n][place] for n in going])
            for n, log_prob, state in zip(going, log_probs, following, strict=True):
                totals[n] += log_prob
                states[n] = state
        totals += scorer.end(states)
        assert totals.tolist() == pytest.approx(alone, abs=1e-5)
        assert scorer.sentence_log_probs(SENTENCES).tolist() == pytest.approx(whole.tolist(), abs=1e-5)


def test_many_words_may_follow_one_state_which_stays_as_it_was() -> None:
    scorer = build()
    _, (state,) = scorer.advance([scorer.start()], ["the"])
    first, _ = scorer.advance([state] * 4, ["dog", "cat", "zebra", "dog"])
    again, states = scorer.advance([state] * 4, ["dog", "cat", "zebra", "dog"])
    assert first.tolist() == pytest.approx(again.tolist(), abs=1e-6)
    assert states[0] is states[3]
    assert again[0] == again[3]
    alone = [scorer.advance([state], [word])[0][0] for word in ("dog", "cat", "zebra")]
    assert again[:3].tolist() == pytest.approx(alone, abs=1e-5)


def test_what_nobody_asks_about_is_not_read() -> None:
    scorer = build()
    calls = []
    network = scorer.network
    step = network.step
    network.step = lambda tokens, *rest: calls.append(len(tokens)) or step(tokens, *rest)
    _, states = scorer.advance([scorer.start()] * 3, ["the", "dog", "cat"])
    assert calls == [1]  # the start, once
    scorer.advance(states[1:], ["saw", "saw"])
    assert calls == [1, 2]  # dog and cat
    scorer.end(states[1:])
    assert calls == [1, 2]


def test_batches_come_in_few_sizes() -> None:
    scorer = build()
    shapes = set()
    step = scorer.network.step
    scorer.network.step = lambda tokens, *rest: shapes.add(tuple(tokens.shape)) or step(tokens, *rest)
    for number in range(1, 60):
        states = [scorer.start() for _ in range(number)]
        scorer.advance(states, ["the"] * number)
    assert {rows for rows, _ in shapes} == {1, 2, 4, 8, 16, 32, 64}


@pytest.mark.parametrize("frequent_tokens", [36, 10_000])
def test_probabilities_of_words_and_end_sum_to_at_most_one(frequent_tokens: int) -> None:
    """All words that have a token, and all spelled ones of up to two letters; the rest is spelled longer."""
    scorer = build(frequent_tokens=frequent_tokens)
    state = scorer.advance([scorer.start()], ["the"])[1][0]
    letters = "abcdefghijklmnopqrstuvwxyz'-"
    short = [*letters, *map("".join, itertools.product(letters, repeat=2))]
    words = sorted({*scorer.tokens.words, *short})
    log_probs, _ = scorer.advance([state] * len(words), words)
    total = np.exp(log_probs).sum() + math.exp(scorer.end([state])[0])
    assert 0.1 < total < 1


def test_a_word_that_cannot_be_spelled_has_probability_zero_and_leaves_the_history() -> None:
    scorer = build()
    _, (state,) = scorer.advance([scorer.start()], ["the"])
    log_probs, states = scorer.advance([state, state], ["c3po", "dog"])
    assert log_probs[0] == -math.inf
    assert states[0] is state
    assert log_probs[1] > -math.inf
    assert scorer.sentence_log_probs([["the", "c3po"], ["the"]])[0] == -math.inf


def test_memory_of_an_endless_stream_is_flat() -> None:
    scorer = build(context=8)
    state = scorer.start()
    sizes = []
    for number in range(60):
        _, (state,) = scorer.advance([state], [("the", "zebra", "dog")[number % 3]])
        sizes.append(sum(len(piece) for piece in state.past))
    assert max(sizes[30:]) == max(sizes[:30])
    assert max(sizes) < 8 + 7  # seven tokens, and what is left of a spelled word


def test_one_by_one_it_is_a_scorer() -> None:
    scorer = build()
    single = scorer.one_by_one()
    for words in SENTENCES:
        assert single.sequence_log_prob(words) == pytest.approx(scorer.sentence_log_probs([words])[0], abs=1e-5)
    # 4 of 18 words are "the"; none occurs once, and one more stands for those to be spelled
    assert single.unigram("the") == pytest.approx(math.log(4 / 19))
    assert single.unigram("ox") == pytest.approx(math.log(1 / 19) - 3 * math.log(29))
    assert isinstance(hash(single.start()), int)


def _score(scorer: NeuralScorer) -> list[float]:
    return scorer.sentence_log_probs(SENTENCES).tolist()


def test_it_works_in_a_spawned_process() -> None:
    scorer = build()
    expected = _score(scorer)
    assert _score(pickle.loads(pickle.dumps(scorer))) == expected
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_score, (scorer,)) == pytest.approx(expected, abs=1e-5)
