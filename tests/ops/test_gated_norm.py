"""The gates on every backend of this machine against what the papers write, in float64."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mode_ssm.ops import backends
from mode_ssm.ops.gated_norm import (
    gated_rms_norm,
    gated_rms_norm_reference,
    gated_rms_norm_step,
    silu_gate,
    silu_gate_reference,
)
from tests.ops.conftest import usable_backends

Function = Callable[..., Tensor]
FUNCTIONS: dict[str, tuple[Function, Function]] = {
    "gated_rms_norm": (gated_rms_norm, gated_rms_norm_reference),
    "silu_gate": (silu_gate, silu_gate_reference),
}
CASES = [(op, name) for op in FUNCTIONS for name in usable_backends(op)]
NORM_CASES = [case for case in CASES if case[0] == "gated_rms_norm"]


@pytest.fixture(params=CASES, ids=["-".join(case) for case in CASES])
def op(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A gate, on one backend."""
    yield from on_backend(request, monkeypatch)


@pytest.fixture(params=NORM_CASES, ids=["-".join(case) for case in NORM_CASES])
def norm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The gated norm, on one backend."""
    yield from on_backend(request, monkeypatch)


def on_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv(backends.ENVIRONMENT_KEY, raising=False)
    op, name = request.param
    backends.request(f"{op}={name}")
    yield op
    backends.request("auto")


def random_inputs(op: str, *shape: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(len(shape))
    shapes = {"x": shape, "z": shape} | ({"weight": shape[-1:]} if op == "gated_rms_norm" else {})
    return {
        name: (torch.randn(size, dtype=dtype, generator=generator) * 3).requires_grad_()
        for name, size in shapes.items()
    }


def results_and_gradients(function: Function, inputs: dict[str, Tensor], **options: Tensor) -> dict[str, Tensor]:
    y = function(**inputs, **options)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad((y.double() * weights.double()).sum(), list(inputs.values()))
    return {"y": y} | {f"grad_{name}": grad for name, grad in zip(inputs, grads, strict=True)}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """To `tolerance` of the largest magnitude of each tensor."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        error = (actual[name].double() - value.double()).abs().max().item()
        assert error <= tolerance * value.abs().max().item(), f"{name}: {error:.2e}"


def assert_matches_the_reference(
    op: str, inputs: dict[str, Tensor], tolerance: float = 1e-5, **options: Tensor
) -> None:
    function, reference = FUNCTIONS[op]
    exact = {name: value.detach().double().requires_grad_() for name, value in inputs.items()}
    expected = results_and_gradients(reference, exact, **options)
    assert_same(results_and_gradients(function, inputs, **options), expected, tolerance)


@pytest.mark.parametrize("shape", [(2, 5, 37), (7, 64), (19,), (2, 3, 4, 16), (1, 1, 3)])
def test_matches_the_reference_on_outputs_and_gradients(op: str, shape: tuple[int, ...]) -> None:
    assert_matches_the_reference(op, random_inputs(op, *shape))


@given(time=st.integers(1, 2000), channels=st.integers(16, 70))
@example(time=2000, channels=33)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_length_matches_the_reference(op: str, time: int, channels: int) -> None:
    assert_matches_the_reference(op, random_inputs(op, 2, time, channels))


