"""The Mamba-1 scan against its sequential reference."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mode_ssm.ops.selective_scan import CHUNK_FRAMES, selective_scan, selective_scan_reference, selective_scan_step

CHANNELS, STATE = 6, 5


def random_inputs(batch: int, time: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator)

    inputs = {
        "u": normal(batch, time, CHANNELS),
        "dt": normal(batch, time, CHANNELS).exp() * 0.3,
        "A": -normal(CHANNELS, STATE).exp(),
        "B": normal(batch, time, STATE),
        "C": normal(batch, time, STATE),
        "D": normal(CHANNELS),
        "initial_state": normal(batch, CHANNELS, STATE),
    }
    return {name: value.requires_grad_() for name, value in inputs.items()}


def results_and_gradients(
    function: Any, inputs: dict[str, Tensor], lengths: Tensor | None, **options: Any
) -> dict[str, Tensor]:
    y, state = function(**inputs, lengths=lengths, **options)
    generator = torch.Generator().manual_seed(1)
    loss = sum((v.double() * torch.randn(v.shape, generator=generator).double()).sum() for v in (y, state))
    assert isinstance(loss, Tensor)
    grads = torch.autograd.grad(loss, list(inputs.values()))
    return {"y": y, "state": state} | {f"grad_{name}": grad for name, grad in zip(inputs, grads, strict=True)}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, value in expected.items():
        scale = max(1.0, value.abs().max().item())
        error = (actual[name].double() - value.double()).abs().max().item()
        assert error <= tolerance * scale, f"{name}: {error:.2e} of {scale:.2e}"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
@pytest.mark.parametrize("time", [1, CHUNK_FRAMES, CHUNK_FRAMES + 1, 150])
@pytest.mark.parametrize("ragged", [False, True])
def test_matches_the_recurrence_on_outputs_states_and_gradients(
    dtype: torch.dtype, tolerance: float, time: int, ragged: bool
) -> None:
    inputs = random_inputs(3, time, dtype)
    lengths = torch.tensor([time, (time + 1) // 2, 1]) if ragged else None
    expected = results_and_gradients(selective_scan_reference, {k: v.double() for k, v in inputs.items()}, lengths)
    assert_same(results_and_gradients(selective_scan, inputs, lengths), expected, tolerance)


@given(data=st.data(), time=st.integers(1, 2 * CHUNK_FRAMES + 1))
@settings(max_examples=20, deadline=None)
def test_any_lengths_give_the_numbers_of_the_recurrence(data: st.DataObject, time: int) -> None:
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, time), min_size=2, max_size=2)))
    inputs = random_inputs(2, time)
    expected = results_and_gradients(selective_scan_reference, inputs, lengths)
    assert_same(results_and_gradients(selective_scan, inputs, lengths), expected, 1e-11)


def test_skip_and_initial_state_are_optional() -> None:
    inputs = random_inputs(2, 90)
    without = {name: inputs[name] for name in ("u", "dt", "A", "B", "C")}
    expected = results_and_gradients(selective_scan_reference, without, None)
    assert_same(results_and_gradients(selective_scan, without, None), expected, 1e-11)
    zeros = {"D": torch.zeros(CHANNELS), "initial_state": torch.zeros(2, CHANNELS, STATE)}
    torch.testing.assert_close(selective_scan(**without)[0], selective_scan(**without, **zeros)[0])


def test_steps_equal_the_whole_sequence() -> None:
    inputs = random_inputs(2, 70)
    y, final_state = selective_scan(**inputs)
    state = inputs["initial_state"]
    for t in range(70):
        u, dt, B, C = (inputs[name][:, t] for name in ("u", "dt", "B", "C"))
        frame, state = selective_scan_step(state, u, dt, inputs["A"], B, C, inputs["D"])
        torch.testing.assert_close(frame, y[:, t])
    torch.testing.assert_close(state, final_state)


def test_a_sequence_in_two_pieces_equals_the_whole() -> None:
    inputs = random_inputs(2, 90)
    y, final_state = selective_scan(**inputs)
    timeless = {name: inputs[name] for name in ("A", "D")}
    parts, state = [], inputs["initial_state"]
    for piece in (slice(0, 33), slice(33, 90)):
        timed = {name: inputs[name][:, piece] for name in ("u", "dt", "B", "C")}
        part, state = selective_scan(**timed, **timeless, initial_state=state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), y)
    torch.testing.assert_close(state, final_state)


def test_padding_and_companions_change_nothing_and_get_no_gradient() -> None:
    lengths = [75, 20, 1, 110]
    inputs = random_inputs(4, 110)
    timed = ("u", "dt", "B", "C")
    padded = results_and_gradients(selective_scan, inputs, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = {k: v[row : row + 1, :length] if k in timed else v for k, v in inputs.items()}
        alone["initial_state"] = inputs["initial_state"][row : row + 1]
        y, state = selective_scan(**alone)
        torch.testing.assert_close(padded["y"][row : row + 1, :length], y)
        torch.testing.assert_close(padded["state"][row : row + 1], state)
        for name in ("y", *(f"grad_{k}" for k in timed)):
            assert padded[name][row, length:].count_nonzero() == 0, name


def test_more_padding_of_any_content_changes_no_gradient() -> None:
    lengths = torch.tensor([75, 20, 1, 70])
    inputs = random_inputs(4, 75)
    longer = {k: torch.cat([v, 1e3 + v], 1) if k in ("u", "dt", "B", "C") else v for k, v in inputs.items()}
    totals = []
    for case in (inputs, longer):
        y, state = selective_scan(**case, lengths=lengths)
        totals.append(torch.autograd.grad(y.square().sum() + state.square().sum(), list(inputs.values())))
    for short, long in zip(*totals, strict=True):
        torch.testing.assert_close(short, long)


@pytest.mark.parametrize("log_dt", [(-30.0, -20.0), (5.0, 9.0), (-20.0, 9.0)])
def test_extreme_steps_stay_accurate_in_float32(log_dt: tuple[float, float]) -> None:
    inputs = random_inputs(2, 100, torch.float32)
    low, high = log_dt
    inputs["dt"] = torch.empty(2, 100, CHANNELS).uniform_(low, high).exp().requires_grad_()
    expected = results_and_gradients(selective_scan_reference, {k: v.double() for k, v in inputs.items()}, None)
    assert_same(results_and_gradients(selective_scan, inputs, None), expected, 2e-5)


def test_gradcheck_across_a_chunk_border() -> None:
    inputs = random_inputs(2, CHUNK_FRAMES + 2)
    inputs = {name: value.detach()[..., :2].requires_grad_() for name, value in inputs.items()}
    inputs["A"] = inputs["A"].detach()[:2].requires_grad_()
    inputs["initial_state"] = inputs["initial_state"].detach()[:, :2].requires_grad_()
    lengths = torch.tensor([CHUNK_FRAMES + 2, 3])
    names = list(inputs)
    assert torch.autograd.gradcheck(
        lambda *values: selective_scan(**dict(zip(names, values, strict=True)), lengths=lengths), tuple(inputs.values())
    )


def test_a_gradient_flows_through_the_final_state_alone() -> None:
    inputs = random_inputs(2, 20)
    names = [name for name in inputs if name not in ("C", "D")]
    grads = []
    for function in (selective_scan, selective_scan_reference):
        _, state = function(**inputs)
        grads.append(torch.autograd.grad(state.square().sum(), [inputs[name] for name in names]))
    for fast, slow in zip(*grads, strict=True):
        torch.testing.assert_close(fast, slow)


def test_states_are_kept_only_at_chunk_starts() -> None:
    batch, time, channels, state = 2, 8 * CHUNK_FRAMES, 32, 32
    kept = []

    def record(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    timed = [torch.rand(batch, time, width, requires_grad=True) for width in (channels, channels, state, state)]
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        selective_scan(timed[0], timed[1], -torch.rand(channels, state), timed[2], timed[3])
    assert sum(kept) < batch * time * channels * state / 4


def test_low_precision_input_is_computed_in_float32_under_autocast() -> None:
    inputs = random_inputs(2, 80, torch.float32)
    inputs["u"] = inputs["u"].detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = selective_scan(**inputs)
    expected, expected_state = selective_scan(**{k: v.float() for k, v in inputs.items()})
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(y, expected.bfloat16())
    assert torch.equal(state, expected_state)
