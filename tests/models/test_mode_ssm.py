"""The whole model: shapes, padding invariance, declared look-ahead, session adapter, mode, bridge, predictor."""

import pytest
import torch

from mode_ssm.config import (
    DenoiserConfig,
    EncoderConfig,
    HeadsConfig,
    Mixer,
    ModeConfig,
    ModelConfig,
    SessionAdapter,
    StemConfig,
)
from mode_ssm.models.denoise_flow import DenoiseFlow, sample_path
from mode_ssm.models.mode_ssm import MODE_SSM
from mode_ssm.models.preprocessor import SessionTable
from mode_ssm.vocab import NUM_CLASSES

C, S = 6, 3


def build(bidirectional: bool = False, adapter: SessionAdapter = SessionAdapter.affine, **changes: object) -> MODE_SSM:
    torch.manual_seed(2)
    config = ModelConfig(
        d_model=16,
        session_adapter=adapter,
        stem=StemConfig(kernel_size=7, stride=4, projection=5 if adapter is SessionAdapter.projection else None),
        encoder=EncoderConfig(
            mixer=Mixer.mamba2, bidirectional=bidirectional, n_layers=2, d_state=8, headdim=8, dropout=0.0
        ),
        mode=ModeConfig(hidden=8),
        denoiser=DenoiserConfig(hidden=16),
        heads=HeadsConfig(d_joint=12),
    )
    for name, value in changes.items():
        setattr(config, name, value)
    model = MODE_SSM(config, feature_dim=C, num_sessions=S, num_blocks=2).double().eval()
    for parameter in model.parameters():  # away from special starting values
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randn(3, 30, C, dtype=torch.float64), torch.tensor([30, 11, 21]), torch.tensor([0, 2, -1])


def test_forward_returns_phoneme_logits_and_mode_posterior() -> None:
    output = build()(*batch())
    assert output.phoneme_logits.shape == (3, 8, NUM_CLASSES)
    assert output.lengths.tolist() == [8, 3, 6]
    torch.testing.assert_close(output.mode_log_probs.exp().sum(-1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("adapter", list(SessionAdapter))
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_and_companions_change_nothing(bidirectional: bool, adapter: SessionAdapter) -> None:
    model = build(bidirectional, adapter)
    x, lengths, sessions = batch()
    together = model(x, lengths, sessions)
    for row, length in enumerate(lengths):
        alone = model(x[row : row + 1, :length], lengths[row : row + 1], sessions[row : row + 1])
        frames = int(together.lengths[row])
        torch.testing.assert_close(together.phoneme_logits[row, :frames], alone.phoneme_logits[0], atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(together.mode_log_probs[row], alone.mode_log_probs[0], atol=1e-9, rtol=1e-9)


def test_a_causal_model_looks_ahead_no_further_than_its_stride() -> None:
    model = build(bidirectional=False)
    x, _, _ = batch()
    lengths, sessions = torch.tensor([30]), torch.tensor([1])
    before = model(x[:1], lengths, sessions).phoneme_logits
    for t in (0, 5, 18):
        changed = x[:1].clone()
        changed[:, t] += 1
        after = model(changed, lengths, sessions).phoneme_logits
        first = t // model.frame_stride  # frame i sees bins up to (i + 1) * stride - 1
        assert (before - after)[:, :first].abs().sum() == 0
        assert (before - after)[:, first].abs().max() > 1e-9


def test_a_bidirectional_model_declares_itself_not_causal() -> None:
    assert build(bidirectional=False).causal
    assert not build(bidirectional=True).causal


@pytest.mark.parametrize("adapter", [a for a in SessionAdapter if a is not SessionAdapter.none])
def test_an_unseen_session_gets_the_mean_of_all_sessions(adapter: SessionAdapter) -> None:
    model = build(adapter=adapter)
    table = model.preprocessor.sessions
    assert table is not None
    rows = table(torch.tensor([-1, 1]))
    for name, values in table.tables.items():
        torch.testing.assert_close(rows[name][0], values.mean(0))
        torch.testing.assert_close(rows[name][1], values[1])


def test_session_gradients_are_the_same_every_time_on_several_threads() -> None:
    torch.manual_seed(0)
    table = SessionTable(3, {"weight": (64, 512)}, dropout=0.0)
    ids, upstream = torch.randint(0, 3, (16,)), torch.randn(16, 64, 512)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gradients = [
            torch.autograd.grad((table(ids)["weight"] * upstream).sum(), table.tables["weight"])[0] for _ in range(20)
        ]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_session_dropout_treats_trials_as_unseen_in_training_only() -> None:
    table = build(session_dropout=0.5).preprocessor.sessions
    assert table is not None
    offsets = table.tables["offset"]
    ids = torch.ones(200, dtype=torch.int64)
    torch.testing.assert_close(table(ids)["offset"], offsets[1].expand(200, -1))
    dropped = (table.train()(ids)["offset"] == offsets.mean(0)).all(-1).sum()
    assert 60 < dropped < 140


def test_an_affine_adapter_is_a_matrix_and_an_offset_for_each_session() -> None:
    model = build(adapter=SessionAdapter.affine)
    x, lengths, _ = batch()
    preprocessor = model.preprocessor
    assert preprocessor.sessions is not None
    weight, offset = (preprocessor.sessions.tables[name][2] for name in ("weight", "offset"))
    adapted, _ = preprocessor(x, lengths, torch.tensor([2, 2, 2]))
    preprocessor.sessions = None
    preprocessor.adapter = SessionAdapter.none
    plain, _ = preprocessor(x + x @ weight + offset, lengths, torch.tensor([2, 2, 2]))
    torch.testing.assert_close(adapted, plain)


def test_a_projection_adapter_without_a_projection_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs model\.stem\.projection"):
        build(adapter=SessionAdapter.projection, stem=StemConfig(kernel_size=4, stride=4))


def test_statistics_normalise_and_dead_features_stay_unscaled() -> None:
    model = build()
    mean, std = torch.arange(C).double(), torch.tensor([1.0, 2, 3, 4, 5, 0], dtype=torch.float64)
    model.preprocessor.set_statistics(mean, std, mean.repeat(S, 1), std.repeat(S, 1))
    assert model.preprocessor.feature_std.tolist() == [1, 2, 3, 4, 5, 1]
    assert model.preprocessor.session_std[1].tolist() == [1, 2, 3, 4, 5, 1]


def test_modules_hold_every_parameter_once() -> None:
    model = build()
    of_modules = [id(p) for name in MODE_SSM.MODULES for p in getattr(model, name).parameters()]
    assert sorted(of_modules) == sorted(id(p) for p in model.parameters())


def test_the_lattice_pairs_each_frame_with_each_context() -> None:
    model = build()
    targets = torch.tensor([[5, 6, 7], [8, 9, 0]])
    assert model.predictor.contexts(targets)[0].tolist() == [[0, 0], [0, 5], [5, 6], [6, 7]]
    encoder_out = torch.randn(2, 4, 16, dtype=torch.float64)
    logits = model.joint_logits(encoder_out, targets)
    assert logits.shape == (2, 4, 4, NUM_CLASSES)
    single = model.joiner(encoder_out[1, 2], model.predictor(torch.tensor([8, 9])))
    torch.testing.assert_close(logits[1, 2, 2], single)


def test_mode_memory_follows_what_it_observes() -> None:
    head = build().mode_head
    log_probs = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]], dtype=torch.float64).log()
    head.observe(log_probs, torch.tensor([0, 0, 1]))
    blocks = torch.tensor([[0.5 + 0.3 * 0.3, 0.5 - 0.3 * 0.3], [0.5 - 0.3 * 0.3, 0.5 + 0.3 * 0.3]], dtype=torch.float64)
    torch.testing.assert_close(head.block_posterior, blocks)


