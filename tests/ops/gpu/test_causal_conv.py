"""The Triton convolution against its loop in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mode_ssm.ops.causal_conv import causal_conv_reference
from mode_ssm.ops.gpu.causal_conv import CausalConv, Tiling

RAGGED = (21, 1, 0, 3)
RESULTS = ("y", "state", "x", "weight", "bias", "initial_state")
# Tiles have 32 and 16 frames of 64 channels.
CASES: dict[str, dict[str, Any]] = {
    "W=2": {"width": 2},
    "W=3 silu reverse": {"width": 3, "silu": True, "reverse": True},
    "W=4 silu ragged": {"width": 4, "silu": True, "lengths": RAGGED},
    "W=4 silu ragged reverse": {"width": 4, "silu": True, "lengths": RAGGED, "reverse": True, "channels": 70},
    "W=5 ragged bare": {"width": 5, "lengths": RAGGED, "bare": True},
    "W=5 one frame": {"width": 5, "silu": True, "time": 1},
    "W=1 silu ragged": {"width": 1, "silu": True, "lengths": RAGGED},
    "other tiles": {
        "width": 4,
        "silu": True,
        "lengths": RAGGED,
        "tiling": Tiling(frames=8, backward_frames=8, channels=4),
    },
    "float16": {"width": 4, "silu": True, "lengths": RAGGED, "dtype": torch.float16},
    "bfloat16": {"width": 4, "silu": True, "reverse": True, "lengths": RAGGED, "dtype": torch.bfloat16},
}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # of each tensor's largest magnitude


def run_conv(tiling: Tiling | None, options: tuple, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    x, weight, bias, initial, lengths, grad_y, grad_final = tensors
    conv, silu, reverse = CausalConv(tiling), *options
    y, state = conv.forward(x, weight, bias, lengths, initial, silu, reverse)
    return y, state, *conv.backward(grad_y, grad_final, x, weight, bias, lengths, initial, silu, reverse)


@pytest.fixture(scope="module", params=CASES)
def results(request: pytest.FixtureRequest, run: Callable[..., Any]) -> tuple[torch.dtype, dict, dict]:
    case = {"time": 21, "channels": 7, "silu": False, "reverse": False, "lengths": (), "bare": False, "tiling": None}
    case = case | CASES[request.param]
    dtype = case.get("dtype", torch.float32)
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    batch, time, channels, width = len(case["lengths"]) or 2, case["time"], case["channels"], case["width"]
    inputs = {
        "x": normal(batch, time, channels).to(dtype),
        "weight": normal(channels, width),
        "bias": None if case["bare"] else normal(channels),
        "initial_state": None if case["bare"] else normal(batch, channels, width - 1),
    }
    grads = normal(batch, time, channels).to(dtype), normal(batch, channels, width - 1)
    lengths = torch.tensor(case["lengths"]) if case["lengths"] else None
    options = case["silu"], case["reverse"]
    actual = run(run_conv, case["tiling"], options, *inputs.values(), lengths, *grads)

    leaves = {name: value.double().requires_grad_() for name, value in inputs.items() if value is not None}
    y, state = causal_conv_reference(**leaves, silu=case["silu"], lengths=lengths, reverse=case["reverse"])
    loss = (y * grads[0].double()).sum() + (state * grads[1].double()).sum()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    expected = {"y": y, "state": state} | dict(zip(leaves, found, strict=True))
    return dtype, dict(zip(RESULTS, actual, strict=True)), expected


@pytest.mark.parametrize("name", RESULTS)
def test_results_and_gradients(results: tuple[torch.dtype, dict, dict], name: str) -> None:
    dtype, actual, expected = results
    if name not in expected:
        assert name == "initial_state" or actual[name].numel() == 0
        return
    assert actual[name].shape == expected[name].shape
    if expected[name].numel():
        error = (actual[name].double() - expected[name]).abs().max() / expected[name].abs().max()
        assert error <= TOLERANCE[dtype]
