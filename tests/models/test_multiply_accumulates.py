"""Multiply-accumulates against counts by hand."""

import pytest
import torch
from torch import nn

from mode_ssm.config import EncoderConfig, GruConfig, Mixer, ModelConfig, ModelKind, TransformerConfig
from mode_ssm.models.gru_baseline import GRUBaseline
from mode_ssm.models.mamba import Mamba, Mamba2
from mode_ssm.models.multiply_accumulates import count_module, multiply_accumulates
from mode_ssm.models.ssm_encoder import SSMEncoder
from mode_ssm.models.transformer_baseline import CausalAttention, TransformerBaseline
from mode_ssm.ops import backends

B, T, D = 2, 9, 16
CONFIG = EncoderConfig(n_layers=1, d_state=8, d_conv=4, expand=2, headdim=8, bidirectional=True)
X, LENGTHS = torch.randn(B, T, D), torch.tensor([9, 6])


@pytest.fixture(params=["auto", "torch"])
def any_backend(request):
    backends.request(request.param)
    yield
    backends.request("auto")


def test_a_linear_layer():
    assert count_module(nn.Linear(D, 5), X) == B * T * D * 5


def test_a_gru_has_three_gates_of_input_and_state_in_every_layer():
    gru = nn.GRU(D, 6, num_layers=2, batch_first=True)
    assert count_module(gru, X) == B * T * (3 * 6 * (D + 6) + 3 * 6 * (6 + 6))


def test_attention_has_four_projections_and_all_pairs_of_frames_twice():
    attention = CausalAttention(TransformerConfig(d_model=D, n_heads=2, head_dim=5)).eval()
    width = 2 * 5
    assert count_module(attention, X) == B * (T * D * 3 * width + 2 * T * T * width + T * width * D)


def test_mamba2_on_every_backend(any_backend):
    inner, states, heads, width = 32, 8, 4, 4
    projections = D * (2 * inner + 2 * states + heads) + inner * D
    scan = inner * (states + states + states) + inner * 2  # decay, input, readout; dt x and D x
    frame = projections + (inner + 2 * states) * width + scan
    assert count_module(Mamba2(D, CONFIG), X, LENGTHS) == B * T * frame


def test_mamba_on_every_backend(any_backend):
    inner, states, rank, width = 32, 8, 1, 4
    projections = D * 2 * inner + inner * (rank + 2 * states) + rank * inner + inner * D
    frame = projections + inner * width + inner * (4 * states + 2)
    assert count_module(Mamba(D, CONFIG), X, LENGTHS) == B * T * frame


@pytest.mark.parametrize("mixer", list(Mixer))
def test_a_bidirectional_encoder_has_two_mixers_a_block(mixer):
    config = EncoderConfig(n_layers=3, d_state=8, expand=2, headdim=8, bidirectional=True, mixer=mixer)
    encoder = SSMEncoder(D, config)
    one = count_module(encoder.blocks[0].mixer, X, LENGTHS)
    assert count_module(encoder, X, LENGTHS) == 6 * one


def test_whole_baselines():
    features, lengths, sessions = torch.zeros(1, 12, 6), torch.tensor([12]), torch.tensor([0])
    gru = GruConfig(session_layers=True, patch_size=4, patch_stride=2, hidden=8, n_layers=1, dropout=0.0)
    transformer = TransformerConfig(patch_size=2, d_model=8, n_layers=1, n_heads=2, head_dim=4)
    config = ModelConfig(kind=ModelKind.gru, gru=gru, transformer=transformer)
    frames, classes = 5, 41
    assert multiply_accumulates(GRUBaseline(config, 6, 1).eval(), features, lengths, sessions) == (
        12 * 6 * 6 + frames * 3 * 8 * (4 * 6 + 8) + frames * 8 * classes
    )
    frames = 6
    attention = frames * 8 * 24 + 2 * frames * frames * 8 + frames * 8 * 8
    assert multiply_accumulates(TransformerBaseline(config, 6, 1).eval(), features, lengths, sessions) == (
        frames * 12 * 8 + attention + frames * 2 * 8 * 32 + frames * 8 * classes
    )
