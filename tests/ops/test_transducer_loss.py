import itertools
import math

import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mode_ssm.ops.transducer_loss import transducer_loss, transducer_loss_reference


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
def test_uniform_logits_count_the_alignments(time: int, labels: int) -> None:
    classes = 41
    targets = torch.ones(1, labels, dtype=torch.long)
    loss = transducer_loss(
        torch.zeros(1, time, labels + 1, classes), targets, torch.tensor([time]), torch.tensor([labels])
    )
    alignments = math.comb(time + labels - 1, labels)
    assert loss.item() == pytest.approx((time + labels) * math.log(classes) - math.log(alignments), rel=2e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_matches_the_reference_on_losses_and_gradients(dtype: torch.dtype, tolerance: float) -> None:
    logits, targets, logit_lengths, target_lengths = random_case(4, 9, 6, 7, dtype)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=dtype)
    fast = transducer_loss(logits, targets, logit_lengths, target_lengths)
    slow = transducer_loss_reference(logits, targets, logit_lengths, target_lengths)
    torch.testing.assert_close(fast, slow, atol=tolerance, rtol=tolerance)
    gradients = [torch.autograd.grad((loss * weights).sum(), logits)[0] for loss in (fast, slow)]
    torch.testing.assert_close(*gradients, atol=tolerance, rtol=tolerance)


def test_matches_torchaudio() -> None:
    logits, targets, logit_lengths, target_lengths = random_case(6, 60, 25, 41, torch.float32)
    ours = transducer_loss(logits, targets, logit_lengths, target_lengths)
    theirs = torchaudio.functional.rnnt_loss(
        logits, targets.int(), logit_lengths.int(), target_lengths.int(), blank=0, reduction="none"
    )
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-5)
    gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=5e-4, rtol=0)


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


def test_padding_and_companions_change_nothing_and_get_no_gradient() -> None:
    logits, targets, logit_lengths, target_lengths = random_case(5, 12, 7, 6)
    losses = transducer_loss(logits, targets, logit_lengths, target_lengths)
    (grad,) = torch.autograd.grad(losses.sum(), logits)
    for row, (time, labels) in enumerate(zip(logit_lengths.tolist(), target_lengths.tolist(), strict=True)):
        alone = logits[row : row + 1, :time, : labels + 1]
        loss = transducer_loss(alone, targets[row : row + 1, :labels], torch.tensor([time]), torch.tensor([labels]))
        torch.testing.assert_close(losses[row : row + 1], loss)
        torch.testing.assert_close(grad[row, :time, : labels + 1], torch.autograd.grad(loss.sum(), alone)[0][0])
        assert grad[row, time:].count_nonzero() == 0
        assert grad[row, :, labels + 1 :].count_nonzero() == 0


def test_what_stands_in_the_padding_is_ignored() -> None:
    logits, targets, logit_lengths, target_lengths = random_case(5, 12, 7, 6)
    dirty_logits, dirty_targets = logits.detach().clone(), targets.clone()
    for row, (time, labels) in enumerate(zip(logit_lengths.tolist(), target_lengths.tolist(), strict=True)):
        dirty_logits[row, time:] = 1e4
        dirty_logits[row, :, labels + 1 :] = -1e4
        dirty_targets[row, labels:] = -1
    clean = transducer_loss(logits, targets, logit_lengths, target_lengths)
    dirty = transducer_loss(dirty_logits, dirty_targets, logit_lengths, target_lengths)
    assert torch.equal(clean, dirty)


def test_an_impossible_row_has_infinite_loss_no_gradient_and_harms_no_other() -> None:
    logits, targets, logit_lengths, target_lengths = random_case(3, 6, 4, 5)
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


def test_every_node_s_gradient_sums_to_zero_over_classes() -> None:
    logits, targets, logit_lengths, target_lengths = random_case(3, 10, 5, 6)
    (grad,) = torch.autograd.grad(transducer_loss(logits, targets, logit_lengths, target_lengths).sum(), logits)
    assert grad.abs().max() > 0.1
    torch.testing.assert_close(grad.sum(-1), torch.zeros(3, 10, 6, dtype=torch.float64))


def test_low_precision_logits_are_computed_in_float32() -> None:
    logits, targets, logit_lengths, target_lengths = random_case(3, 20, 8, 6, torch.float32)
    low = logits.detach().bfloat16().requires_grad_()
    loss = transducer_loss(low, targets, logit_lengths, target_lengths)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, transducer_loss(low.float(), targets, logit_lengths, target_lengths))
    assert torch.autograd.grad(loss.sum(), low)[0].dtype == torch.bfloat16


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
