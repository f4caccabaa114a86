"""The two scans on every backend that runs here, against their recurrences in float64."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mode_ssm.ops import backends
from mode_ssm.ops.selective_scan import selective_scan, selective_scan_reference, selective_scan_step
from mode_ssm.ops.ssd import ssd, ssd_reference, ssd_step
from tests.ops.conftest import usable_backends

Inputs = dict[str, Tensor]


def mamba_inputs(batch: int, time: int, states: int = 16, seed: int = 0, channels: int = 19) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return {
        "u": normal(batch, time, channels),
        "dt": normal(batch, time, channels).exp() * 0.1,
        "A": -normal(channels, states).exp(),
        "B": normal(batch, time, states),
        "C": normal(batch, time, states),
        "D": normal(channels),
        "initial_state": normal(batch, channels, states),
    }


def mamba2_inputs(batch: int, time: int, states: int = 16, seed: int = 0, heads: int = 3, width: int = 7) -> Inputs:
    inputs = mamba_inputs(batch, time, states, seed, heads * width)
    return {
        "x": inputs["u"].unflatten(2, (heads, width)),
        "dt": inputs["dt"][..., :heads].contiguous(),
        "A": inputs["A"][:heads, 0].contiguous(),
        "B": inputs["B"],
        "C": inputs["C"],
        "D": inputs["D"][:heads].contiguous(),
        "initial_state": inputs["initial_state"].unflatten(1, (heads, width)),
    }


@dataclass(frozen=True)
class Scan:
    function: Callable[..., tuple[Tensor, Tensor]]
    reference: Callable[..., tuple[Tensor, Tensor]]
    step: Callable[..., tuple[Tensor, Tensor]]
    inputs: Callable[..., Inputs]
    signal: str  # the input that carries the signal

    @property
    def timed(self) -> tuple[str, ...]:
        return (self.signal, "dt", "B", "C")


SCANS = {
    "selective_scan": Scan(selective_scan, selective_scan_reference, selective_scan_step, mamba_inputs, "u"),
    "ssd": Scan(ssd, ssd_reference, ssd_step, mamba2_inputs, "x"),
}
CASES = [(op, name) for op in SCANS for name in usable_backends(op)]


@pytest.fixture(params=CASES, ids=["-".join(case) for case in CASES])
def scan(request: pytest.FixtureRequest) -> Iterator[Scan]:
    """A scan, on one backend."""
    op, name = request.param
    backends.request(f"{op}={name}")
    yield SCANS[op]
    backends.request("auto")


@pytest.fixture(params=SCANS)
def exact(request: pytest.FixtureRequest) -> Scan:
    """A scan, for tests in float64, which has one path."""
    return SCANS[request.param]


def results_and_gradients(function: Any, inputs: Inputs, dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
    """Outputs, and gradients of a sum that weighs each of them at random."""
    leaves = {name: value.to(dtype).requires_grad_() for name, value in inputs.items()}
    y, state = function(**leaves, **options)
    generator = torch.Generator().manual_seed(1)
    loss = torch.zeros((), dtype=torch.float64)
    for value in (y, state):
        loss = loss + (value.double() * torch.randn(value.shape, generator=generator).double()).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return {"y": y, "state": state} | {f"grad_{name}": grad for name, grad in zip(leaves, grads, strict=True)}


def errors(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Largest error of each tensor relative to its largest magnitude.

    A tensor that has decayed to less than 1e-10 of the largest of its companions is compared with that much instead:
    from float32 inputs `exp(dt A)` is known to `|dt A| 2^-24` only.
    """
    floor = 1e-10 * max(value.abs().max().item() for value in expected.values())
    return {
        name: (actual[name].double() - value.double()).abs().max().item() / max(value.abs().max().item(), floor)
        for name, value in expected.items()
    }


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    wrong = {name: f"{error:.1e}" for name, error in errors(actual, expected).items() if not error <= tolerance}
    assert not wrong