def test_the_flow_path_is_straight_and_euler_follows_a_constant_field_exactly() -> None:
    x_0, x_1 = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    sample = sample_path(x_0, x_1, torch.tensor([0.0, 0.25]))
    torch.testing.assert_close(sample.x_t[0], x_0[0])
    torch.testing.assert_close(sample.x_t[1], 0.75 * x_0[1] + 0.25 * x_1[1])
    flow = DenoiseFlow(4, DenoiserConfig(n_steps=4, hidden=8))
    flow.output.weight.data.zero_()
    flow.output.bias.data = torch.tensor([1.0, -2.0, 0.0, 0.5])
    torch.testing.assert_close(flow(x_0), x_0 + flow.output.bias)


def test_an_untrained_bridge_changes_next_to_nothing() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16)
    change = (DenoiseFlow(16, DenoiserConfig(hidden=32))(x) - x).norm() / x.norm()
    assert 0 < change < 0.02


def test_a_stem_kernel_shorter_than_its_stride_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kernel_size=2 must be at least stride=4"):
        build(stem=StemConfig(kernel_size=2, stride=4))


@pytest.mark.parametrize("adapter", list(SessionAdapter))
def test_a_learned_bin_stands_for_bins_without_signal_whatever_the_session(adapter: SessionAdapter) -> None:
    projection = 5 if adapter is SessionAdapter.projection else None
    model = build(adapter=adapter, stem=StemConfig(kernel_size=7, stride=4, projection=projection, mask_token=True))
    features, lengths, sessions = batch()
    masked = features.clone()
    masked[0, 10:15] = 0
    masked[0, 20, : C - 1] = 0  # one feature is left, so there is signal
    adapted = model.preprocessor._adapt(masked, model.preprocessor._session_maps(sessions))
    token = model.preprocessor.mask_token
    assert token is not None
    assert (adapted[0] == token).all(-1).nonzero().flatten().tolist() == list(range(10, 15))
    plain = model.preprocessor._adapt(features, model.preprocessor._session_maps(sessions))
    torch.testing.assert_close(adapted[1:], plain[1:])
    model(masked, lengths, sessions).phoneme_logits.sum().backward()
    assert token.grad is not None
    assert token.grad.abs().sum() > 0
