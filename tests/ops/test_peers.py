"""What is passed to mamba-ssm and causal-conv1d and made of their answers, with stand-ins for the packages.

The stand-ins take the packages' arguments, check the layouts that these ask for, and compute with the references; the
packages themselves need a GPU.
"""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mode_ssm.ops.causal_conv import causal_conv_reference
from mode_ssm.ops.lengths import reverse_within_lengths
from mode_ssm.ops.peers import SSD, CausalConv, SelectiveScan, why_no_peer
from mode_ssm.ops.peers.probe import _why_not, probe
from mode_ssm.ops.peers.ssd import require_exact_products
from mode_ssm.ops.selective_scan import selective_scan_reference
from mode_ssm.ops.ssd import ssd_reference

BATCH, TIME, STATE = 4, 11, 5
LENGTHS = torch.tensor([11, 7, 1, 0])


def gradients(function: Any, inputs: list[Tensor], cotangents: list[Tensor]) -> list[Tensor]:
    """d sum(output * cotangent) / d input, in float64."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in inputs]
    loss = sum((o * c.double()).sum() for o, c in zip(function(*leaves), cotangents, strict=True))
    assert isinstance(loss, Tensor)
    return list(torch.autograd.grad(loss, leaves, materialize_grads=True))


class FakeSelectiveScan(ModuleType):
    """`selective_scan_cuda`: u, delta (B, D, T), A (D, N), B, C (B, 1, N, T), last dimension contiguous."""

    @staticmethod
    def run(softplus: bool) -> Any:
        def function(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *D: Tensor) -> tuple[Tensor, Tensor]:
            delta = F.softplus(delta) if softplus else delta
            y, state = selective_scan_reference(u.mT, delta.mT, A, B[:, 0].mT, C[:, 0].mT, *D)
            return y.mT, state

        return function

    def check(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> None:
        batch, dim, time = u.shape
        assert delta.shape == u.shape
        assert A.shape[0] == dim
        assert B.shape == C.shape == (batch, 1, A.shape[1], time)
        assert u.dtype == delta.dtype == B.dtype == C.dtype
        assert A.dtype == torch.float32
        assert D is None or D.dtype == torch.float32
        assert all(tensor.stride(-1) == 1 or tensor.shape[-1] == 1 for tensor in (u, delta, B, C))

    def fwd(self, u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, delta_bias: Any, softplus: bool) -> Any:
        self.check(u, delta, A, B, C, D)
        assert z is delta_bias is None
        inputs = [tensor.double() for tensor in (u, delta, A, B, C, D) if tensor is not None]
        out, state = self.run(softplus)(*inputs)
        chunks = torch.full((*u.shape[:2], 1, 2 * A.shape[1]), torch.nan)
        chunks[:, :, -1, 1::2] = state.float()
        return out.to(u.dtype), chunks

    def bwd(
        self, u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, delta_bias: Any, dout: Any, x: Any, out: Any,
        dz: Any, softplus: bool, recompute: bool,
    ) -> Any:  # fmt: skip
        self.check(u, delta, A, B, C, D)
        assert z is delta_bias is out is dz is None
        assert not recompute
        assert (dout.dtype, dout.shape, dout.stride(-1)) == (u.dtype, u.shape, 1)
        assert x.is_contiguous()
        assert x.shape == (*u.shape[:2], 1, 2 * A.shape[1])
        inputs = [tensor for tensor in (u, delta, A, B, C, D) if tensor is not None]
        grads = gradients(lambda *leaves: self.run(softplus)(*leaves)[:1], inputs, [dout])
        grads = [grad.to(like.dtype) for grad, like in zip(grads, inputs, strict=True)]
        return [*grads[:5], grads[5] if D is not None else None, None]


class FakeSSD(ModuleType):
    """`mamba_ssm.ops.triton.ssd_combined`: x (B, T, H, P), dt (B, T, H), A (H,), B, C (B, T, 1, N)."""

    @staticmethod
    def run(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, *D: Tensor) -> Any:
        return ssd_reference(x, dt, A, B[:, :, 0], C[:, :, 0], *D, initial_state=state)

    def _mamba_chunk_scan_combined_fwd(
        self, x: Any, dt: Any, A: Any, B: Any, C: Any, chunk_size: int, D: Any = None, z: Any = None,
        dt_bias: Any = None, initial_states: Any = None,
    ) -> Any:  # fmt: skip
        assert B.shape == C.shape == (*x.shape[:2], 1, B.shape[-1])
        state = torch.zeros(x.shape[0], *x.shape[2:], B.shape[-1]) if initial_states is None else initial_states
        inputs = [tensor.double() for tensor in (x, dt, A, B, C, state, D) if tensor is not None]
        out, final = self.run(*inputs)
        return out.to(x.dtype), None, None, None, None, final.float()

    def _mamba_chunk_scan_combined_bwd(
        self, dout: Any, x: Any, dt: Any, A: Any, B: Any, C: Any, out: Any, chunk_size: int, D: Any = None,
        z: Any = None, dt_bias: Any = None, initial_states: Any = None, dfinal_states: Any = None,
    ) -> Any:  # fmt: skip
        assert out.shape == dout.shape == x.shape
        assert initial_states is not None
        assert dout.dtype == x.dtype
        inputs = [tensor for tensor in (x, dt, A, B, C, initial_states, D) if tensor is not None]
        dfinal = torch.zeros_like(initial_states) if dfinal_states is None else dfinal_states
        dx, ddt, dA, dB, dC, dinitial, *dD = gradients(self.run, inputs, [dout, dfinal])
        return dx.to(x.dtype), ddt.to(dt.dtype), dA.float(), dB, dC, dD[0] if dD else None, None, None, dinitial


class FakeConv(ModuleType):
    """The functions of causal_conv1d: x (B, D, T) with contiguous time, or with contiguous channels, 8 at a time."""

    @staticmethod
    def run(silu: bool) -> Any:
        def function(x: Tensor, weight: Tensor, *bias: Tensor) -> tuple[Tensor, ...]:
            y = causal_conv_reference(x.mT, weight, *bias)[0].mT
            return (F.silu(y) if silu else y,)

        return function

    def check(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        assert 2 <= weight.shape[1] <= 4
        assert weight.shape[0] == x.shape[1]
        assert bias is None or bias.dtype == weight.dtype
        if x.stride(1) == 1 and x.stride(2) > 1:
            assert x.shape[1] % 8 == x.stride(0) % 8 == x.stride(2) % 8 == 0
        else:
            assert x.stride(2) == 1

    def forward(self, x: Any, weight: Any, bias: Any, seq_idx: Any, initial: Any, final_out: Any, silu: bool) -> Tensor:
        assert seq_idx is initial is final_out is None
        self.check(x, weight, bias)
        inputs = [tensor.double() for tensor in (x, weight, bias) if tensor is not None]
        (y,) = self.run(silu)(*inputs)
        return y.to(x.dtype)

    def backward(
        self, x: Any, weight: Any, bias: Any, dout: Any, seq_idx: Any, initial: Any, dfinal: Any, dx: Any,
        return_dinitial: bool, silu: bool,
    ) -> Any:  # fmt: skip
        assert seq_idx is initial is dfinal is dx is None
        assert not return_dinitial
        self.check(x, weight, bias)
        self.check(dout, weight, bias)
        inputs = [tensor for tensor in (x, weight, bias) if tensor is not None]
        dx, dweight, *dbias = (g.float() for g in gradients(self.run(silu), inputs, [dout]))
        return dx.to(x.dtype), dweight, dbias[0] if dbias else None, None

    causal_conv1d_fwd, causal_conv1d_bwd = forward, backward


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", FakeSelectiveScan("selective_scan_cuda"))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.triton.ssd_combined", FakeSSD("ssd_combined"))
    monkeypatch.setitem(sys.modules, "causal_conv1d_cuda", FakeConv("causal_conv1d_cuda"))
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", "causal_conv1d"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    functions: Any = ModuleType("causal_conv1d.cpp_functions")
    functions.causal_conv1d_fwd_function = FakeConv("functions").forward
    functions.causal_conv1d_bwd_function = FakeConv("functions").backward
    monkeypatch.setitem(sys.modules, "causal_conv1d.cpp_functions", functions)
    _why_not.cache_clear()
    yield
    _why_not.cache_clear()


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float = 2e-6) -> None:
    for number, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == b.shape, number
        scale = max([1.0, *b.abs().flatten().tolist()])
        assert ((a.double() - b.double()).abs() <= tolerance * scale).all(), number


def in_scan_order(function: Any, lengths: Tensor | None, reverse: bool) -> Any:
    """`function` of tensors whose frames run in the other direction, its first output turned back."""
    valid = torch.full((BATCH,), TIME) if lengths is None else lengths

    def turned(*timed: Tensor) -> Any:
        y, *rest = function(*(reverse_within_lengths(tensor, valid) if reverse else tensor for tensor in timed))
        return reverse_within_lengths(y, valid) if reverse else y, *rest

    return turned


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("softplus", [False, True], ids=["steps", "softplus"])
@pytest.mark.parametrize("skip", [False, True], ids=["no D", "D"])
def test_selective_scan_is_passed_on_and_back(
    lengths: Tensor | None, reverse: bool, softplus: bool, skip: bool
) -> None:
    u, dt, C, B = (normal(BATCH, TIME, width, seed=width) for width in (6, 7, STATE, STATE + 1))
    dt, B = dt[..., :6], B[..., :STATE]  # strided, as the parts of a projection are
    dt = dt if softplus else dt.exp()
    A, D, grad = -normal(6, STATE, seed=3).exp(), normal(6, seed=4) if skip else None, normal(BATCH, TIME, 6, seed=5)
    kernel = SelectiveScan()
    y, final, kept = kernel.forward(u, dt, A, B, C, D, lengths, None, softplus, reverse, True)
    grads = kernel.backward(grad, torch.zeros_like(final), u, dt, A, B, C, D, lengths, kept, softplus, reverse)

    def reference(*inputs: Tensor) -> tuple[Tensor, ...]:
        return selective_scan_reference(*inputs, dt_softplus=softplus, lengths=lengths, reverse=reverse)

    inputs = [tensor for tensor in (u, dt, A, B, C, D) if tensor is not None]
    assert_close([y, final], list(reference(*(tensor.double() for tensor in inputs))))
    assert kept.shape == kernel.starts_shape(u, A)
    expected = gradients(lambda *leaves: reference(*leaves)[:1], inputs, [grad])
    skip_grad = expected[5:] if skip else [torch.zeros(0)]
    assert_close(list(grads), [*expected[:5], *skip_grad, torch.zeros(BATCH, 6, STATE)])
    assert not kernel.forward(u, dt, A, B, C, D, lengths, None, softplus, reverse, False)[2].numel()


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("optional", [False, True], ids=["bare", "D and initial state"])
def test_ssd_is_passed_on_and_back(lengths: Tensor | None, reverse: bool, optional: bool) -> None:
    x, dt = normal(BATCH, TIME, 2, 3, seed=0), normal(BATCH, TIME, 2, seed=1).exp()
    B, C = normal(2, BATCH, TIME, STATE, seed=2).unbind()
    A, D = -normal(2, seed=3).exp(), normal(2, seed=4) if optional else None
    initial = normal(BATCH, 2, 3, STATE, seed=5) if optional else None
    grad, grad_final = normal(*x.shape, seed=6), normal(BATCH, 2, 3, STATE, seed=7)
    kernel = SSD()
    y, final, kept = kernel.forward(x, dt, A, B, C, D, lengths, initial, reverse, True)
    grads = kernel.backward(grad, grad_final, x, dt, A, B, C, D, lengths, kept, reverse)

    start = torch.zeros_like(grad_final) if initial is None else initial
    inputs = [tensor for tensor in (x, dt, A, B, C, start, D) if tensor is not None]

    def reference(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, *D: Tensor) -> Any:
        def scan(x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> Any:
            return ssd_reference(x, dt, A, B, C, *D, lengths=lengths, initial_state=state)

        return in_scan_order(scan, lengths, reverse)(x, dt, B, C)

    assert_close([y, final], list(reference(*(tensor.double() for tensor in inputs))))
    assert kept.shape == kernel.starts_shape(x, A, B)
    assert initial is None or kept.data_ptr() != initial.data_ptr()
    dx, ddt, dA, dB, dC, dinitial, *dD = gradients(reference, inputs, [grad, grad_final])
    assert_close(list(grads), [dx, ddt, dA, dB, dC, dD[0] if dD else torch.zeros(0), dinitial])


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("optional", [False, True], ids=["bare", "bias, silu and initial state"])
@pytest.mark.parametrize(("channels", "width"), [(16, 4), (6, 3), (8, 2)])
def test_causal_conv_is_passed_on_and_back(
    lengths: Tensor | None, reverse: bool, optional: bool, channels: int, width: int
) -> None:
    x = normal(BATCH, TIME, channels + 3, seed=0)[..., :channels]
    weight, bias = normal(channels, width, seed=1), normal(channels, seed=2) if optional else None
    initial = normal(BATCH, channels, width - 1, seed=3) if optional else None
    grad, grad_final = normal(BATCH, TIME, channels, seed=4), normal(BATCH, channels, width - 1, seed=5)
    kernel = CausalConv()
    y, final = kernel.forward(x, weight, bias, lengths, initial, optional, reverse)
    grads = kernel.backward(grad, grad_final, x, weight, bias, lengths, initial, optional, reverse)

    start = torch.zeros_like(grad_final) if initial is None else initial
    inputs = [tensor for tensor in (x, weight, start, bias) if tensor is not None]

    def reference(x: Tensor, weight: Tensor, state: Tensor, *bias: Tensor) -> Any:
        def conv(x: Tensor) -> Any:
            y, final = causal_conv_reference(x, weight, *bias, lengths=lengths, initial_state=state)
            return (F.silu(y) if optional else y), final

        return in_scan_order(conv, lengths, reverse)(x)

    assert_close([y, final], list(reference(*(tensor.double() for tensor in inputs))))
    dx, dweight, dinitial, *dbias = gradients(reference, inputs, [grad, grad_final])
    dinitial = dinitial if optional else torch.zeros_like(dinitial)
    assert_close(list(grads), [dx, dweight, dbias[0] if dbias else torch.zeros(0), dinitial])


def test_the_convolution_of_old_packages_is_called_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "causal_conv1d.cpp_functions")
    probe("causal_conv", "cpu")


@pytest.mark.parametrize("op", ["selective_scan", "ssd", "causal_conv"])
def test_a_package_that_computes_something_else_does_not_count_as_working(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe(op, "cpu")
    for fake in (FakeSelectiveScan, FakeSSD, FakeConv):
        exact = fake.run  # type: ignore[attr-defined]
        doubled = (
            (lambda *a, exact=exact: tuple(2 * t for t in exact(*a)))
            if fake is FakeSSD
            else (lambda flag, exact=exact: lambda *a: tuple(2 * t for t in exact(flag)(*a)))
        )
        monkeypatch.setattr(fake, "run", staticmethod(doubled))
    with pytest.raises(ValueError, match=rf"{op} of .* is off by 1 of the largest output"):
        probe(op, "cpu")


def test_what_the_packages_cannot_do_is_refused() -> None:
    u, A, B = normal(2, 9, 6, seed=0), -torch.ones(6, STATE), normal(2, 9, STATE, seed=1)
    state = torch.ones(2, 6, STATE)
    scan = SelectiveScan()
    with pytest.raises(ValueError, match="takes no initial state"):
        scan.forward(u, u.exp(), A, B, B, None, None, state, False, False, True)
    _, _, kept = scan.forward(u, u.exp(), A, B, B, None, None, None, False, False, True)
    with pytest.raises(ValueError, match="no gradient of the final state"):
        scan.backward(u, state, u, u.exp(), A, B, B, None, None, kept, False, False)
    for width in (1, 5):
        with pytest.raises(ValueError, match=f"width.* 2, 3 and 4, not {width}"):
            CausalConv().forward(u, normal(6, width, seed=2), None, None, None, False, False)


def test_float32_in_tf32_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_F32_DEFAULT", raising=False)
    with pytest.raises(ValueError, match="TF32"):
        require_exact_products(torch.float32, "cuda")
    require_exact_products(torch.bfloat16, "cuda")
    monkeypatch.setenv("TRITON_F32_DEFAULT", "ieee")
    require_exact_products(torch.float32, "cuda")


def test_a_missing_or_broken_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_no_peer("ssd") == "torch sees no GPU"
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)
    _why_not.cache_clear()
    reason = why_no_peer("selective_scan")
    assert reason is not None
    assert reason.startswith("backend mamba-ssm needs mamba-ssm and its extension")
    with pytest.raises(ValueError, match=r"needs mamba-ssm and its extension .* for selective_scan"):
        SelectiveScan()
    assert "ssd: torch sees no GPU" in (why_no_peer() or "")