def compare(scan: Scan, inputs: Inputs, **options: Any) -> None:
    """float32 on the backend against the recurrence in float64, fed the same rounded numbers: 1e-5 of each tensor.

    A sum over thousands of frames may happen to cancel; then no float32 result can be closer than what the last bit of
    the step sizes does to the exact one, and that is the bar.
    """
    rounded = {name: value.float().double() for name, value in inputs.items()}
    expected = results_and_gradients(scan.reference, rounded, torch.float64, **options)
    actual = results_and_gradients(scan.function, rounded, torch.float32, **options)
    if max(errors(actual, expected).values()) > 1e-5:
        signs = torch.randint(2, rounded["dt"].shape, generator=torch.Generator().manual_seed(6)) * 2 - 1
        nudged = rounded | {"dt": rounded["dt"] * (1 + 2**-24 * signs)}
        bar = errors(results_and_gradients(scan.reference, nudged, torch.float64, **options), expected)
        for name, error in errors(actual, expected).items():
            assert error <= max(1e-5, 3 * bar[name]), name


@pytest.mark.parametrize("states", [16, 64, 128])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("time", [1, 33])
def test_outputs_states_and_gradients(scan: Scan, states: int, reverse: bool, ragged: bool, time: int) -> None:
    lengths = torch.tensor([time, time // 2, 1]) if ragged else None
    compare(scan, scan.inputs(3, time, states), lengths=lengths, reverse=reverse)


@given(data=st.data(), time=st.one_of(st.integers(1, 70), st.sampled_from([500, 2000])), reverse=st.booleans())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_length_and_step_size(scan: Scan, data: st.DataObject, time: int, reverse: bool) -> None:
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, time), min_size=2, max_size=2)))
    low = data.draw(st.floats(-14, 8), label="log of the smallest step")
    high = data.draw(st.floats(low, 9), label="log of the largest step")
    inputs = scan.inputs(2, time, states=5, seed=time)
    inputs["dt"] = torch.empty_like(inputs["dt"]).uniform_(low, high, generator=torch.Generator().manual_seed(3)).exp()
    compare(scan, inputs, lengths=lengths, reverse=reverse)


def test_a_long_memory_of_equal_steps_does_not_drift(scan: Scan) -> None:
    # 1 - 1e-4 rounded to float32 is off by up to 3e-8: over 10,000 frames of memory a relative error of 3e-4.
    inputs = scan.inputs(1, 2000, states=4)
    inputs["dt"] = torch.full_like(inputs["dt"], 1e-4)
    inputs["A"] = -torch.rand(inputs["A"].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) - 0.5
    compare(scan, inputs)


@pytest.mark.parametrize("log_dt", [(-30.0, -20.0), (5.0, 9.0), (-20.0, 9.0)])
def test_extreme_steps(scan: Scan, log_dt: tuple[float, float]) -> None:
    inputs = scan.inputs(2, 100)
    inputs["dt"].uniform_(*log_dt, generator=torch.Generator().manual_seed(4)).exp_()
    compare(scan, inputs)