def test_the_weights_gradient_stays_accurate_over_many_frames(norm: str) -> None:
    inputs = random_inputs(norm, 40, 2000, 16)
    biased = inputs | {
        "z": inputs["z"].detach().abs().requires_grad_(),
        "x": inputs["x"].detach().abs().requires_grad_(),
    }
    exact = {name: value.detach().double().requires_grad_() for name, value in biased.items()}
    (grad,) = torch.autograd.grad(gated_rms_norm(**biased).sum(), biased["weight"])
    (expected,) = torch.autograd.grad(gated_rms_norm_reference(**exact).sum(), exact["weight"])
    assert (grad - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("magnitude", [1e-6, 1e-3, 1e4])
def test_small_and_large_inputs_stay_accurate(norm: str, magnitude: float) -> None:
    inputs = random_inputs(norm, 2, 5, 37)
    inputs["x"] = (inputs["x"].detach() * magnitude).requires_grad_()
    assert_matches_the_reference(norm, inputs)


def test_gates_far_from_zero_neither_overflow_nor_lose_digits(op: str) -> None:
    inputs = random_inputs(op, 2, 5, 37)
    inputs["z"] = (inputs["z"].detach() * 30).requires_grad_()  # beyond exp(88), where float32 ends
    assert_matches_the_reference(op, inputs)


def test_a_hand_worked_case(norm: str) -> None:
    # silu(50) = 50: the gated row is 150, 200, its mean square 31250; the other is 0, which eps keeps finite.
    x, z = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[50.0, 50.0], [1.0, 1.0]])
    y = gated_rms_norm(x, z, torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(y, torch.tensor([[150.0, 400.0], [0.0, 0.0]]) / 31250**0.5)


def test_eps_is_added_to_the_mean_square(norm: str) -> None:
    inputs = random_inputs(norm, 2, 5, 37)
    inputs["x"] = (inputs["x"].detach() * 1e-2).requires_grad_()
    expected = gated_rms_norm_reference(**inputs, eps=0.1)
    torch.testing.assert_close(gated_rms_norm(**inputs, eps=0.1), expected)
    assert (gated_rms_norm(**inputs) - expected).abs().max() > 0.1


def test_padding_is_zero_and_gets_and_gives_no_gradient(norm: str) -> None:
    inputs, lengths = random_inputs(norm, 4, 9, 37), torch.tensor([9, 4, 1, 0])
    assert_matches_the_reference(norm, inputs, lengths=lengths)
    padded = results_and_gradients(gated_rms_norm, inputs, lengths=lengths)
    filled = {name: value.detach().clone() for name, value in inputs.items()}
    for row, length in enumerate(lengths.tolist()):
        for name in ("x", "z"):
            filled[name][row, length:] = 1e3
            assert padded[f"grad_{name}"][row, length:].count_nonzero() == 0
        assert padded["y"][row, length:].count_nonzero() == 0
    filled = {name: value.requires_grad_() for name, value in filled.items()}
    for name, value in results_and_gradients(gated_rms_norm, filled, lengths=lengths).items():
        assert torch.equal(value, padded[name]), name


def test_views_are_read_where_they_lie(op: str) -> None:
    function, inputs = FUNCTIONS[op][0], random_inputs(op, 4, 9, 37)
    dense = results_and_gradients(function, inputs)
    projected = torch.cat([inputs["z"].detach(), torch.zeros(4, 9, 7), inputs["x"].detach()], -1)
    chunks = {"x": projected[..., -37:], "z": projected[..., :37]}
    channels_first = {name: inputs[name].detach().mT.contiguous().mT for name in ("x", "z")}
    for views in (chunks, channels_first):
        views = inputs | {name: view.detach().requires_grad_() for name, view in views.items()}
        assert not views["x"].is_contiguous()
        assert_same(results_and_gradients(function, views), dense, 1e-6)
    (from_expanded,) = torch.autograd.grad(function(**inputs).sum(), inputs["x"])
    (from_dense,) = torch.autograd.grad((function(**inputs) * torch.ones(4, 9, 37)).sum(), inputs["x"])
    assert torch.equal(from_expanded, from_dense)


def test_threads_change_nothing(op: str) -> None:
    function, inputs = FUNCTIONS[op][0], random_inputs(op, 2, 9, 37)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    parallel = results_and_gradients(function, inputs)
    torch.set_num_threads(before)
    assert_same(results_and_gradients(function, inputs), parallel, 1e-6)


def test_nothing_of_the_inputs_size_is_kept_beside_them(op: str) -> None:
    inputs = random_inputs(op, 4, 9, 37)
    kept = []

    def record(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in {value.data_ptr() for value in inputs.values()}:
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        FUNCTIONS[op][0](**inputs)
    assert sum(kept) <= 4 * 9


def test_low_precision_is_computed_in_float32_under_autocast(op: str) -> None:
    function, inputs = FUNCTIONS[op][0], random_inputs(op, 4, 9, 37)
    inputs |= {"x": inputs["x"].detach().bfloat16(), "z": inputs["z"].detach().bfloat16()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = function(**inputs)
    expected = function(**{name: value.float() for name, value in inputs.items()})
    wanted = inputs["weight"].dtype if op == "gated_rms_norm" else torch.bfloat16
    assert y.dtype == wanted
    assert torch.equal(y, expected.to(wanted))


def test_a_compiled_graph_gives_the_same_numbers(op: str) -> None:
    torch.compiler.reset()  # the backend is a constant of the graph
    function, inputs = FUNCTIONS[op][0], random_inputs(op, 4, 9, 37)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_same(results_and_gradients(compiled, inputs), results_and_gradients(function, inputs), 0.0)


def test_the_op_keeps_the_rules_of_custom_ops(op: str) -> None:
    inputs = tuple(random_inputs(op, 4, 9, 37).values())
    name = backends.choose(op, "cpu", torch.float32)
    settings_ = (1e-5, name) if op == "gated_rms_norm" else (name,)
    torch.library.opcheck(getattr(torch.ops.mode_ssm, op).default, inputs + settings_)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_equals_a_frame(norm: str, dtype: torch.dtype) -> None:
    inputs = random_inputs(norm, 4, 9, 37)
    inputs |= {"x": inputs["x"].to(dtype), "z": inputs["z"].to(dtype)}
    y = gated_rms_norm(**inputs)
    frame = gated_rms_norm_step(inputs["x"][:, 3], inputs["z"][:, 3], inputs["weight"])
    assert frame.dtype == y.dtype
    torch.testing.assert_close(frame, y[:, 3])


@pytest.mark.parametrize("function", [function for pair in FUNCTIONS.values() for function in pair])
def test_gradcheck(function: Function) -> None:
    name = next(name for name, pair in FUNCTIONS.items() if function in pair)
    inputs = random_inputs(name, 2, 3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(function, tuple(inputs.values()))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_is_exact(name: str) -> None:
    assert_matches_the_reference(name, random_inputs(name, 4, 9, 37, dtype=torch.float64), 1e-13)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"z": torch.zeros(4, 9, 1)}, r"one shape \(..., channels\), not \(4, 9, 37\), \(4, 9, 1\)"),
        ({"weight": torch.zeros(36)}, r"weight must be \(37,\), not \(36,\)"),
        ({"lengths": torch.tensor([9])}, r"lengths \(1,\) must be \(batch,\) of an x .*, not of \(4, 9, 37\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changed: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gated_rms_norm(**random_inputs("gated_rms_norm", 4, 9, 37) | changed)
    with pytest.raises(ValueError, match="silu_gate: x and z must share one shape"):
        silu_gate(torch.zeros(4, 2), torch.zeros(4, 1))
