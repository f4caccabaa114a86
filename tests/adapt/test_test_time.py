"""Test-time adaptation: what moves, what it lowers, when it refuses, and that nothing stays behind."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from mode_ssm.adapt.test_time import adapted, adapted_parameters, entropy, greedy_contexts, match_statistics
from mode_ssm.config import (
    AdaptConfig,
    DenoiserConfig,
    EncoderConfig,
    GruConfig,
    HeadsConfig,
    ModeConfig,
    ModelConfig,
    ModelKind,
    SessionAdapter,
    StemConfig,
    TransformerConfig,
)
from mode_ssm.data.batch import Batch
from mode_ssm.data.statistics import FeatureStatistics, merge
from mode_ssm.models.gru_baseline import GRUBaseline
from mode_ssm.models.mode_ssm import MODE_SSM
from mode_ssm.models.phoneme_model import PhonemeModel
from mode_ssm.models.transformer_baseline import TransformerBaseline

C = 6


@pytest.fixture
def model() -> MODE_SSM:
    torch.manual_seed(0)
    config = ModelConfig(
        d_model=16,
        session_adapter=SessionAdapter.diagonal,
        stem=StemConfig(kernel_size=4, stride=4),
        encoder=EncoderConfig(n_layers=2, d_state=8, headdim=8),
        mode=ModeConfig(hidden=8),
        denoiser=DenoiserConfig(hidden=16),
        heads=HeadsConfig(d_joint=12),
    )
    model = MODE_SSM(config, feature_dim=C, num_sessions=2)
    with torch.no_grad():
        model.ctc_head.output.weight.mul_(8)  # decisive enough that some frames are not blank
    return model.eval()


def make_batches(session: int = 0, shift: float = 0.0, scale: float = 1.0) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    batches = []
    for lengths in ([40, 33], [36, 20]):
        features = shift + scale * torch.randn(2, 40, C, generator=generator)
        feature_lengths = torch.tensor(lengths)
        features *= (torch.arange(40) < feature_lengths[:, None])[..., None]
        batches.append(
            Batch(
                features=features,
                feature_lengths=feature_lengths,
                targets=torch.zeros(2, 0, dtype=torch.int64),
                target_lengths=torch.zeros(2, dtype=torch.int64),
                session_ids=torch.full((2,), session),
            )
        )
    return batches


def statistics_of(batches: list[Batch]) -> FeatureStatistics:
    return merge(
        FeatureStatistics.of(b.features[row, :length].numpy())
        for b in batches
        for row, length in enumerate(b.feature_lengths)
    )


def adapt_to(model: MODE_SSM, batches: list[Batch], config: AdaptConfig):
    return adapted(model, batches, statistics_of(batches), config)


def test_entropy_falls_and_only_norms_and_the_last_block_move(model: MODE_SSM) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    allowed = {id(p) for p in adapted_parameters(model)}
    with adapt_to(model, make_batches(), AdaptConfig(steps=5, lr=1e-3)) as done:
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert moved
        assert all(id(p) in allowed for name, p in model.named_parameters() if name in moved)
    assert done.refused is None
    assert done.entropy_after < done.entropy_before


def test_the_set_that_moves_is_every_layer_norm_and_the_last_block(model: MODE_SSM) -> None:
    moving = {id(p) for p in adapted_parameters(model)}
    names = {name for name, p in model.named_parameters() if id(p) in moving}
    norms = {
        f"{module_name}.{kind}"
        for module_name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for kind in ("weight", "bias")
    }
    assert names == norms | {name for name, _ in model.named_parameters() if name.startswith("encoder.blocks.1.")}


def test_leaving_restores_the_model_to_the_bit(model: MODE_SSM) -> None:
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with adapt_to(model, make_batches(shift=3.0), AdaptConfig(steps=3)):
        pass
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_an_error_inside_the_context_restores_too(model: MODE_SSM) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), adapt_to(model, make_batches(), AdaptConfig(steps=2)):
        raise RuntimeError("inside")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_step_size_that_raises_entropy_is_refused(model: MODE_SSM) -> None:
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with adapt_to(model, make_batches(), AdaptConfig(steps=3, lr=math.inf, statistics=False)) as done:
        assert done.refused is not None
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def baseline(kind: ModelKind, session_layers: bool = True) -> PhonemeModel:
    torch.manual_seed(0)
    gru = GruConfig(session_layers=session_layers, patch_size=6, patch_stride=4, hidden=16, n_layers=2)
    transformer = TransformerConfig(d_model=16, n_layers=1, n_heads=2, head_dim=8)
    config = ModelConfig(kind=kind, gru=gru, transformer=transformer)
    model = (GRUBaseline if kind is ModelKind.gru else TransformerBaseline)(config, C, 2)
    with torch.no_grad():
        model.ctc_head.output.weight.mul_(8)
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "moving"),
    [
        (ModelKind.gru, {"preprocessor.sessions.tables.weight", "preprocessor.sessions.tables.offset"}),
        (ModelKind.transformer, {
            *(f"preprocessor.embedding.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")),
            *(f"encoder.blocks.0.{part}.{kind}" for part in ("attention.norm", "mlp.0") for kind in ("weight", "bias")),
            "encoder.norm.weight", "encoder.norm.bias",
        }),
    ],
)  # fmt: skip
@pytest.mark.parametrize("session", [1, -1])
def test_baselines_adapt_their_input_by_the_entropy_of_ctc(kind: ModelKind, moving: set[str], session: int) -> None:
    model = baseline(kind)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with adapt_to(model, make_batches(session), AdaptConfig(steps=5, lr=1e-3)) as done:
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == moving
    assert done.refused is None
    assert done.entropy_after < done.entropy_before
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_model_that_has_nothing_to_move_is_refused() -> None:
    model = baseline(ModelKind.gru, session_layers=False)
    with (
        pytest.raises(ValueError, match="tta=true: a GRU without session layers"),
        adapt_to(model, make_batches(), AdaptConfig()),
    ):
        pass


@pytest.mark.parametrize("session", [1, -1])
def test_statistics_undo_a_shift_and_scale_of_the_session(model: MODE_SSM, session: int) -> None:
    clean = make_batches(session)
    frames = torch.cat([b.features[i, :n] for b in clean for i, n in enumerate(b.feature_lengths)])
    mean, std = frames.mean(0), frames.std(0, correction=0)
    model.preprocessor.set_statistics(mean, std, mean.repeat(2, 1), std.repeat(2, 1))
    reference = model(clean[0].features, clean[0].feature_lengths, clean[0].session_ids).phoneme_logits
    shifted = make_batches(session, shift=5.0, scale=3.0)
    unmatched = model(shifted[0].features, shifted[0].feature_lengths, shifted[0].session_ids).phoneme_logits
    match_statistics(model, session, statistics_of(shifted))
    matched = model(shifted[0].features, shifted[0].feature_lengths, shifted[0].session_ids).phoneme_logits
    assert (unmatched - reference).abs().max() > 0.1
    torch.testing.assert_close(matched[0], reference[0], atol=2e-4, rtol=2e-4)


def test_a_session_like_its_training_is_left_alone_although_its_features_are_smoothed(model: MODE_SSM) -> None:
    batches = make_batches(session=0)
    raw = statistics_of(batches)
    mean, std = torch.from_numpy(raw.mean).float(), torch.from_numpy(raw.std).float()
    model.preprocessor.set_statistics(mean, std, mean.repeat(2, 1), std.repeat(2, 1))
    smoothed = [replace(b, features=0.3 * b.features) for b in batches]  # what smoothing does to the spread of noise
    arguments = (smoothed[0].features, smoothed[0].feature_lengths, smoothed[0].session_ids)
    before = model(*arguments).phoneme_logits
    with adapted(model, smoothed, raw, AdaptConfig(steps=0)):
        torch.testing.assert_close(model(*arguments).phoneme_logits, before, atol=1e-4, rtol=1e-4)


def test_statistics_aim_at_the_session_the_model_knows(model: MODE_SSM) -> None:
    mean, std = torch.zeros(C), torch.ones(C)
    model.preprocessor.set_statistics(mean, std, torch.stack([mean + 1, mean - 2]), torch.stack([std * 2, std * 3]))
    batches = make_batches(session=1)
    frames = torch.cat([b.features[i, :n] for b in batches for i, n in enumerate(b.feature_lengths)])
    match_statistics(model, 1, statistics_of(batches))
    normalised = (frames - model.preprocessor.feature_mean) / model.preprocessor.feature_std
    torch.testing.assert_close(normalised.mean(0), torch.full((C,), -2.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalised.std(0, correction=0), torch.full((C,), 3.0), atol=1e-4, rtol=0)


def test_entropy_of_a_uniform_distribution_is_log_n() -> None:
    assert entropy(torch.zeros(4)).item() == pytest.approx(math.log(4))
    assert entropy(torch.tensor([50.0, 0.0])).item() == pytest.approx(0.0, abs=1e-6)


def test_contexts_follow_the_greedy_path() -> None:
    best = torch.tensor([[0, 5, 5, 0, 5, 7, 7, 0]])
    assert greedy_contexts(best, 2)[0].tolist() == [
        [0, 0],  # frame 0
        [0, 0],  # 5 is emitted at frame 1: its own frame still has the context before it
        [0, 5],
        [0, 5],
        [0, 5],  # the second 5, after a blank, is a new label
        [5, 5],
        [5, 7],
        [5, 7],
    ]
