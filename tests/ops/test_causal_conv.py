"""The causal convolution on every backend of this machine against its loop over frames and taps, in float64."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mode_ssm.ops import backends
from mode_ssm.ops.causal_conv import causal_conv, causal_conv_reference, causal_conv_step
from tests.ops.conftest import usable_backends

CHANNELS = 37  # two whole vectors of 16 and a part


@pytest.fixture(params=usable_backends("causal_conv"))
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv(backends.ENVIRONMENT_KEY, raising=False)
    backends.request(f"causal_conv={request.param}")
    yield request.param
    backends.request("auto")


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def random_inputs(
    width: int, batch: int = 4, time: int = 9, channels: int = CHANNELS, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(width)
    shapes = {
        "x": (batch, time, channels),
        "weight": (channels, width),
        "bias": (channels,),
        "initial_state": (batch, channels, width - 1),
    }
    return {
        name: torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for name, shape in shapes.items()
    }


def results_and_gradients(function: Any, inputs: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    y, state = function(**inputs, **options)
    generator = torch.Generator().manual_seed(1)
    loss = (0.0 * inputs["x"]).sum(dtype=torch.float64)  # without frames and without a state nothing has a gradient
    for value in (y, state):
        loss = loss + (value.double() * torch.randn(value.shape, generator=generator).double()).sum()
    grads = torch.autograd.grad(loss, list(inputs.values()), materialize_grads=True)
    return {"y": y, "state": state} | {f"grad_{name}": grad for name, grad in zip(inputs, grads, strict=True)}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """To `tolerance` of the largest magnitude of each tensor."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        if value.numel():
            scale = value.abs().max().item()
            error = (actual[name].double() - value.double()).abs().max().item()
            assert error <= tolerance * scale, f"{name}: {error:.2e} of {scale:.2e}"


def assert_matches_the_loop(inputs: dict[str, Tensor], tolerance: float = 1e-5, **options: Any) -> None:
    exact = {name: value.detach().double().requires_grad_() for name, value in inputs.items()}
    expected = results_and_gradients(causal_conv_reference, exact, **options)
    assert_same(results_and_gradients(causal_conv, inputs, **options), expected, tolerance)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_matches_the_loop_on_outputs_states_and_gradients(
    backend: str, width: int, reverse: bool, silu: bool, ragged: bool
) -> None:
    time = 21  # two whole tiles of the kernel and a part
    lengths = torch.tensor([time, 0, 1, 12]) if ragged else None
    inputs = random_inputs(width, time=time)
    assert_matches_the_loop(inputs, lengths=lengths, reverse=reverse, silu=silu)


@pytest.mark.parametrize("missing", [("bias",), ("initial_state",), ("bias", "initial_state")])
@pytest.mark.parametrize("reverse", [False, True])
def test_bias_and_initial_state_are_optional(backend: str, missing: tuple[str, ...], reverse: bool) -> None:
    inputs = {name: value for name, value in random_inputs(4).items() if name not in missing}
    assert_matches_the_loop(inputs, lengths=torch.tensor([9, 0, 1, 4]), reverse=reverse, silu=True)


@given(
    time=st.integers(1, 2000) | st.integers(1, 20),
    width=st.integers(1, 6),
    reverse=st.booleans(),
    fractions=st.lists(st.floats(0, 1), min_size=2, max_size=2),
)
@example(time=2000, width=4, reverse=True, fractions=[0.2, 1.0])
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_length_gives_the_numbers_of_the_loop(
    backend: str, time: int, width: int, reverse: bool, fractions: list[float]
) -> None:
    lengths = torch.tensor([round(fraction * time) for fraction in fractions])
    inputs = random_inputs(width, batch=2, time=time, channels=17)
    assert_matches_the_loop(inputs, lengths=lengths, reverse=reverse, silu=True)


@pytest.mark.parametrize("time", [1, 2, 3])
@pytest.mark.parametrize("width", [5, 9])
@pytest.mark.parametrize("reverse", [False, True])
def test_sequences_shorter_than_the_state_keep_a_part_of_it(backend: str, time: int, width: int, reverse: bool) -> None:
    inputs = random_inputs(width, time=time)
    assert_matches_the_loop(inputs, lengths=torch.tensor([time, 0, 1, time]), reverse=reverse)


