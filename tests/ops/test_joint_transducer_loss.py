"""Joiner and transducer loss in one against the joiner followed by the loss, and what the two hold in memory."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mode_ssm.ops import backends
from mode_ssm.ops.joint_transducer_loss import joint_transducer_loss
from mode_ssm.ops.transducer_loss import transducer_loss
from tests.ops.conftest import usable_backends

CLASSES, WIDTH = 11, 10


@pytest.fixture(params=usable_backends("transducer_loss"))
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv(backends.ENVIRONMENT_KEY, raising=False)
    backends.request(f"transducer_loss={request.param}")
    yield request.param
    backends.request("auto")


def random_case(
    batch: int = 6, time: int = 14, labels: int = 7, dtype: torch.dtype = torch.float32, width: int = WIDTH
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What is differentiated (encoder, predictor, weight, bias), and targets with ragged lengths."""
    generator = torch.Generator().manual_seed(batch)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    frames = torch.randint(1, time + 1, (batch,), generator=generator)
    counts = torch.randint(0, labels + 1, (batch,), generator=generator)
    frames[batch // 2], counts[-1] = time, labels
    targets = torch.randint(1, CLASSES, (batch, labels), generator=generator)
    parameters = (normal(batch, time, width), normal(batch, labels + 1, width), normal(CLASSES, width), normal(CLASSES))
    return parameters, (targets, frames, counts)


def in_two_steps(
    encoder: Tensor, predictor: Tensor, weight: Tensor, bias: Tensor, *arguments: Tensor, blank: int = 0
) -> Tensor:
    hidden = torch.tanh(encoder[:, :, None] + predictor[:, None])
    return transducer_loss(F.linear(hidden, weight, bias), *arguments, blank=blank)


def results(
    function: Any, parameters: tuple[Tensor, ...], arguments: tuple[Tensor, ...], **options: Any
) -> list[Tensor]:
    """Losses and the gradients of all parameters, with a gradient of its own coming back to each row."""
    losses = function(*parameters, *arguments, **options)
    weights = torch.linspace(-1, 2, len(losses), dtype=losses.dtype)
    return [losses.detach(), *torch.autograd.grad((losses * weights).sum(), parameters)]


def assert_same(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    names = ("loss", "encoder", "predictor", "weight", "bias")
    for name, value, right in zip(names, actual, expected, strict=True):
        error, scale = (value.double() - right.double()).abs().max().item(), right.abs().max().item()
        assert error <= tolerance * scale, f"{name}: {error:.2e} of {scale:.2e}"


# All logits kept; groups of rows, logits computed again; rows one by one, cut into single frames.
@pytest.mark.parametrize("max_elements", [2**26, 1500, 1])
def test_equals_the_joiner_followed_by_the_loss(backend: str, max_elements: int) -> None:
    parameters, arguments = random_case()
    expected = results(in_two_steps, parameters, arguments)
    assert_same(results(joint_transducer_loss, parameters, arguments, max_elements=max_elements), expected, 1e-6)


@pytest.mark.parametrize("max_elements", [2**26, 1500, 1])
def test_equals_it_in_float64(max_elements: int) -> None:
    parameters, arguments = random_case(dtype=torch.float64)
    expected = results(in_two_steps, parameters, arguments)
    assert_same(results(joint_transducer_loss, parameters, arguments, max_elements=max_elements), expected, 1e-13)


def test_another_blank() -> None:
    parameters, (targets, frames, counts) = random_case(dtype=torch.float64)
    arguments = (targets - 1, frames, counts)
    expected = results(in_two_steps, parameters, arguments, blank=CLASSES - 1)
    assert_same(results(joint_transducer_loss, parameters, arguments, blank=CLASSES - 1), expected, 1e-13)


def test_gradcheck() -> None:
    parameters, arguments = random_case(3, 4, 2, torch.float64, width=3)
    assert torch.autograd.gradcheck(
        lambda *parameters: joint_transducer_loss(*parameters, *arguments, max_elements=50), parameters
    )


@pytest.mark.parametrize("max_elements", [2**26, 1500])
def test_what_stands_in_the_padding_is_ignored_and_gets_no_gradient(backend: str, max_elements: int) -> None:
    (encoder, predictor, *rest), (targets, frames, counts) = random_case()
    dirty_encoder, dirty_predictor, dirty_targets = (
        encoder.detach().clone(),
        predictor.detach().clone(),
        targets.clone(),
    )
    for row, (time, labels) in enumerate(zip(frames.tolist(), counts.tolist(), strict=True)):
        dirty_encoder[row, time:] = 1e4
        dirty_predictor[row, labels + 1 :] = -1e4
        dirty_targets[row, labels:] = -1
    dirty = (dirty_encoder.requires_grad_(), dirty_predictor.requires_grad_(), *rest)
    clean = results(joint_transducer_loss, (encoder, predictor, *rest), (targets, frames, counts))
    found = results(joint_transducer_loss, dirty, (dirty_targets, frames, counts), max_elements=max_elements)
    assert_same(found, clean, 1e-6)
    for row, (time, labels) in enumerate(zip(frames.tolist(), counts.tolist(), strict=True)):
        assert found[1][row, time:].count_nonzero() == 0
        assert found[2][row, labels + 1 :].count_nonzero() == 0


def test_without_labels_and_with_one_frame() -> None:
    parameters, _ = random_case(3, 5, 2)
    (encoder, predictor, *rest), lengths = parameters, torch.tensor([5, 1, 3])
    for labels in (0, 2):
        parts = (encoder, predictor[:, : labels + 1].detach().requires_grad_(), *rest)
        arguments = (torch.ones(3, labels, dtype=torch.int64), lengths, torch.tensor([0, labels, 0]))
        assert_same(results(joint_transducer_loss, parts, arguments), results(in_two_steps, parts, arguments), 1e-6)


def test_frozen_parts_stay_without_gradient() -> None:
    (encoder, predictor, weight, bias), arguments = random_case()
    expected = results(in_two_steps, (encoder, predictor, weight, bias), arguments)
    frozen = [part.detach() for part in (predictor, weight, bias)]
    losses = joint_transducer_loss(encoder, *frozen, *arguments)
    losses.backward(torch.linspace(-1, 2, len(losses)))
    torch.testing.assert_close(encoder.grad, expected[1], atol=1e-6, rtol=1e-5)
    assert all(part.grad is None for part in frozen)


def test_without_gradient_nothing_is_kept() -> None:
    parameters, arguments = random_case()
    with torch.no_grad():
        losses = joint_transducer_loss(*parameters, *arguments)
    assert losses.grad_fn is None
    torch.testing.assert_close(losses, joint_transducer_loss(*parameters, *arguments).detach())


def test_autocast_computes_the_joiner_in_its_dtype_and_the_loss_in_float32() -> None:
    (encoder, predictor, weight, bias), arguments = random_case()

    def layers(function: Any, encoder: Tensor, predictor: Tensor, *rest: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            eye = torch.eye(WIDTH)
            return function(F.linear(encoder, eye), F.linear(predictor, eye), *rest)

    parameters = (encoder, predictor, weight, bias)
    outcomes = [
        results(lambda *inputs, function=function: layers(function, *inputs), parameters, arguments)
        for function in (joint_transducer_loss, in_two_steps)
    ]
    assert outcomes[0][0].dtype == torch.float32
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    assert [gradient.dtype for gradient in outcomes[0][1:]] == [torch.float32] * 4
    assert_same(*outcomes, 2e-2)


def test_a_compiled_graph_breaks_and_gives_the_same_numbers() -> None:
    torch.compiler.reset()
    parameters, arguments = random_case()
    compiled = torch.compile(joint_transducer_loss, backend="aot_eager")
    for ours, right in zip(
        results(compiled, parameters, arguments), results(joint_transducer_loss, parameters, arguments), strict=True
    ):
        assert torch.equal(ours, right)


class Largest(TorchDispatchMode):
    """Remembers the most elements that a tensor made under it has."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        made = output if isinstance(output, tuple | list) else [output]
        self.elements = max([self.elements, *(each.numel() for each in made if isinstance(each, Tensor))])
        return output


def test_no_intermediate_exceeds_the_budget(backend: str) -> None:
    parameters, arguments = random_case(12, 60, 25, width=24)
    row = 60 * 26 * CLASSES  # the largest row's logits, about 17,000; activations of the batch would be 450,000
    with Largest() as largest:
        results(joint_transducer_loss, parameters, arguments, max_elements=2 * row)
    assert largest.elements <= 2 * row
    with Largest() as largest:
        results(in_two_steps, parameters, arguments)
    assert largest.elements == 12 * 60 * 26 * 24


@pytest.mark.parametrize(
    ("number", "shape", "message"),
    [
        (0, (6, 14), r"encoder must be \(B, T, J\), got \(6, 14\)"),
        (1, (6, 8, 9), r"predictor must be \(B, U \+ 1, J\) = \(6, U \+ 1, 10\), got \(6, 8, 9\)"),
        (1, (6, 9, 10), r"targets must be \(B, U\) = \(6, 8\) to fit the logits, got \(6, 7\)"),
        (2, (11, 9), r"weight must be \(V, J\) = \(V, 10\), got \(11, 9\)"),
        (3, (12,), r"bias must be \(V,\) = \(11,\), got \(12,\)"),
        (0, (6, 13, 10), r"logit_lengths must lie in 1 \.\. 13, got \["),
    ],
)
def test_invalid_arguments_are_named_in_one_line(number: int, shape: tuple[int, ...], message: str) -> None:
    parameters, arguments = random_case()
    changed = [*parameters]
    changed[number] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message) as error:
        joint_transducer_loss(*changed, *arguments)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the high-water mark of memory from /proc")
def test_a_long_wide_batch_stays_under_two_gigabytes() -> None:
    result = subprocess.run([sys.executable, "-c", LONG_WIDE_BATCH], capture_output=True, text=True, check=True)
    before, peak = map(int, result.stdout.split())  # in KiB
    assert 0 < peak - before < 2e9 / 1024


LONG_WIDE_BATCH = """
import torch
from mode_ssm.ops.joint_transducer_loss import joint_transducer_loss

def memory(key):
    with open("/proc/self/status") as status:
        return next(line.split()[1] for line in status if line.startswith(key))

torch.set_num_threads(1)
B, T, U, J, V = 64, 250, 120, 256, 41
parameters = [torch.randn(*shape, requires_grad=True) for shape in ((B, T, J), (B, U + 1, J), (V, J), (V,))]
before = memory("VmRSS")
losses = joint_transducer_loss(*parameters, torch.randint(1, V, (B, U)), torch.full((B,), T), torch.full((B,), U))
losses.sum().backward()
print(before, memory("VmHWM"))
"""