def test_the_gradient_of_the_decay_rates_has_its_own_scale(scan: Scan) -> None:
    # On its own, by a difference quotient in float64, so that no factor of the analytic formulas can hide.
    inputs = scan.inputs(2, 60, states=8)
    rounded = {name: value.float().double() for name, value in inputs.items()}
    weight = torch.randn(rounded[scan.signal].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    A = rounded["A"].float().requires_grad_()
    y, _ = scan.function(**{name: value.float() for name, value in rounded.items()} | {"A": A})
    (analytic,) = torch.autograd.grad((y.double() * weight).sum(), A)

    def loss(A: Tensor) -> Tensor:
        return (scan.reference(**rounded | {"A": A})[0] * weight).sum()

    numeric = torch.zeros_like(rounded["A"])
    for index in range(0, numeric.numel(), 7):
        bump = torch.zeros_like(numeric).view(-1)
        bump[index] = 1e-5
        bump = bump.view(numeric.shape)
        numeric.view(-1)[index] = (loss(rounded["A"] + bump) - loss(rounded["A"] - bump)) / 2e-5
    tested = numeric != 0
    assert tested.sum() > 0
    assert ((analytic - numeric)[tested].abs().max() / numeric.abs().max()).item() < 1e-5


def test_skip_and_initial_state_are_optional(scan: Scan) -> None:
    inputs = {name: value for name, value in scan.inputs(2, 90).items() if name not in ("D", "initial_state")}
    compare(scan, inputs)


@pytest.mark.parametrize("gradients", [True, False])  # without, a stream's fused step
@pytest.mark.parametrize("states", [5, 64])
def test_steps_equal_the_whole_sequence(scan: Scan, gradients: bool, states: int) -> None:
    inputs = {name: value.float() for name, value in scan.inputs(2, 70, states).items()}
    y, final_state = scan.function(**inputs)
    state = inputs["initial_state"]
    frames = []
    with torch.set_grad_enabled(gradients):
        for t in range(70):
            now = [inputs[name][:, t] for name in (scan.signal, "dt")]
            frame, state = scan.step(state, *now, inputs["A"], inputs["B"][:, t], inputs["C"][:, t], inputs["D"])
            frames.append(frame)
    assert_close({"y": torch.stack(frames, 1), "state": state}, {"y": y, "state": final_state})


@pytest.mark.parametrize("reverse", [False, True])
def test_a_sequence_in_two_pieces_equals_the_whole(scan: Scan, reverse: bool) -> None:
    inputs = {name: value.float() for name, value in scan.inputs(2, 90).items()}
    y, final_state = scan.function(**inputs, reverse=reverse)
    parts, state = {}, inputs["initial_state"]
    pieces = [slice(0, 33), slice(33, 90)]
    for piece in reversed(pieces) if reverse else pieces:
        part = {name: inputs[name][:, piece] for name in scan.timed}  # views: strides that are not those of a whole
        parts[piece.start], state = scan.function(
            **part, A=inputs["A"], D=inputs["D"], initial_state=state, reverse=reverse
        )
    assert_close({"y": torch.cat([parts[0], parts[33]], 1), "state": state}, {"y": y, "state": final_state})


@pytest.mark.parametrize("reverse", [False, True])
def test_padding_and_companions_change_nothing_and_get_no_gradient(scan: Scan, reverse: bool) -> None:
    lengths = [75, 20, 1, 110, 0]
    inputs = scan.inputs(5, 110)
    options = {"lengths": torch.tensor(lengths), "reverse": reverse}
    padded = results_and_gradients(scan.function, inputs, torch.float32, **options)
    noisy = {name: value.clone() for name, value in inputs.items()}
    for row, length in enumerate(lengths):
        for name in scan.timed:
            noisy[name][row, length:] = 1e3
            assert padded[f"grad_{name}"][row, length:].count_nonzero() == 0, name
        assert padded["y"][row, length:].count_nonzero() == 0
        if length == 0:
            torch.testing.assert_close(padded["state"][row], inputs["initial_state"][row].float())
            continue
        alone = {k: v[row : row + 1, :length] if k in scan.timed else v for k, v in inputs.items()}
        alone["initial_state"] = inputs["initial_state"][row : row + 1]
        y, state = scan.function(**{k: v.float() for k, v in alone.items()}, reverse=reverse)
        assert_close({"y": padded["y"][row : row + 1, :length]}, {"y": y}, 1e-6)
        assert_close({"state": padded["state"][row : row + 1]}, {"state": state}, 1e-6)
    assert_close(results_and_gradients(scan.function, noisy, torch.float32, **options), padded, 1e-6)


def test_what_does_not_fit_is_refused_before_a_kernel_reads_it(scan: Scan) -> None:
    inputs = {name: value.float() for name, value in scan.inputs(2, 9).items()}
    for name in ("dt", "B", "C", "D", "initial_state"):
        with pytest.raises(ValueError, match=r"must be \("):
            scan.function(**inputs | {name: inputs[name][..., :-1]})
    with pytest.raises(ValueError, match="lengths must be"):
        scan.function(**inputs, lengths=torch.tensor([9]))


@pytest.mark.parametrize(("op", "name"), [case for case in CASES if case != ("ssd", "torch")])
@pytest.mark.parametrize("lengths", [[10, 1], [-1, 9]])
def test_lengths_outside_of_the_sequence_are_refused(op: str, name: str, lengths: list[int]) -> None:
    backends.request(f"{op}={name}")
    inputs = {key: value.float() for key, value in SCANS[op].inputs(2, 9).items()}
    with pytest.raises(ValueError, match=r"lengths must lie in 0\.\.9"):
        SCANS[op].function(**inputs, lengths=torch.tensor(lengths))
    backends.request("auto")


def test_threads_change_nothing(scan: Scan) -> None:
    inputs = scan.inputs(1, 50, channels=70) if scan.signal == "u" else scan.inputs(1, 50, heads=4, width=32)
    alone = results_and_gradients(scan.function, inputs, torch.float32)
    torch.set_num_threads(2)
    try:
        together = results_and_gradients(scan.function, inputs, torch.float32)
    finally:
        torch.set_num_threads(1)
    assert_close(together, alone, 1e-6)


def test_autocast_leaves_the_recurrence_in_float32(scan: Scan) -> None:
    inputs = {name: value.float() for name, value in scan.inputs(2, 40).items()}
    low = inputs | {name: inputs[name].bfloat16() for name in scan.timed}
    expected, state = scan.reference(**{name: value.double() for name, value in low.items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, final_state = scan.function(**low)
    assert y.dtype == torch.bfloat16
    assert final_state.dtype == torch.float32
    assert_close({"y": y}, {"y": expected}, 2e-2)
    assert_close({"state": final_state}, {"state": state})


def test_compiled_without_a_graph_break_gives_the_same(scan: Scan) -> None:
    torch.compiler.reset()
    inputs = scan.inputs(2, 37)
    compiled = torch.compile(scan.function, fullgraph=True, backend="aot_eager")
    lengths = torch.tensor([37, 12])
    expected = results_and_gradients(scan.function, inputs, torch.float32, lengths=lengths, reverse=True)
    assert_close(results_and_gradients(compiled, inputs, torch.float32, lengths=lengths, reverse=True), expected, 1e-6)


def test_steps_of_softplus_are_fused(request: pytest.FixtureRequest) -> None:
    for name in usable_backends("selective_scan"):
        backends.request(f"selective_scan={name}")
        inputs = mamba_inputs(2, 50)
        inputs["dt"] = torch.linspace(-30, 30, inputs["dt"].numel()).double().view(inputs["dt"].shape)
        compare(SCANS["selective_scan"], inputs, dt_softplus=True)
    backends.request("auto")


@pytest.mark.parametrize(("op", "name"), [case for case in CASES if case != ("ssd", "torch")])
def test_the_custom_op_keeps_the_rules_of_its_kind(op: str, name: str) -> None:
    scan = SCANS[op]
    inputs = {key: value.float().requires_grad_() for key, value in scan.inputs(2, 37).items()}
    lengths = torch.tensor([37, 35])  # both in the last chunk: what is kept of others is left uninitialised
    head = tuple(inputs[key] for key in (scan.signal, "dt", "A", "B", "C", "D"))
    flags = (True, False, True) if op == "selective_scan" else (False, True)
    torch.library.opcheck(
        getattr(torch.ops.mode_ssm, op).default, (*head, lengths, inputs["initial_state"], *flags, name)
    )


@pytest.mark.parametrize("which", ["reference", "function"])
def test_gradcheck_in_float64(exact: Scan, which: str) -> None:
    small = {"channels": 2} if exact.signal == "u" else {"heads": 2, "width": 1}
    inputs = exact.inputs(2, 18, states=3, **small)  # across the border of the torch path's chunks
    names = list(inputs)
    lengths = torch.tensor([18, 3])

    def run(*values: Tensor) -> tuple[Tensor, Tensor]:
        function = getattr(exact, which)
        return function(**dict(zip(names, values, strict=True)), lengths=lengths)  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, tuple(value.requires_grad_() for value in inputs.values()))


def test_float64_is_exact_on_the_path_it_always_takes(exact: Scan) -> None:
    inputs = exact.inputs(2, 150)
    options = {"lengths": torch.tensor([150, 77]), "reverse": True}
    expected = results_and_gradients(exact.reference, inputs, torch.float64, **options)
    assert_close(results_and_gradients(exact.function, inputs, torch.float64, **options), expected, 1e-11)