def test_a_hand_worked_case(backend: str) -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 7.0])[None, :, None]
    weight, bias, lengths = torch.tensor([[100.0, 10.0, 1.0]]), torch.tensor([0.5]), torch.tensor([3])
    y, state = causal_conv(x, weight, bias, lengths=lengths)
    assert y.flatten().tolist() == [1.5, 12.5, 123.5, 0.0]
    assert state.flatten().tolist() == [2.0, 3.0]
    past = torch.tensor([[[8.0, 9.0]]])  # 8, 9, and then 3, 2, 1
    y, state = causal_conv(x, weight, bias, lengths=lengths, initial_state=past, reverse=True)
    assert y.flatten().tolist() == [321.5, 932.5, 893.5, 0.0]
    assert state.flatten().tolist() == [2.0, 1.0]


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("silu", [False, True])
def test_steps_equal_the_whole_sequence(backend: str, width: int, silu: bool) -> None:
    inputs = random_inputs(width)
    y, final_state = causal_conv(**inputs, silu=silu)
    state = inputs["initial_state"]
    for t in range(y.shape[1]):
        frame, state = causal_conv_step(inputs["x"][:, t], state, inputs["weight"], inputs["bias"], silu=silu)
        torch.testing.assert_close(frame, y[:, t])
    torch.testing.assert_close(state, final_state)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cut", [2, 13])  # shorter than the state, and in the middle of a tile
def test_a_sequence_in_two_pieces_equals_the_whole(backend: str, reverse: bool, cut: int) -> None:
    inputs = random_inputs(4, time=20)
    y, final_state = causal_conv(**inputs, reverse=reverse)
    pieces = [slice(0, cut), slice(cut, 20)]
    parts, state = {}, inputs["initial_state"]
    for piece in reversed(pieces) if reverse else pieces:
        read = inputs | {"x": inputs["x"][:, piece], "initial_state": state}
        parts[piece.start], state = causal_conv(**read, reverse=reverse)
    torch.testing.assert_close(torch.cat([parts[0], parts[cut]], 1), y)
    torch.testing.assert_close(state, final_state)


@pytest.mark.parametrize("reverse", [False, True])
def test_padding_and_companions_change_nothing_and_get_no_gradient(backend: str, reverse: bool) -> None:
    lengths = [12, 3, 20, 1]
    inputs = random_inputs(4, time=20)
    padded = results_and_gradients(causal_conv, inputs, lengths=torch.tensor(lengths), reverse=reverse, silu=True)
    (grad,) = torch.autograd.grad(
        causal_conv(**inputs, lengths=torch.tensor(lengths), reverse=reverse, silu=True)[0].square().sum(), inputs["x"]
    )
    for row, length in enumerate(lengths):
        alone = inputs | {"x": inputs["x"][row : row + 1, :length], "initial_state": inputs["initial_state"][row, None]}
        y, state = causal_conv(**alone, reverse=reverse, silu=True)
        (grad_alone,) = torch.autograd.grad(y.square().sum(), inputs["x"])
        torch.testing.assert_close(padded["y"][row, None, :length], y)
        torch.testing.assert_close(padded["state"][row, None], state)
        torch.testing.assert_close(grad[row, :length], grad_alone[row, :length])
        assert padded["y"][row, length:].count_nonzero() == 0
        assert padded["grad_x"][row, length:].count_nonzero() == 0


@pytest.mark.parametrize("reverse", [False, True])
def test_more_padding_of_any_content_changes_no_gradient(backend: str, reverse: bool) -> None:
    lengths = torch.tensor([12, 3, 9, 1])
    inputs = random_inputs(4, time=12)
    longer = inputs | {"x": torch.cat([inputs["x"], 1e3 + inputs["x"]], 1)}
    totals = []
    for case in (inputs, longer):
        y, state = causal_conv(**case, lengths=lengths, reverse=reverse, silu=True)
        totals.append(torch.autograd.grad(y.square().sum() + state.square().sum(), list(inputs.values())))
    for short, long in zip(*totals, strict=True):
        torch.testing.assert_close(short, long)


def test_views_are_read_where_they_lie(backend: str) -> None:
    inputs = random_inputs(4, time=20)
    dense = results_and_gradients(causal_conv, inputs, silu=True)
    wide = torch.randn(4, 20, 2 * CHANNELS + 3)
    wide[..., 5 : 5 + CHANNELS] = inputs["x"].detach()
    channels_first = inputs["x"].detach().mT.contiguous().mT
    for view in (wide[..., 5 : 5 + CHANNELS], channels_first):
        assert not view.is_contiguous()
        transposed = {name: value.detach().mT.contiguous().mT for name, value in inputs.items() if value.dim() > 1}
        views = {name: value.requires_grad_() for name, value in (inputs | transposed | {"x": view.detach()}).items()}
        assert_same(results_and_gradients(causal_conv, views, silu=True), dense, 1e-6)
    (from_expanded,) = torch.autograd.grad(causal_conv(**inputs)[0].sum(), inputs["x"])
    (from_dense,) = torch.autograd.grad((causal_conv(**inputs)[0] * torch.ones(4, 20, CHANNELS)).sum(), inputs["x"])
    assert torch.equal(from_expanded, from_dense)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.usefixtures("three_threads")
