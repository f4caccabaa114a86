"""The transducer loss on every backend of this machine: against all alignments, its loop over nodes, torchaudio."""

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mode_ssm.ops import backends
from mode_ssm.ops.transducer_loss import transducer_loss, transducer_loss_reference
from tests.ops.conftest import usable_backends


@pytest.fixture(params=usable_backends("transducer_loss"))
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv(backends.ENVIRONMENT_KEY, raising=False)
    backends.request(f"transducer_loss={request.param}")
    yield request.param
    backends.request("auto")


def random_case(
    batch: int, time: int, labels: int, classes: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, targets and ragged lengths, of which the first row is full and the second has no label."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, time, labels + 1, classes, dtype=dtype, generator=generator)
    targets = torch.randint(1, classes, (batch, labels), generator=generator)
    logit_lengths = torch.randint(1, time + 1, (batch,), generator=generator)
    target_lengths = torch.randint(0, labels + 1, (batch,), generator=generator)
    logit_lengths[0], target_lengths[0] = time, labels
    if batch > 1:
        target_lengths[1] = 0
    return logits.requires_grad_(), targets, logit_lengths, target_lengths


def loss_and_gradient(logits: Tensor, *arguments: Tensor) -> tuple[Tensor, Tensor]:
    """With a gradient of its own coming back to each row."""
    loss = transducer_loss(logits, *arguments)
    weights = torch.linspace(-2, 3, len(loss), dtype=loss.dtype)
    return loss.detach(), torch.autograd.grad((loss * weights).sum(), logits)[0]


def assert_same(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float = 1e-5) -> None:
    for name, value, right in zip(("loss", "gradient"), actual, expected, strict=True):
        error, scale = (value.double() - right).abs().max().item(), right.abs().max().item()
        assert error <= tolerance * scale, f"{name}: {error:.2e} of {scale:.2e}"


def brute_force(logits: Tensor, targets: list[int], blank: int = 0) -> float:
    """Sum the probability of every alignment: the frames at which the labels are emitted, in order."""
    probs = logits.softmax(-1)
    total = 0.0
    for frames in itertools.combinations_with_replacement(range(len(probs)), len(targets)):
        probability, emitted = 1.0, 0
        for t in range(len(probs)):
            while emitted < len(targets) and frames[emitted] == t:
                probability *= probs[t, emitted, targets[emitted]].item()
                emitted += 1
            probability *= probs[t, emitted, blank].item()
        total += probability
    return -math.log(total)


@given(time=st.integers(1, 5), labels=st.integers(0, 4), blank=st.integers(0, 2), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_equals_the_sum_over_all_alignments(time: int, labels: int, blank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(1, time, labels + 1, 3, dtype=torch.float64, generator=generator)
    targets = [(blank + 1 + label) % 3 for label in torch.randint(0, 2, (labels,), generator=generator).tolist()]
    loss = transducer_loss(
        logits, torch.tensor([targets], dtype=torch.long), torch.tensor([time]), torch.tensor([labels]), blank=blank
    )
    assert loss.item() == pytest.approx(brute_force(logits[0], targets, blank), abs=1e-10)


@pytest.mark.parametrize(("time", "labels"), [(3, 2), (75, 30), (400, 80)])
def test_uniform_logits_count_the_alignments(backend: str, time: int, labels: int) -> None:
    classes = 41
    targets = torch.ones(1, labels, dtype=torch.long)
    loss = transducer_loss(
        torch.zeros(1, time, labels + 1, classes), targets, torch.tensor([time]), torch.tensor([labels])
    )
    alignments = math.comb(time + labels - 1, labels)
    assert loss.item() == pytest.approx((time + labels) * math.log(classes) - math.log(alignments), rel=2e-6)


def test_matches_the_reference_in_float64() -> None:
    logits, *arguments = random_case(4, 9, 6, 7)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    fast, slow = transducer_loss(logits, *arguments), transducer_loss_reference(logits, *arguments)
    torch.testing.assert_close(fast, slow, atol=1e-11, rtol=1e-11)
    gradients = [torch.autograd.grad((loss * weights).sum(), logits)[0] for loss in (fast, slow)]
    torch.testing.assert_close(*gradients, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize(("time", "labels"), [(1, 0), (1, 6), (9, 0), (2, 1), (9, 6), (5, 19)])
@pytest.mark.parametrize("classes", [2, 7, 16, 41])  # a part of a vector, whole ones, both
def test_matches_the_reference_on_losses_and_gradients(backend: str, time: int, labels: int, classes: int) -> None:
    logits, *arguments = random_case(4, time, labels, classes, torch.float32)
    exact = logits.detach().double().requires_grad_()
    loss = transducer_loss_reference(exact, *arguments)
    weights = torch.linspace(-2, 3, 4, dtype=torch.float64)
    expected = loss.detach(), torch.autograd.grad((loss * weights).sum(), exact)[0]
    assert_same(loss_and_gradient(logits, *arguments), expected)


@pytest.mark.parametrize("sharpness", [0.5, 2.5])
def test_long_sequences_stay_accurate(backend: str, sharpness: float) -> None:
    logits, *arguments = random_case(3, 400, 120, 41, torch.float32)
    logits = (sharpness * logits.detach()).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    assert_same(loss_and_gradient(logits, *arguments), loss_and_gradient(exact, *arguments))


@pytest.mark.parametrize("ties", [False, True])
def test_logits_far_larger_than_their_differences_stay_accurate(backend: str, ties: bool) -> None:
    logits, *arguments = random_case(4, 20, 8, 41, torch.float32)
    far = logits.detach().sign() if ties else logits.detach()
    logits = (1e4 * far).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    assert_same(loss_and_gradient(logits, *arguments), loss_and_gradient(exact, *arguments))


def test_matches_torchaudio(backend: str) -> None:
    logits, targets, logit_lengths, target_lengths = random_case(6, 60, 25, 41, torch.float32)
    ours = transducer_loss(logits, targets, logit_lengths, target_lengths)
    theirs = torchaudio.functional.rnnt_loss(
        logits, targets.int(), logit_lengths.int(), target_lengths.int(), blank=0, reduction="none"
    )
    torch.testing.assert_close(ours, theirs, atol=0, rtol=1e-5)
    gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (ours, theirs)]
    # Its lattice is in float32: its gradients are off by 1e-4 and more here, ours by less than 1e-6.
    torch.testing.assert_close(*gradients, atol=5e-4, rtol=0)


def test_matches_torchaudio_s_gradient_where_that_is_accurate(backend: str) -> None:
    logits, targets, logit_lengths, target_lengths = random_case(16, 8, 4, 41, torch.float32)
    ours = transducer_loss(logits, targets, logit_lengths, target_lengths)
    theirs = torchaudio.functional.rnnt_loss(
        logits, targets.int(), logit_lengths.int(), target_lengths.int(), blank=0, reduction="none"
    )
    gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=0)


def test_gradcheck() -> None:
    logits, targets, logit_lengths, target_lengths = random_case(3, 4, 3, 4)
    assert torch.autograd.gradcheck(
        lambda logits: transducer_loss(logits, targets, logit_lengths, target_lengths), (logits,)
    )


def test_an_empty_target_costs_its_blanks() -> None:
    logits = torch.randn(2, 5, 1, 3, dtype=torch.float64)
    loss = transducer_loss(logits, torch.empty(2, 0, dtype=torch.long), torch.tensor([5, 3]), torch.tensor([0, 0]))
    blanks = -logits.log_softmax(-1)[:, :, 0, 0]
    torch.testing.assert_close(loss, torch.stack([blanks[0].sum(), blanks[1, :3].sum()]))


def test_padding_and_companions_change_nothing_and_get_no_gradient(backend: str) -> None:
    logits, targets, logit_lengths, target_lengths = random_case(5, 12, 7, 6, torch.float32)
    losses = transducer_loss(logits, targets, logit_lengths, target_lengths)
    (grad,) = torch.autograd.grad(losses.sum(), logits)
    for row, (time, labels) in enumerate(zip(logit_lengths.tolist(), target_lengths.tolist(), strict=True)):
        alone = logits[row : row + 1, :time, : labels + 1]
        loss = transducer_loss(alone, targets[row : row + 1, :labels], torch.tensor([time]), torch.tensor([labels]))
        torch.testing.assert_close(losses[row : row + 1], loss)
        torch.testing.assert_close(grad[row, :time, : labels + 1], torch.autograd.grad(loss.sum(), alone)[0][0])
        assert grad[row, time:].count_nonzero() == 0
        assert grad[row, :, labels + 1 :].count_nonzero() == 0


def test_what_stands_in_the_padding_is_ignored(backend: str) -> None:
    logits, targets, logit_lengths, target_lengths = random_case(5, 12, 7, 6, torch.float32)
    dirty_logits, dirty_targets = logits.detach().clone(), targets.clone()
    for row, (time, labels) in enumerate(zip(logit_lengths.tolist(), target_lengths.tolist(), strict=True)):
        dirty_logits[row, time:] = 1e4
        dirty_logits[row, :, labels + 1 :] = -1e4
        dirty_targets[row, labels:] = -1
    clean = transducer_loss(logits, targets, logit_lengths, target_lengths)
    dirty = transducer_loss(dirty_logits, dirty_targets, logit_lengths, target_lengths)
    assert torch.equal(clean, dirty)


def test_an_impossible_row_has_infinite_loss_no_gradient_and_harms_no_other(backend: str) -> None:
    logits, targets, logit_lengths, target_lengths = random_case(3, 6, 4, 5, torch.float32)
    forbidden = logits.detach().clone()
    forbidden[0, 2, :, 0] = -math.inf  # no path can leave frame 2
    forbidden.requires_grad_()
    possible = transducer_loss(logits, targets, logit_lengths, target_lengths)
    losses = transducer_loss(forbidden, targets, logit_lengths, target_lengths)
    (grad,) = torch.autograd.grad(losses.sum(), forbidden)
    assert losses[0].item() == math.inf
    assert grad[0].count_nonzero() == 0
    assert torch.equal(losses[1:], possible[1:])
    assert torch.equal(grad[1:], torch.autograd.grad(possible.sum(), logits)[0][1:])


def test_forbidden_classes_cost_nothing_where_others_remain(backend: str) -> None:
    logits, *arguments = random_case(3, 6, 4, 5, torch.float32)
    forbidden = logits.detach().clone()
    forbidden[0, 2, 0, 0] = forbidden[0, 3, 2, 4] = forbidden[0, 5, 4, 3] = -math.inf  # some label must come before
    forbidden.requires_grad_()
    exact = forbidden.detach().double().requires_grad_()
    expected = loss_and_gradient(exact, *arguments)
    assert expected[0].isfinite().all()
    assert_same(loss_and_gradient(forbidden, *arguments), expected)


@pytest.mark.parametrize("place", [(1, 2, 1, 3), (1, 2, 1, 0), (1, 0, 0, 4)])
def test_nan_logits_show_in_their_row_and_in_no_other(backend: str, place: tuple[int, ...]) -> None:
    logits, targets, logit_lengths, target_lengths = random_case(3, 6, 4, 5, torch.float32)
    logit_lengths[1], target_lengths[1] = 6, 4
    broken = logits.detach().clone()
    broken[place] = math.nan
    losses = transducer_loss(broken, targets, logit_lengths, target_lengths)
    whole = transducer_loss(logits, targets, logit_lengths, target_lengths)
    assert losses[1].isnan()
    assert torch.equal(losses[[0, 2]], whole[[0, 2]])


def test_every_node_s_gradient_sums_to_zero_over_classes(backend: str) -> None:
    logits, targets, logit_lengths, target_lengths = random_case(3, 10, 5, 6, torch.float32)
    (grad,) = torch.autograd.grad(transducer_loss(logits, targets, logit_lengths, target_lengths).sum(), logits)
    assert grad.abs().max() > 0.1
    torch.testing.assert_close(grad.sum(-1), torch.zeros(3, 10, 6), atol=5e-7, rtol=0)


def test_low_precision_logits_are_computed_in_float32(backend: str) -> None:
    logits, targets, logit_lengths, target_lengths = random_case(3, 20, 8, 6, torch.float32)
    low = logits.detach().bfloat16().requires_grad_()
    loss = transducer_loss(low, targets, logit_lengths, target_lengths)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, transducer_loss(low.float(), targets, logit_lengths, target_lengths))
    assert torch.autograd.grad(loss.sum(), low)[0].dtype == torch.bfloat16


def test_views_and_narrow_integers_are_read_as_they_are_meant(backend: str) -> None:
    logits, *arguments = random_case(4, 9, 6, 7, torch.float32)
    expected = loss_and_gradient(logits, *arguments)
    turned = logits.detach().permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0).requires_grad_()
    narrow = [tensor.int() for tensor in arguments]
    for ours, right in zip(loss_and_gradient(turned, *narrow), expected, strict=True):
        torch.testing.assert_close(ours, right, atol=1e-6, rtol=1e-6)


