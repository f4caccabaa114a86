"""The transducer searches against an enumeration of every alignment."""

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from mode_ssm.decode.transducer_beam import beam_transducer, beam_transducer_batch, greedy_transducer


class TableModel:
    """A stateless predictor and an additive joiner with random weights."""

    def __init__(self, num_classes, context, dim, seed=0, scale=1.5):
        generator = torch.Generator().manual_seed(seed)
        self.context = context
        self.num_classes = num_classes
        self.embedding = torch.randn(context, num_classes, dim, generator=generator) * scale
        self.output = torch.randn(dim, num_classes, generator=generator) * scale
        self.calls = 0

    def log_probs(self, frames, contexts):
        self.calls += 1
        assert contexts.shape == (len(frames), self.context)
        assert contexts.dtype == torch.int64
        embedded = sum(self.embedding[i, contexts[:, i]] for i in range(self.context))
        return (torch.tanh(frames + embedded) @ self.output).log_softmax(-1)


def next_log_probs(model, frame, labels):
    context = ([0] * model.context + list(labels))[-model.context :] if model.context else []
    return model.log_probs(frame[None], torch.tensor([context]))[0].tolist()


def exhaustive(model, frames, max_symbols):
    """log P of every label sequence, summed over all alignments with at most `max_symbols` labels a frame."""
    scores = {(): 0.0}
    for frame in frames:
        after = defaultdict(list)
        for labels, score in scores.items():
            for n in range(max_symbols + 1):
                for emitted in itertools.product(range(1, model.num_classes), repeat=n):
                    total = score
                    for i, symbol in enumerate(emitted):
                        total += next_log_probs(model, frame, labels + emitted[:i])[symbol]
                    total += next_log_probs(model, frame, labels + emitted)[0]
                    after[labels + emitted].append(total)
        scores = {labels: float(np.logaddexp.reduce(totals)) for labels, totals in after.items()}
    return scores


@settings(max_examples=15, deadline=None)
@given(frames=st.integers(1, 3), context=st.integers(1, 2), seed=st.integers(0, 1000))
def test_a_wide_beam_equals_the_forward_score_of_every_sequence(frames, context, seed):
    model = TableModel(3, context, 4, seed)
    encoder_out = torch.randn(frames, 4, generator=torch.Generator().manual_seed(seed + 1))
    expected = exhaustive(model, encoder_out, max_symbols=2)
    found = beam_transducer(model, encoder_out, beam_size=10**6, max_symbols=2, nbest=10**6)
    assert {h.labels for h in found} == set(expected)
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(expected[hypothesis.labels], abs=1e-5)
    assert found[0].labels == max(expected, key=expected.__getitem__)
    total = [h.score for h in found]
    assert total == sorted(total, reverse=True)


def test_score_equals_torchaudio_rnnt_loss():
    model = TableModel(3, 1, 4, seed=3)
    encoder_out = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    found = {h.labels: h.score for h in beam_transducer(model, encoder_out, 10**6, 3, nbest=10**6)}
    for labels in [(1,), (2, 1), (1, 1, 2)]:
        contexts = [0, *labels]
        logits = torch.stack(
            [model.log_probs(encoder_out, torch.full((4, 1), previous)) for previous in contexts], dim=1
        )
        loss = torchaudio.functional.rnnt_loss(
            logits[None].contiguous(),
            torch.tensor([labels], dtype=torch.int32),
            torch.tensor([4], dtype=torch.int32),
            torch.tensor([len(labels)], dtype=torch.int32),
            blank=0,
        )
        assert found[labels] == pytest.approx(-float(loss), abs=1e-4)


def greedy_reference(model, frames, max_symbols):
    labels = []
    for frame in frames:
        for _ in range(max_symbols):
            symbol = int(np.argmax(next_log_probs(model, frame, labels)))
            if symbol == 0:
                break
            labels.append(symbol)
    return labels


def padded_batch(lengths, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(lengths), max(lengths), dim, generator=generator), torch.tensor(lengths)


@pytest.mark.parametrize("max_symbols", [1, 3])
def test_greedy_follows_the_best_symbol_and_ignores_padding(max_symbols):
    model = TableModel(5, 2, 6)
    encoder_out, lengths = padded_batch([9, 4, 1, 12], 6)
    found = greedy_transducer(model, encoder_out, lengths, max_symbols)
    expected = [
        greedy_reference(model, row[:length], max_symbols)
        for row, length in zip(encoder_out, lengths.tolist(), strict=True)
    ]
    assert found == expected
    assert max(map(len, found)) > 4


def test_a_batch_decodes_as_its_utterances_alone():
    model = TableModel(5, 2, 6)
    encoder_out, lengths = padded_batch([9, 4, 1, 12], 6)
    batch = beam_transducer_batch(model, encoder_out, lengths, beam_size=4, max_symbols=3, nbest=3)
    for row, length, found in zip(encoder_out, lengths.tolist(), batch, strict=True):
        alone = beam_transducer(model, row[:length], beam_size=4, max_symbols=3, nbest=3)
        assert [h.labels for h in found] == [h.labels for h in alone]
        assert [h.score for h in found] == pytest.approx([h.score for h in alone], abs=1e-4)


def test_a_wider_beam_finds_no_worse_sequences():
    model = TableModel(4, 1, 6, seed=5)
    encoder_out, lengths = padded_batch([6] * 12, 6, seed=2)
    best = [
        [nbest[0].score for nbest in beam_transducer_batch(model, encoder_out, lengths, size, 3)]
        for size in (1, 4, 200)
    ]
    assert np.mean(best[0]) < np.mean(best[1]) <= np.mean(best[2]) + 1e-6


def test_the_network_is_called_once_for_all_hypotheses_of_a_step():
    model = TableModel(5, 2, 6)
    encoder_out, lengths = padded_batch([7] * 10, 6)
    beam_transducer_batch(model, encoder_out, lengths, beam_size=4, max_symbols=3)
    assert model.calls <= 7 * 4


def test_an_empty_utterance_and_bad_settings():
    model = TableModel(4, 1, 6)
    assert [h.labels for h in beam_transducer(model, torch.zeros(0, 6), 4, 3)] == [()]
    assert math.isclose(beam_transducer(model, torch.zeros(0, 6), 4, 3)[0].score, 0.0)
    assert greedy_transducer(model, torch.zeros(1, 0, 6), torch.tensor([0]), 3) == [[]]
    with pytest.raises(ValueError, match="max_symbols must be at least 1, not 0"):
        greedy_transducer(model, torch.zeros(1, 2, 6), torch.tensor([2]), 0)
    with pytest.raises(ValueError, match="beam_size and nbest must be at least 1, not 0 and 1"):
        beam_transducer(model, torch.zeros(2, 6), 0, 3)