def test_threads_change_nothing(backend: str, batch: int) -> None:
    inputs = random_inputs(4, batch=batch, time=20)
    parallel = results_and_gradients(causal_conv, inputs, silu=True)
    torch.set_num_threads(1)
    for name, value in results_and_gradients(causal_conv, inputs, silu=True).items():
        torch.testing.assert_close(parallel[name], value, msg=name)


def test_a_gradient_flows_through_the_final_state_alone(backend: str) -> None:
    inputs = random_inputs(4)
    lengths = torch.tensor([9, 2, 0, 5])
    wanted = [inputs["x"], inputs["initial_state"]]
    grads = []
    for function in (causal_conv, causal_conv_reference):
        _, state = function(**inputs, lengths=lengths, silu=True)
        grads.append(torch.autograd.grad(state.square().sum(), wanted))
    for fast, slow in zip(*grads, strict=True):
        torch.testing.assert_close(fast, slow)


def test_nothing_but_the_inputs_is_kept_for_the_backward_pass(backend: str) -> None:
    inputs = random_inputs(4)
    kept = []

    def record(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        causal_conv(**inputs, silu=True)
    assert set(kept) <= {value.data_ptr() for value in inputs.values()}


def test_low_precision_input_is_computed_in_float32_under_autocast(backend: str) -> None:
    inputs = random_inputs(4)
    inputs["x"] = inputs["x"].detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = causal_conv(**inputs, silu=True)
    expected, expected_state = causal_conv(**{k: v.float() for k, v in inputs.items()}, silu=True)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(y, expected.bfloat16())
    assert torch.equal(state, expected_state.bfloat16())


@pytest.mark.parametrize("reverse", [False, True])
def test_a_compiled_graph_gives_the_same_numbers(backend: str, reverse: bool) -> None:
    torch.compiler.reset()  # the backend is a constant of the graph
    inputs, lengths = random_inputs(4), torch.tensor([9, 2, 0, 5])
    compiled = torch.compile(causal_conv, fullgraph=True, backend="aot_eager")
    expected = results_and_gradients(causal_conv, inputs, lengths=lengths, reverse=reverse, silu=True)
    assert_same(results_and_gradients(compiled, inputs, lengths=lengths, reverse=reverse, silu=True), expected, 0.0)


def test_the_op_keeps_the_rules_of_custom_ops(backend: str) -> None:
    x, weight, bias, state = random_inputs(4).values()
    lengths = torch.tensor([9, 2, 0, 5])
    torch.library.opcheck(
        torch.ops.mode_ssm.causal_conv.default, (x, weight, bias, lengths, state, True, True, backend)
    )
    torch.library.opcheck(torch.ops.mode_ssm.causal_conv.default, (x, weight, None, None, None, False, False, backend))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("function", [causal_conv, causal_conv_reference])
def test_gradcheck(function: Any, reverse: bool) -> None:
    inputs = random_inputs(3, batch=2, time=4, channels=3, dtype=torch.float64)
    options = {"lengths": torch.tensor([4, 1]), "reverse": reverse, "silu": True}
    names = list(inputs)
    assert torch.autograd.gradcheck(
        lambda *values: function(**dict(zip(names, values, strict=True)), **options), tuple(inputs.values())
    )


@pytest.mark.parametrize("reverse", [False, True])
def test_float64_is_exact(reverse: bool) -> None:
    inputs = random_inputs(4, time=20, dtype=torch.float64)
    options = {"lengths": torch.tensor([20, 3, 0, 11]), "reverse": reverse, "silu": True}
    assert_matches_the_loop(inputs, 1e-13, **options)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(9, CHANNELS)}, r"x must be \(batch, time, channels\), not \(9, 37\)"),
        ({"weight": torch.zeros(CHANNELS, 0)}, r"weight must be \(37, width >= 1\), not \(37, 0\)"),
        ({"weight": torch.zeros(4, CHANNELS)}, r"weight must be \(37, width >= 1\), not \(4, 37\)"),
        ({"bias": torch.zeros(1)}, r"bias must be \(37,\), not \(1,\)"),
        ({"initial_state": torch.zeros(4, CHANNELS, 4)}, r"initial_state must be \(4, 37, 3\), not \(4, 37, 4\)"),
        ({"lengths": torch.tensor([9])}, r"lengths must be \(4,\), not \(1,\)"),
        ({"lengths": torch.tensor([9, 10, 1, 1])}, r"lengths must lie in 0..9, not \[9, 10, 1, 1\]"),
        ({"lengths": torch.tensor([9, -1, 1, 1])}, r"lengths must lie in 0..9, not \[9, -1, 1, 1\]"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(backend: str, changed: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        causal_conv(**random_inputs(4) | changed)