def test_threads_change_no_number(backend: str) -> None:
    logits, *arguments = random_case(5, 30, 12, 41, torch.float32)
    alone = loss_and_gradient(logits, *arguments)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        together = loss_and_gradient(logits, *arguments)
    finally:
        torch.set_num_threads(before)
    for one, three in zip(alone, together, strict=True):
        torch.testing.assert_close(three, one, atol=1e-6, rtol=1e-6)


def test_a_few_numbers_a_node_are_kept_besides_the_logits(backend: str) -> None:
    logits, *arguments = random_case(4, 30, 12, 41, torch.float32)
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        transducer_loss(logits, *arguments)
    nodes = logits.numel() // 41
    assert kept.pop(logits.data_ptr()) == logits.numel()
    assert sum(kept.values()) <= 4 * nodes + sum(tensor.numel() for tensor in arguments)


def test_without_gradient_the_loss_is_the_same(backend: str) -> None:
    logits, *arguments = random_case(4, 9, 6, 7, torch.float32)
    with torch.no_grad():
        loss = transducer_loss(logits, *arguments)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, transducer_loss(logits, *arguments).detach())


def test_the_op_keeps_the_rules_of_custom_ops(backend: str) -> None:
    logits, *arguments = random_case(4, 9, 6, 7, torch.float32)
    torch.library.opcheck(torch.ops.mode_ssm.transducer_loss.default, (logits, *arguments, 0, True, backend))
    _, kept = torch.ops.mode_ssm.transducer_loss(logits.detach(), *arguments, 0, True, backend)
    torch.library.opcheck(
        torch.ops.mode_ssm.transducer_loss_backward.default,
        (torch.ones(4), logits.detach(), *arguments, kept, 0, backend),
    )


