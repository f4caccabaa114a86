"""A small builder of ONNX graphs for one stream: tensors are float32 of fixed shape, nodes are named as they come.

Beside ONNX's operators it knows those of ONNX Runtime (domain com.microsoft) that do in one node what a frame of a
state-space model otherwise takes many for: at a batch of one a node costs about as much as the numbers in it.
"""

from collections.abc import Sequence
from enum import Enum
from importlib import import_module
from typing import Any

import numpy as np

OPSET, IR_VERSION = 23, 11  # the first opset with RMSNormalization, and the file format of its time
CONTRIB = frozenset({"CausalConvWithState", "LinearAttention", "MatMulNBits", "QuickGelu", "SkipLayerNormalization"})
INT8_BLOCK = 64  # weights of a row that share a scale


class Weights(Enum):
    """How large matrices are stored. int8: a scale a block, and their input is quantised on the fly."""

    fp32 = "fp32"
    int8 = "int8"


class GraphBuilder:
    """Collects nodes, weights, inputs and outputs; `model` makes them an ONNX ModelProto.

    Raises `ValueError` where the `export` extra is missing.
    """

    def __init__(self, weights: Weights) -> None:
        try:
            self._onnx = import_module("onnx")
        except ModuleNotFoundError:
            raise ValueError("writing an ONNX model needs onnx: uv sync --extra export") from None
        self.weights = weights
        self.inputs: dict[str, tuple[int, ...]] = {}
        self.outputs: dict[str, tuple[int, ...]] = {}
        self._nodes: list[Any] = []
        self._initializers: list[Any] = []

    def input(self, name: str, *shape: int) -> str:
        self.inputs[name] = shape
        return name

    def output(self, name: str, *shape: int) -> str:
        """`name`, for the node that shall write it."""
        self.outputs[name] = shape
        return name

    def constant(self, value: np.ndarray) -> str:
        """An initializer; floats of any width become float32."""
        if np.issubdtype(value.dtype, np.floating):
            value = value.astype(np.float32)
        name = f"constant_{len(self._initializers)}"
        self._initializers.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def op(self, op_type: str, *inputs: str, to: str | None = None, **attributes: Any) -> str:
        """A node with one output, written to the value `to` or to one of its own. Returns the value's name."""
        return self.ops(op_type, *inputs, to=[to], **attributes)[0]

    def ops(self, op_type: str, *inputs: str, to: Sequence[str | None], **attributes: Any) -> list[str]:
        """A node with an output for every entry of `to`; "" leaves an optional one out."""
        name = f"{op_type}_{len(self._nodes)}"
        outputs = [f"{name}_{i}" if value is None else value for i, value in enumerate(to)]
        domain = "com.microsoft" if op_type in CONTRIB else ""
        self._nodes.append(self._onnx.helper.make_node(op_type, inputs, outputs, name, domain=domain, **attributes))
        return outputs

    def split(self, x: str, *sizes: int, to: Sequence[str | None] | None = None) -> list[str]:
        """Along the last axis."""
        return self.ops("Split", x, self.constant(np.array(sizes)), to=to or [None] * len(sizes), axis=-1)

    def reshape(self, x: str, *shape: int, to: str | None = None) -> str:
        return self.op("Reshape", x, self.constant(np.array(shape)), to=to)

    def linear(self, x: str, weight: np.ndarray, bias: np.ndarray | None = None, *, exact: bool = False) -> str:
        """x (..., in), weight (out, in), bias (out,) -> (..., out). `exact`: in float32 whatever `weights` are."""
        if self.weights is Weights.fp32 or exact:
            product = self.op("MatMul", x, self.constant(weight.T))
            return product if bias is None else self.op("Add", product, self.constant(bias))
        rows, columns = weight.shape
        block = min(INT8_BLOCK, max(16, 1 << (columns - 1).bit_length()))  # the kernels take powers of two from 16
        values, scales = quantise(weight, block)
        inputs = [x, self.constant(values), self.constant(scales)]
        if bias is not None:
            inputs += ["", "", self.constant(bias)]
        # accuracy_level 4 quantises the input too, a scale a block: the products are of integers.
        return self.op("MatMulNBits", *inputs, K=columns, N=rows, bits=8, block_size=block, accuracy_level=4)

    def model(self, name: str) -> Any:
        """Raises `onnx.checker.ValidationError` for a graph that is none."""
        helper, float32 = self._onnx.helper, self._onnx.TensorProto.FLOAT
        inputs, outputs = (
            [helper.make_tensor_value_info(value, float32, shape) for value, shape in values.items()]
            for values in (self.inputs, self.outputs)
        )
        model = helper.make_model(
            helper.make_graph(self._nodes, name, inputs, outputs, self._initializers),
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)],
            ir_version=IR_VERSION,
            producer_name="mode_ssm",
        )
        self._onnx.checker.check_model(model)
        return model


def quantise(weight: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """weight (N, K) -> (values (N, ceil(K / block), block) uint8 around 128, scales (N * ceil(K / block),)).

    Symmetric: the largest of a block becomes 127 above or below 128.
    """
    rows, columns = weight.shape
    blocks = np.pad(weight, ((0, 0), (0, -columns % block))).reshape(rows, -1, block)
    largest = np.abs(blocks).max(-1)
    scales = np.where(largest > 0, largest, 1.0) / 127
    return (np.round(blocks / scales[..., None]) + 128).astype(np.uint8), scales.ravel()
