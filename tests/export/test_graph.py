"""The graph builder: int8 weights by hand, and products against numpy."""

import numpy as np
import pytest

from mode_ssm.export.graph import GraphBuilder, Weights, quantise

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


def test_int8_weights_by_hand() -> None:
    weight = np.array([[127.0, -63.5, 1.0, 0.4, 0.0], [-2.54, 2.54, 0.0, 0.0, 0.0]])
    values, scales = quantise(weight, 4)
    assert values.tolist() == [
        [[255, 64, 129, 128], [128, 128, 128, 128]],  # 63.5 is rounded to even, the padding of the last block is zero
        [[1, 255, 128, 128], [128, 128, 128, 128]],
    ]
    assert scales == pytest.approx([1.0, 1 / 127, 0.02, 1 / 127])


@pytest.mark.parametrize("columns", [5, 16, 64, 100, 200])
def test_int8_weights_are_off_by_half_a_step_at_most(columns: int) -> None:
    weight = np.random.default_rng(0).standard_normal((7, columns))
    values, scales = quantise(weight, 16)
    steps = scales.reshape(7, -1, 1)
    restored = ((values.astype(np.float64) - 128) * steps).reshape(7, -1)[:, :columns]
    assert (np.abs(restored - weight) <= np.repeat(steps[..., 0], 16, 1)[:, :columns] / 2 + 1e-12).all()


def run(graph: GraphBuilder, **inputs: np.ndarray) -> list[np.ndarray]:
    content = graph.model("test").SerializeToString()
    return ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, inputs)


@pytest.mark.parametrize(
    ("weights", "exact", "tolerance"),
    [(Weights.fp32, False, 1e-6), (Weights.int8, True, 1e-6), (Weights.int8, False, 0.02)],
)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("columns", [5, 130])
def test_a_linear_layer(weights: Weights, exact: bool, tolerance: float, with_bias: bool, columns: int) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, columns), np.float32)
    weight, bias = rng.standard_normal((9, columns)), rng.standard_normal(9) if with_bias else None
    graph = GraphBuilder(weights)
    product = graph.linear(graph.input("x", 1, columns), weight, bias, exact=exact)
    graph.op("Identity", product, to=graph.output("y", 1, 9))
    expected = x @ weight.T + (0 if bias is None else bias)
    (y,) = run(graph, x=x)
    assert np.abs(y - expected).max() <= tolerance * np.abs(expected).max()


def test_int8_weights_take_a_quarter_of_the_space() -> None:
    def size(weights: Weights) -> int:
        graph = GraphBuilder(weights)
        graph.op("Identity", graph.linear(graph.input("x", 1, 256), np.ones((512, 256))), to=graph.output("y", 1, 512))
        return graph.model("test").ByteSize()

    assert size(Weights.int8) < 0.27 * size(Weights.fp32)


def test_outputs_that_are_left_out_and_outputs_that_are_named() -> None:
    graph = GraphBuilder(Weights.fp32)
    x = graph.input("x", 1, 4)
    first, second = graph.split(x, 1, 3, to=[graph.output("first", 1, 1), None])
    graph.op("Add", second, first, to=graph.output("sum", 1, 3))
    assert first == "first"
    outputs = run(graph, x=np.array([[1, 2, 3, 4]], np.float32))
    assert [output.tolist() for output in outputs] == [[[1]], [[3, 4, 5]]]
