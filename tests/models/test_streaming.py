"""The whole causal model frame by frame: equal to the offline model, state of constant size, misuse refused."""

import dataclasses

import pytest
import torch
from torch import Tensor

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
from mode_ssm.models.mode_ssm import MODE_SSM
from mode_ssm.models.streaming import StreamState, lay_out_for_streaming

C, S = 6, 3
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}  # relative to the largest value


def build(dtype: torch.dtype = torch.float64, adapter: SessionAdapter = SessionAdapter.affine, **changes) -> MODE_SSM:
    torch.manual_seed(2)
    stem = {
        "kernel_size": 7,
        "stride": 4,
        "projection": 5 if adapter is SessionAdapter.projection else None,
    } | changes.pop("stem", {})
    config = ModelConfig(
        d_model=16,
        session_adapter=adapter,
        stem=StemConfig(**stem),
        encoder=EncoderConfig(n_layers=2, d_state=8, headdim=8, **changes),
        mode=ModeConfig(hidden=8),
        denoiser=DenoiserConfig(hidden=16, n_steps=3),
        heads=HeadsConfig(d_joint=12),
    )
    model = MODE_SSM(config, feature_dim=C, num_sessions=S).eval()
    for parameter in model.parameters():  # away from special starting values
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.preprocessor.set_statistics(torch.randn(C), torch.rand(C) + 0.5, torch.zeros(S, C), torch.ones(S, C))
    return model.to(dtype)


def features(model: MODE_SSM, trials: int = 2, bins: int = 30) -> Tensor:
    return torch.randn(trials, bins, C, generator=torch.Generator().manual_seed(3)).to(model.ctc_head.output.weight)


def offline(model: MODE_SSM, x: Tensor, sessions: list[int], **how: bool) -> tuple[Tensor, Tensor]:
    output = model(x, torch.full((len(x),), x.shape[1]), torch.tensor(sessions), **how)
    return output.phoneme_logits.log_softmax(-1), output.encoder_out


def stream(model: MODE_SSM, x: Tensor, state: StreamState, **how: bool) -> tuple[Tensor, Tensor, StreamState]:
    frames = []
    for bins in x.split(model.frame_stride, 1):
        log_probs, encoder_out, state = model.step(bins, state, **how)
        frames.append((log_probs, encoder_out))
    log_probs, encoder_out = (torch.stack(outputs, 1) for outputs in zip(*frames, strict=True))
    return log_probs, encoder_out, state


def assert_stream_is_offline(model: MODE_SSM, x: Tensor, sessions: list[int], **how: bool) -> None:
    streamed = stream(model, x, model.initial_state(torch.tensor(sessions)), **how)[:2]
    for found, expected in zip(streamed, offline(model, x, sessions, **how), strict=True):
        assert found.shape == expected.shape
        error = (found - expected).abs().max() / expected.abs().max()
        assert error < TOLERANCE[x.dtype]


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("adapter", SessionAdapter)
@pytest.mark.parametrize("mixer", Mixer)
def test_a_stream_equals_the_offline_model(mixer: Mixer, adapter: SessionAdapter, dtype: torch.dtype) -> None:
    model = build(dtype, adapter, mixer=mixer)
    assert_stream_is_offline(model, features(model), [2, 0])
    assert_stream_is_offline(model, features(model), [1, -1])  # a session that the model never saw
    assert_stream_is_offline(model, features(model), [0, 1], denoise=False)


@pytest.mark.parametrize("bins", [1, 3, 4, 5, 8, 23])
@pytest.mark.parametrize(
    "stem", [{"kernel_size": 4}, {"kernel_size": 14}, {"kernel_size": 3, "stride": 1}, {"channel_gates": False}]
)
def test_lengths_that_are_no_multiple_of_the_stride(stem: dict, bins: int) -> None:
    model = build(stem=stem)
    assert_stream_is_offline(model, features(model, bins=bins), [2, 0])


def test_a_projection_that_all_sessions_share() -> None:
    model = build(adapter=SessionAdapter.diagonal, stem={"projection": 5})
    assert_stream_is_offline(model, features(model), [2, 0])


def test_a_stream_taken_up_again_from_its_state_goes_on_as_if_never_left() -> None:
    model = build()
    x = features(model)
    state = model.initial_state(torch.tensor([2, 0]))
    whole, _, _ = stream(model, x, state)
    first, _, kept = stream(model, x[:, :12], state)
    stream(model, torch.randn_like(x), kept)  # a state is a value: another stream from it leaves it as it is
    rest, _, _ = stream(model, x[:, 12:], kept)
    assert torch.equal(torch.cat([first, rest], 1), whole)


def tensors(state: object) -> list[Tensor]:
    """Every tensor of a state, in the order of its fields."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, dict):
        return tensors(list(state.values()))
    if isinstance(state, list):
        return [tensor for item in state for tensor in tensors(item)]
    if dataclasses.is_dataclass(state):
        return tensors([getattr(state, field.name) for field in dataclasses.fields(state)])
    return []


@pytest.mark.parametrize("mixer", Mixer)
def test_the_state_does_not_grow_and_keeps_what_is_constant(mixer: Mixer) -> None:
    model = build(mixer=mixer)
    start = model.initial_state(torch.tensor([2, 0]))
    _, _, state = stream(model, features(model, bins=400), start)
    assert [t.shape for t in tensors(state)] == [t.shape for t in tensors(start)]
    assert [t.dtype for t in tensors(state)] == [t.dtype for t in tensors(start)]
    assert state.flow_times is start.flow_times
    assert state.stem.session is start.stem.session
    assert all(now.A is then.A for now, then in zip(state.encoder, start.encoder, strict=True))


def test_the_layout_for_streaming_changes_no_value() -> None:
    model = build()
    x, weights = features(model), {name: value.clone() for name, value in model.state_dict().items()}
    expected, _ = offline(model, x, [2, 0])
    lay_out_for_streaming(model)
    assert not model.encoder.blocks[0].mixer.in_proj.weight.is_contiguous()
    assert {name: value.tolist() for name, value in model.state_dict().items()} == {
        name: value.tolist() for name, value in weights.items()
    }
    torch.testing.assert_close(offline(model, x, [2, 0])[0], expected, rtol=1e-12, atol=1e-12)
    assert_stream_is_offline(model, x, [2, 0])


def test_a_bidirectional_model_cannot_stream() -> None:
    with pytest.raises(ValueError, match=r"bidirectional=true reads the future"):
        build(bidirectional=True).initial_state(torch.tensor([0]))


def test_nothing_follows_a_frame_of_fewer_bins() -> None:
    model = build()
    x = features(model)
    _, _, state = model.step(x[:, :3], model.initial_state(torch.tensor([0, 1])))
    with pytest.raises(ValueError, match="fewer than 4 bins ended this stream"):
        model.step(x[:, :4], state)


@pytest.mark.parametrize("bins", [0, 5])
def test_a_frame_of_no_bins_or_too_many_is_refused(bins: int) -> None:
    model = build()
    with pytest.raises(ValueError, match=f"takes 4 bins, the last of a trial 1 to 4; this one has {bins}"):
        model.step(features(model)[:, :bins], model.initial_state(torch.tensor([0, 1])))