def test_a_compiled_graph_is_one_piece_gives_the_same_numbers_and_checks_its_arguments(backend: str) -> None:
    torch.compiler.reset()  # the backend is a constant of the graph
    logits, targets, logit_lengths, target_lengths = random_case(4, 9, 6, 7, torch.float32)
    compiled = torch.compile(transducer_loss, fullgraph=True, backend="aot_eager")
    losses = [function(logits, targets, logit_lengths, target_lengths) for function in (compiled, transducer_loss)]
    gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in losses]
    assert torch.equal(*losses)
    assert torch.equal(*gradients)
    with pytest.raises(ValueError, match=r"logit_lengths must lie in 1 \.\. 9, got \[10, 1, 1, 1\]"):
        compiled(logits, targets, torch.tensor([10, 1, 1, 1]), target_lengths)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logit_lengths": [7, 2]}, r"logit_lengths must lie in 1 \.\. 6, got \[7, 2\]"),
        ({"logit_lengths": [6, 0]}, r"logit_lengths must lie in 1 \.\. 6, got \[6, 0\]"),
        ({"logit_lengths": [6]}, r"logit_lengths must be \(B,\) = \(2,\), got \(1,\)"),
        ({"target_lengths": [4, 0]}, r"target_lengths must lie in 0 \.\. 3, got \[4, 0\]"),
        ({"target_lengths": [-1, 0]}, r"target_lengths must lie in 0 \.\. 3, got \[-1, 0\]"),
        ({"targets": [[1, 2, 5], [1, 1, 1]]}, r"targets must be classes 0 \.\. 4 other than the blank 0"),
        ({"targets": [[1, 0, 2], [1, 1, 1]]}, r"targets must be classes 0 \.\. 4 other than the blank 0"),
        ({"targets": [[1, 2], [1, 1]]}, r"targets must be \(B, U\) = \(2, 3\) to fit the logits, got \(2, 2\)"),
    ],
)
def test_invalid_arguments_are_named_in_one_line(change: dict[str, list[int]], message: str) -> None:
    arguments = {"targets": [[1, 2, 3], [1, 1, 1]], "logit_lengths": [6, 2], "target_lengths": [3, 0]} | change
    with pytest.raises(ValueError, match=message) as error:
        transducer_loss(torch.zeros(2, 6, 4, 5), **{name: torch.tensor(value) for name, value in arguments.items()})
    assert "\n" not in str(error.value)


def test_a_blank_outside_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"blank = 5 is no class; logits have classes 0 \.\. 4"):
        transducer_loss(torch.zeros(1, 2, 2, 5), torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1]), blank=5)
