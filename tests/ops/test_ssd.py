"""The Mamba-2 scan against its sequential reference."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mode_ssm.ops.ssd import ssd, ssd_reference, ssd_step

HEADS, WIDTH, STATE = 3, 4, 5


def random_inputs(batch: int, time: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator)

    inputs = {
        "x": normal(batch, time, HEADS, WIDTH),
        "dt": normal(batch, time, HEADS).exp() * 0.3,
        "A": -normal(HEADS).exp(),
        "B": normal(batch, time, STATE),
        "C": normal(batch, time, STATE),
        "D": normal(HEADS),
        "initial_state": normal(batch, HEADS, WIDTH, STATE),
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
@pytest.mark.parametrize("time", [1, 7, 64, 150])
@pytest.mark.parametrize("ragged", [False, True])
def test_matches_the_recurrence_on_outputs_states_and_gradients(
    dtype: torch.dtype, tolerance: float, time: int, ragged: bool
) -> None:
    inputs = random_inputs(3, time, dtype)
    lengths = torch.tensor([time, (time + 1) // 2, 1]) if ragged else None
    expected = results_and_gradients(ssd_reference, {k: v.double() for k, v in inputs.items()}, lengths)
    assert_same(results_and_gradients(ssd, inputs, lengths), expected, tolerance)


@given(data=st.data(), time=st.integers(1, 40), chunk_size=st.integers(1, 50))
@settings(max_examples=20, deadline=None)
def test_any_chunk_size_and_lengths_give_the_same_numbers(data: st.DataObject, time: int, chunk_size: int) -> None:
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, time), min_size=2, max_size=2)))
    inputs = random_inputs(2, time)
    expected = results_and_gradients(ssd_reference, inputs, lengths)
    assert_same(results_and_gradients(ssd, inputs, lengths, chunk_size=chunk_size), expected, 1e-11)


def test_skip_and_initial_state_are_optional() -> None:
    inputs = random_inputs(2, 90)
    without = {name: inputs[name] for name in ("x", "dt", "A", "B", "C")}
    expected = results_and_gradients(ssd_reference, without, None)
    assert_same(results_and_gradients(ssd, without, None), expected, 1e-11)
    zeros = {"D": torch.zeros(HEADS), "initial_state": torch.zeros(2, HEADS, WIDTH, STATE)}
    torch.testing.assert_close(ssd(**without)[0], ssd(**without, **zeros)[0])


def test_steps_equal_the_whole_sequence() -> None:
    inputs = random_inputs(2, 70)
    y, final_state = ssd(**inputs)
    state = inputs["initial_state"]
    for t in range(70):
        x, dt, B, C = (inputs[name][:, t] for name in ("x", "dt", "B", "C"))
        frame, state = ssd_step(state, x, dt, inputs["A"], B, C, inputs["D"])
        torch.testing.assert_close(frame, y[:, t])
    torch.testing.assert_close(state, final_state)


def test_a_sequence_in_two_pieces_equals_the_whole() -> None:
    inputs = random_inputs(2, 90)
    y, final_state = ssd(**inputs)
    timeless = {name: inputs[name] for name in ("A", "D")}
    parts, state = [], inputs["initial_state"]
    for piece in (slice(0, 33), slice(33, 90)):
        timed = {name: inputs[name][:, piece] for name in ("x", "dt", "B", "C")}
        part, state = ssd(**timed, **timeless, initial_state=state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), y)
    torch.testing.assert_close(state, final_state)


def test_padding_and_companions_change_nothing_and_get_no_gradient() -> None:
    lengths = [75, 20, 1, 110]
    inputs = random_inputs(4, 110)
    timed = ("x", "dt", "B", "C")
    padded = results_and_gradients(ssd, inputs, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = {k: v[row : row + 1, :length] if k in timed else v for k, v in inputs.items()}
        alone["initial_state"] = inputs["initial_state"][row : row + 1]
        y, state = ssd(**alone)
        torch.testing.assert_close(padded["y"][row : row + 1, :length], y)
        torch.testing.assert_close(padded["state"][row : row + 1], state)
        for name in ("y", *(f"grad_{k}" for k in timed)):
            assert padded[name][row, length:].count_nonzero() == 0, name


def test_more_padding_of_any_content_changes_no_gradient() -> None:
    lengths = torch.tensor([75, 20, 1, 70])
    inputs = random_inputs(4, 75)
    longer = {k: torch.cat([v, 1e3 + v], 1) if k in ("x", "dt", "B", "C") else v for k, v in inputs.items()}
    totals = []
    for case in (inputs, longer):
        y, state = ssd(**case, lengths=lengths)
        totals.append(torch.autograd.grad(y.square().sum() + state.square().sum(), list(inputs.values())))
    for short, long in zip(*totals, strict=True):
        torch.testing.assert_close(short, long)


@pytest.mark.parametrize("log_dt", [(-30.0, -20.0), (5.0, 9.0), (-20.0, 9.0)])
def test_extreme_steps_stay_accurate_in_float32(log_dt: tuple[float, float]) -> None:
    inputs = random_inputs(2, 100, torch.float32)
    low, high = log_dt
    inputs["dt"] = torch.empty(2, 100, HEADS).uniform_(low, high).exp().requires_grad_()
    expected = results_and_gradients(ssd_reference, {k: v.double() for k, v in inputs.items()}, None)
    assert_same(results_and_gradients(ssd, inputs, None), expected, 2e-5)


def test_a_large_step_does_not_blur_the_small_ones_after_it() -> None:
    inputs = random_inputs(1, 60, torch.float32)
    dt = torch.full((1, 60, HEADS), 0.01)
    dt[:, :20] = 3e4
    with torch.no_grad():
        inputs["dt"] = dt
        y, _ = ssd(**inputs)
        expected, _ = ssd_reference(**{k: v.double() for k, v in inputs.items()})
    # Frame 20 on is memory of order one; sums in float32 would be off by 3e4 * 20 * 6e-8, four percent.
    torch.testing.assert_close(y[:, 20:].double(), expected[:, 20:], atol=2e-4 * 3, rtol=1e-5)


def test_gradcheck() -> None:
    inputs = random_inputs(2, 5)
    lengths = torch.tensor([5, 3])
    names = list(inputs)
    assert torch.autograd.gradcheck(
        lambda *values: ssd(**dict(zip(names, values, strict=True)), lengths=lengths, chunk_size=2),
        tuple(inputs.values()),
    )


def test_low_precision_input_is_computed_in_float32_under_autocast() -> None:
    inputs = random_inputs(2, 80, torch.float32)
    inputs["x"] = inputs["x"].detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = ssd(**inputs)
    expected, expected_state = ssd(**{k: v.float() for k, v in inputs.items()})
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(y, expected.bfloat16())
    assert torch.equal(state, expected_state)
