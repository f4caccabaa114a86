"""The Triton gated norm against the formula in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mode_ssm.ops.gated_norm import gated_rms_norm_reference
from mode_ssm.ops.gpu.gated_norm import GatedRMSNorm, Tiling

EPS = 1e-5
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # of each tensor's largest magnitude


def run_norm(tiling: Tiling | None, x_and_z: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """`x` and `z` as a model hands them over: views of one projection."""
    norm, (x, z) = GatedRMSNorm(tiling), x_and_z.chunk(2, -1)
    y, rstd = norm.forward(x, z, weight, EPS)
    return y, rstd, *norm.backward(grad, x, z, weight, rstd, EPS)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("shape", "tiling"), [((3, 13, 24), None), ((5, 300), None), ((7, 64), Tiling(rows=2))])
def test_results_and_gradients(
    shape: tuple[int, ...], tiling: Tiling | None, dtype: torch.dtype, run: Callable[..., Any]
) -> None:
    generator = torch.Generator().manual_seed(1)
    x_and_z = (3 * torch.randn(*shape[:-1], 2 * shape[-1], generator=generator)).to(dtype)
    weight, grad = torch.randn(shape[-1], generator=generator), torch.randn(*shape, generator=generator)
    y, rstd, *grads = run(run_norm, tiling, x_and_z, weight, grad)

    leaves = [each.double().requires_grad_() for each in (*x_and_z.chunk(2, -1), weight)]
    expected = gated_rms_norm_reference(*leaves, EPS)
    gated = leaves[0] * leaves[1] * torch.sigmoid(leaves[1])
    pairs = {
        "y": (y, expected),
        "rstd": (rstd, (gated.square().mean(-1) + EPS).rsqrt()),
        **dict(zip("xzw", zip(grads, torch.autograd.grad(expected, leaves, grad.double()), strict=True), strict=True)),
    }
    for name, (actual, wanted) in pairs.items():
        assert actual.shape == wanted.shape
        error = (actual.double() - wanted).abs().max() / wanted.abs().max()
        assert error <= TOLERANCE[dtype], name
    assert (y.dtype, rstd.dtype, grads[0].dtype, grads[2].dtype) == (torch.float32, torch.float32, dtype, torch.float32)
