"""The graph of one frame against the offline model, for every adapter, mixer and shape of the stem."""

import numpy as np
import pytest
import torch
from tiny_stream import FEATURE_DIM, tiny_source

from mode_ssm.config import Mixer, SessionAdapter
from mode_ssm.export.bundle import Source
from mode_ssm.export.graph import Weights
from mode_ssm.export.step_graph import AFTER, StepModel, build_step_model, session_map

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

BINS = 31


def features(bins: int = BINS) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((1, bins, FEATURE_DIM)).astype(np.float32)


def offline(source: Source, session_id: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    output = source.model(torch.from_numpy(x), torch.tensor([x.shape[1]]), torch.tensor([session_id]))
    return output.phoneme_logits[0].log_softmax(-1).numpy(), output.encoder_out[0].numpy()


def stream(step: StepModel, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frame by frame through onnxruntime, the last one padded."""
    session = ort.InferenceSession(step.proto.SerializeToString(), providers=["CPUExecutionProvider"])
    states = {name: np.zeros(shape, np.float32) for name, shape in step.states.items()}
    frames, stride = [], step.inputs["bins"][1]
    for begin in range(0, x.shape[1], stride):
        present = x[:, begin : begin + stride]
        bins, mask = np.zeros(step.inputs["bins"], np.float32), np.zeros(step.inputs["bin_mask"], np.float32)
        bins[:, : present.shape[1]], mask[:, : present.shape[1]] = present, 1
        names = ["log_probs", "encoder_out", *(AFTER + name for name in states)]
        (*outputs,) = session.run(names, {"bins": bins, "bin_mask": mask, **states})
        frames.append(outputs[:2])
        states = dict(zip(states, outputs[2:], strict=True))
    log_probs, encoder_out = (np.concatenate(output) for output in zip(*frames, strict=True))
    return log_probs, encoder_out


def assert_same(source: Source, session_id: int, bins: int = BINS) -> None:
    step = build_step_model(source.model, session_id, Weights.fp32)
    for found, expected in zip(stream(step, features(bins)), offline(source, session_id, features(bins)), strict=True):
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("session_id", [1, -1])
@pytest.mark.parametrize("adapter", SessionAdapter)
@pytest.mark.parametrize("mixer", Mixer)
def test_an_fp32_export_equals_the_offline_model(mixer: Mixer, adapter: SessionAdapter, session_id: int) -> None:
    assert_same(tiny_source(adapter=adapter, mixer=mixer), session_id)


@pytest.mark.parametrize("bins", [1, 4, 6, 29])
@pytest.mark.parametrize(
    "stem",
    [
        {"kernel_size": 4},
        {"kernel_size": 14},
        {"kernel_size": 3, "stride": 1},
        {"channel_gates": False, "projection": 5},
    ],
)
def test_every_shape_of_the_stem_and_every_length_of_the_last_frame(stem: dict, bins: int) -> None:
    assert_same(tiny_source(stem=stem), 0, bins)


@pytest.mark.parametrize("lost", [slice(6, 13), slice(28, 31), slice(0, 31)])
def test_bins_without_signal_are_replaced_as_offline(lost: slice) -> None:
    source, x = tiny_source(stem={"mask_token": True}), features()
    x[:, lost] = 0
    step = build_step_model(source.model, 1, Weights.fp32)
    for found, expected in zip(stream(step, x), offline(source, 1, x), strict=True):
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("d_conv", [1, 2, 5])
@pytest.mark.parametrize("mixer", Mixer)
def test_short_convolutions(mixer: Mixer, d_conv: int) -> None:
    assert_same(tiny_source(mixer=mixer, d_conv=d_conv, expand=1), 0)


@pytest.mark.parametrize("mixer", Mixer)
def test_an_int8_export_stays_near(mixer: Mixer) -> None:
    source = tiny_source(mixer=mixer)
    step = build_step_model(source.model, 0, Weights.int8)
    found, expected = stream(step, features())[1], offline(source, 0, features())[1]
    error = np.sqrt(np.square(found - expected).mean() / np.square(expected).mean())
    assert 1e-4 < error < 0.05  # int8 everywhere; exactly equal would mean that nothing was quantised


def test_sessions_differ() -> None:
    source = tiny_source()
    first, second = (stream(build_step_model(source.model, row, Weights.fp32), features())[1] for row in (0, 1))
    assert np.abs(first - second).max() > 1e-2


@pytest.mark.parametrize("adapter", SessionAdapter)
def test_the_session_map_is_what_the_preprocessor_does_to_bins(adapter: SessionAdapter) -> None:
    preprocessor = tiny_source(adapter=adapter).model.preprocessor.double()
    x = torch.randn(1, 5, FEATURE_DIM, dtype=torch.float64)
    linear, offset = session_map(preprocessor, 1)
    expected = preprocessor.step(x[:, :4], preprocessor.initial_state(torch.tensor([1])))[1].bins
    normalised = ((x - preprocessor.feature_mean) / preprocessor.feature_std)[:, 1:4]
    np.testing.assert_allclose(normalised.numpy() @ linear + offset, expected.numpy(), rtol=1e-10, atol=1e-12)


def test_states_are_inputs_and_outputs_and_independent_of_the_length() -> None:
    step = build_step_model(tiny_source().model, 0, Weights.fp32)
    assert step.inputs == {"bins": (1, 4, FEATURE_DIM), "bin_mask": (1, 4)}
    assert step.outputs == {"log_probs": (1, 41), "encoder_out": (1, 24)}
    names = [value.name for value in step.proto.graph.input], [value.name for value in step.proto.graph.output]
    assert set(names[0]) == {*step.inputs, *step.states}
    assert set(names[1]) == {*step.outputs, *(AFTER + name for name in step.states)}
    assert step.states["blocks.1.ssm"] == (1, 6, 8, 8)


def test_a_bidirectional_model_is_refused() -> None:
    with pytest.raises(ValueError, match="bidirectional=true reads the future"):
        build_step_model(tiny_source(bidirectional=True).model, 0, Weights.fp32)
