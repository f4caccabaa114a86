"""The Transformer language model: causal, blind to padding; steps with a cache equal a pass over the whole."""

import math

import pytest
import torch
from torch import Tensor

from mode_ssm.config import Activation, LanguageModelConfig
from mode_ssm.models.transformer_lm import MLP, ROPE_BASE, Rotation, TransformerLM
from mode_ssm.ops.linear_cross_entropy import two_level_cross_entropy

NUM_TOKENS = 23


def build(activation: Activation = Activation.gelu, **changes: object) -> TransformerLM:
    torch.manual_seed(0)
    values = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_hidden": 24, "frequent_tokens": 12, "dropout": 0.0}
    config = LanguageModelConfig(activation=activation, **{**values, **changes})
    model = TransformerLM(config, NUM_TOKENS).double().eval()
    with torch.no_grad():  # far from the small weights of the start, so that every path counts
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def tokens_of(rows: int, length: int) -> Tensor:
    return torch.randint(0, NUM_TOKENS, (rows, length), generator=torch.Generator().manual_seed(1))


def empty_past(model: TransformerLM, rows: int) -> tuple[Tensor, Tensor]:
    width = model.embedding.embedding_dim
    past = torch.zeros(rows, 0, len(model.blocks), 2, width, dtype=torch.float64)
    return past, torch.zeros(rows, dtype=torch.int64)


@pytest.mark.parametrize("activation", list(Activation))
def test_a_token_sees_itself_and_earlier_ones_only(activation: Activation) -> None:
    model, tokens = build(activation), tokens_of(2, 9)
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % NUM_TOKENS
    difference = (model(tokens) - model(changed)).abs().amax(-1)
    assert difference[:, :5].max() == 0
    assert difference[:, 5:].min() > 1e-6


def test_hidden_vectors_do_not_depend_on_padding_or_company() -> None:
    model, tokens = build(), tokens_of(3, 9)
    lengths = [9, 4, 6]
    whole = model(tokens)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(model(tokens[row : row + 1, :length])[0], whole[row, :length], atol=1e-10, rtol=0)


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("context", [3, 100])
def test_steps_with_a_cache_equal_the_pass_over_the_whole(activation: Activation, context: int) -> None:
    model, tokens = build(activation, context=context), tokens_of(2, 12)
    whole = model(tokens)
    past, lengths = empty_past(model, 2)
    place = 0
    for num_new in (1, 4, 1, 1, 3, 2):
        here = torch.full((2,), place)
        hidden, new = model.step(tokens[:, place : place + num_new], here, past, lengths)
        torch.testing.assert_close(hidden, whole[:, place : place + num_new], atol=1e-9, rtol=0)
        past = torch.cat([past, new], dim=1)[:, -(context - 1) :]
        lengths = torch.full((2,), past.shape[1])
        place += num_new


def test_histories_of_different_lengths_step_together() -> None:
    model, tokens = build(), tokens_of(3, 8)
    whole = model(tokens)
    lengths = torch.tensor([5, 0, 2])
    past, none = empty_past(model, 3)
    _, keys_and_values = model.step(tokens, torch.zeros(3, dtype=torch.int64), past, none)
    joined = torch.full((3, 5, *keys_and_values.shape[2:]), 7.0, dtype=torch.float64)  # what does not count is garbage
    for row, length in enumerate(lengths.tolist()):
        joined[row, 5 - length :] = keys_and_values[row, :length]
    next_two = torch.stack([tokens[row, n : n + 2] for row, n in enumerate(lengths.tolist())])
    hidden, new = model.step(next_two, lengths, joined, lengths)
    for row, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(hidden[row], whole[row, n : n + 2], atol=1e-9, rtol=0)
        torch.testing.assert_close(new[row], keys_and_values[row, n : n + 2], atol=1e-9, rtol=0)


def test_a_window_bounds_what_is_seen() -> None:
    """Two layers of a window of 3 reach 4 tokens back, and no further."""
    model, tokens = build(context=3), tokens_of(1, 10)
    changed = tokens.clone()
    changed[:, 2] = (changed[:, 2] + 1) % NUM_TOKENS
    difference = (model(tokens) - model(changed)).abs().amax(-1)[0]
    assert difference[6] > 1e-9
    assert difference[7:].max() == 0


def test_rotated_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 8, dtype=torch.float64).unbind(0)

    def product(of_q: int, of_k: int) -> float:
        turned = [Rotation(torch.tensor([place]), 8, torch.float64)(x) for place, x in ((of_q, q), (of_k, k))]
        return float((turned[0] * turned[1]).sum())

    assert product(5, 2) == pytest.approx(product(1_000_003, 1_000_000), rel=1e-8)
    assert product(5, 2) != pytest.approx(product(5, 3), rel=1e-3)
    assert product(4, 4) == pytest.approx(float((q * k).sum()))


def test_the_rotation_is_that_of_pairs_of_features() -> None:
    """Features 0 and 2 turn by the position itself, 1 and 3 by position / sqrt(base)."""
    x = torch.tensor([[[1.0, 0.0, 0.0, 1.0]]], dtype=torch.float64)
    turned = Rotation(torch.tensor([3]), 4, torch.float64)(x)[0, 0].tolist()
    slow = 3 / math.sqrt(ROPE_BASE)
    assert turned == pytest.approx([math.cos(3), -math.sin(slow), math.sin(3), math.cos(slow)])


@pytest.mark.parametrize("activation", list(Activation))
def test_gradients_reach_every_parameter(activation: Activation) -> None:
    model, tokens = build(activation).train(), tokens_of(4, 10)
    hidden = model(tokens[:, :-1]).flatten(0, 1)
    two_level_cross_entropy(hidden, *model.output_weights(), tokens[:, 1:].flatten()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_gated_mlp_has_the_parameters_of_a_plain_one() -> None:
    sizes = {a: sum(p.numel() for p in MLP(256, 1024, a).parameters()) for a in Activation}
    assert sizes[Activation.swiglu] == pytest.approx(sizes[Activation.gelu], rel=2e-3)
    assert sizes[Activation.sine] == sizes[Activation.gelu] + 3 * 1024


def test_output_is_tied_to_the_embedding() -> None:
    model = build()
    frequent, rare = model.output_weights()
    assert (frequent.shape, rare.shape) == ((13, 16), (11, 16))
    assert torch.equal(torch.cat([frequent[:-1], rare]), model.embedding.weight)
