"""Batches of text: every sentence once, hardly any padding, the same from the same seed, shared by ranks."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mode_ssm.data.text_batches import TextBatch, TextLoader, length_sorted_batches, text_batch


def text_of(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Sentence i consists of `lengths[i]` tokens i + 1."""
    tokens = np.repeat(np.arange(1, len(lengths) + 1), lengths).astype(np.int32)
    return tokens, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def sentences_of(batches: list[TextBatch]) -> list[int]:
    return [int(row[0]) for batch in batches for row in batch.tokens]


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 40), min_size=4, max_size=80),
    tokens_per_batch=st.integers(1, 200),
    world_size=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
def test_ranks_share_every_sentence_of_an_epoch(
    lengths: list[int], tokens_per_batch: int, world_size: int, epoch: int
) -> None:
    tokens, starts = text_of(lengths)
    loaders = [TextLoader(tokens, starts, tokens_per_batch, 0, rank, world_size) for rank in range(world_size)]
    batches = [list(loader.epoch(epoch)) for loader in loaders]
    assert {len(of_rank) for of_rank in batches} == {loaders[0].steps_per_epoch}
    everything = [batch for of_rank in batches for batch in of_rank]
    assert all(len(batch) for batch in everything)
    assert sorted(sentences_of(everything)) == list(range(1, len(lengths) + 1))


def test_batches_hold_about_as_many_tokens_as_asked_and_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(3, 30, 3000).tolist()
    loader = TextLoader(*text_of(lengths), 500, 0)
    sizes = [int(batch.lengths.sum()) for batch in loader.epoch(0)]
    padded = [batch.tokens.numel() for batch in loader.epoch(0)]
    assert min(sizes) > 450
    assert max(sizes) < 530
    assert sum(sizes) / sum(padded) > 0.98


def test_an_epoch_is_a_function_of_seed_and_number_and_continues_anywhere() -> None:
    tokens, starts = text_of(list(np.random.default_rng(0).integers(3, 20, 200)))

    def order(seed: int, epoch: int, start: int = 0) -> list[int]:
        return sentences_of(list(TextLoader(tokens, starts, 100, seed).epoch(epoch, start)))

    whole = list(TextLoader(tokens, starts, 100, 1).epoch(2))
    assert order(1, 2) == order(1, 2)
    assert order(1, 2, 5) == sentences_of(whole[5:])
    assert order(1, 2, len(whole)) == []
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_company_changes_from_epoch_to_epoch() -> None:
    tokens, starts = text_of([5] * 100)
    loader = TextLoader(tokens, starts, 50, 0)
    first, second = ({frozenset(sentences_of([batch])) for batch in loader.epoch(epoch)} for epoch in (0, 1))
    assert not first & second


def test_a_batch_is_padded_at_the_end_with_zeros() -> None:
    batch = text_batch(*text_of([2, 4, 3]), np.array([2, 0]))
    assert batch.tokens.tolist() == [[3, 3, 3], [1, 1, 0]]
    assert batch.lengths.tolist() == [3, 2]
    assert (batch.tokens.dtype, len(batch)) == (torch.int64, 2)


def test_for_evaluation_every_sentence_comes_once_shortest_first() -> None:
    batches = list(length_sorted_batches(*text_of([7, 3, 5, 3]), 8))
    assert sorted(sentences_of(batches)) == [1, 2, 3, 4]
    lengths = list(itertools.chain.from_iterable(batch.lengths.tolist() for batch in batches))
    assert lengths == sorted(lengths)


def test_fewer_sentences_than_processes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"text\.train holds 1 sentences, fewer than the 2 processes"):
        TextLoader(*text_of([3]), 10, 0, 0, 2)
    with pytest.raises(ValueError, match="start_batch=9"):
        TextLoader(*text_of([3, 4]), 10, 0).epoch(0, 9).__next__()
