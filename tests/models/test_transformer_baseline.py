"""The time-masked causal Transformer: size, frames, padding, causality, distances, masks."""

import pytest
import torch
from torch import Tensor

from mode_ssm.config import ModelConfig, ModelKind, TransformerConfig
from mode_ssm.models.transformer_baseline import TransformerBaseline, causal_bias, draw_time_masks
from mode_ssm.vocab import NUM_CLASSES

C, S = 6, 3


def build(**changes: object) -> TransformerBaseline:
    torch.manual_seed(2)
    settings = {
        "d_model": 16, "n_layers": 2, "n_heads": 2, "head_dim": 4, "mlp_ratio": 2, "max_distance": 5, "dropout": 0.0,
        "input_dropout": 0.0, "time_masks": 3, "time_mask_max_fraction": 0.5,
    }  # fmt: skip
    config = TransformerConfig(**(settings | changes))  # type: ignore[arg-type]
    model = TransformerBaseline(ModelConfig(kind=ModelKind.transformer, transformer=config), C, S).double().eval()
    for parameter in model.parameters():  # away from special starting values
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def batch() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(3, 30, C, dtype=torch.float64), torch.tensor([30, 11, 21]), torch.tensor([0, 2, -1])


def test_its_parameters_are_those_of_the_paper_counted_by_hand() -> None:
    with torch.device("meta"):
        model = TransformerBaseline(ModelConfig(kind=ModelKind.transformer), feature_dim=512, num_sessions=45)
    patch, d, hidden, heads = 4 * 512, 384, 4 * 384, 6 * 64
    embedding = patch + 2 * patch + (patch * d + d) + 2 * d  # mask token, norm, projection, norm
    attention = 2 * d + d * 3 * heads + 200 + (heads * d + d)
    mlp = 2 * d + (d * hidden + hidden) + (hidden * d + d)
    total = embedding + 5 * (attention + mlp) + 2 * d + (d * 41 + 41)
    assert sum(p.numel() for p in model.parameters()) == total == 9_677_841


@pytest.mark.parametrize("session_layers", [True, False])
def test_padding_and_companions_change_nothing(session_layers: bool) -> None:
    model = build(session_layers=session_layers)
    x, lengths, sessions = batch()
    together = model(x, lengths, sessions)  # what stands beyond the lengths is noise
    assert together.phoneme_logits.shape == (3, 8, NUM_CLASSES)
    assert together.lengths.tolist() == [8, 3, 6]
    for row, length in enumerate(lengths):
        alone = model(x[row : row + 1, :length], lengths[row : row + 1], sessions[row : row + 1])
        frames = int(together.lengths[row])
        torch.testing.assert_close(together.phoneme_logits[row, :frames], alone.phoneme_logits[0], atol=1e-12, rtol=0)


def test_a_frame_sees_its_patch_and_what_came_before() -> None:
    model = build()
    x, lengths, sessions = (part[:1] for part in batch())
    before = model(x, lengths, sessions).phoneme_logits
    for t in (0, 5, 18):
        changed = x.clone()
        changed[:, t] += 1
        difference = (model(changed, lengths, sessions).phoneme_logits - before).abs()
        assert difference[:, : t // 4].sum() == 0
        assert difference[:, t // 4 :].max(-1).values.min() > 1e-9


@pytest.mark.parametrize("length", [1, 3, 4, 7])
def test_the_bias_is_that_of_the_distance_and_no_later_key_is_seen(length: int) -> None:
    by_distance = torch.tensor([10.0, 11.0, 12.0, 13.0])
    bias = causal_bias(by_distance, length)
    expected = torch.full((length, length), -torch.inf)
    for i in range(length):
        for j in range(i + 1):
            expected[i, j] = 10.0 + min(i - j, 3)
    assert torch.equal(bias, expected)


def test_a_frame_knows_distances_and_not_how_late_it_is() -> None:
    """One layer that sees two frames back says the same of the same end, whatever came long before."""
    model = build(max_distance=40, n_layers=1)
    x = torch.randn(1, 12, C, dtype=torch.float64)
    bias = model.encoder.blocks[0].attention.distance_bias
    with torch.no_grad():
        bias[3:] = -1e9  # nothing farther than two frames is seen
    late = torch.cat([torch.randn(1, 20, C, dtype=torch.float64), x], 1)
    alone = model(x, torch.tensor([12]), torch.tensor([0])).phoneme_logits
    after = model(late, torch.tensor([32]), torch.tensor([0])).phoneme_logits
    torch.testing.assert_close(after[:, -1], alone[:, -1])


def test_masks_cover_stretches_of_at_most_their_part_of_the_trial() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([200, 40, 7]).repeat(300)
    one = draw_time_masks(lengths, 200, 1, 0.05)
    for row, length in enumerate(lengths.tolist()):
        inside = one[row].nonzero().flatten()
        assert len(inside) <= int(0.05 * length)
        assert len(inside) == 0 or (inside[-1] - inside[0] + 1 == len(inside) and inside[-1] < length)
    widths = one[::3].sum(-1)
    assert set(widths.tolist()) == set(range(11))  # of 200 frames, 0 to 10 with equal chances
    assert widths.double().mean() == pytest.approx(5.0, abs=0.6)
    many = draw_time_masks(lengths, 200, 20, 0.05)
    # A frame far from the ends escapes each mask with 1 - (mean width / number of places).
    assert many[::3, 50:150].double().mean() == pytest.approx(1 - (1 - 5 / 195) ** 20, abs=0.03)


def test_masks_are_drawn_in_training_only_and_from_the_seed() -> None:
    model = build()
    x, lengths, sessions = batch()
    evaluated = model(x, lengths, sessions).phoneme_logits
    model.train()
    torch.manual_seed(5)
    first = model(x, lengths, sessions).phoneme_logits
    torch.manual_seed(5)
    assert torch.equal(model(x, lengths, sessions).phoneme_logits, first)
    assert not torch.equal(model(x, lengths, sessions).phoneme_logits, first)
    assert (first - evaluated).abs().max() > 1e-3
    model.eval()
    assert torch.equal(model(x, lengths, sessions).phoneme_logits, evaluated)


def test_a_masked_frame_is_the_learned_patch() -> None:
    model = build(time_masks=60, time_mask_max_fraction=1.0).train()  # everything is masked, as good as always
    x, lengths, sessions = batch()
    preprocessor = model.preprocessor
    assert preprocessor.mask_token is not None
    torch.manual_seed(5)
    masked = draw_time_masks(torch.tensor([8, 3, 6]), 8, 60, 1.0)
    torch.manual_seed(5)
    embedded = preprocessor(x, lengths, sessions)
    assert masked.sum() > 10
    token = preprocessor.embedding(preprocessor.mask_token)
    torch.testing.assert_close(embedded[masked], token.expand(int(masked.sum()), -1))


def test_without_masks_there_is_no_token() -> None:
    assert build(time_masks=0).preprocessor.mask_token is None


def test_gradients_reach_every_parameter() -> None:
    model = build(session_layers=True).train()
    x, lengths, sessions = batch()
    (model(x, lengths, sessions).phoneme_logits ** 2).sum().backward()
    assert all(p.grad is not None and p.grad.count_nonzero() for p in model.parameters())
