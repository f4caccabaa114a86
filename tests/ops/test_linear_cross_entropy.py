"""Projection and cross-entropy in chunks, against all logits at once; two levels, against their definition."""

import pytest
import torch

from mode_ssm.ops import linear_cross_entropy as ops
from mode_ssm.ops.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_reference,
    linear_log_probs,
    two_level_cross_entropy,
    two_level_log_probs,
)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "CHUNK_ROWS", 4)


def make(rows: int = 10, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 5, generator=generator, dtype=dtype) for n in (rows, 7))
    return hidden, weight, torch.randint(0, 7, (rows,), generator=generator)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_loss_and_gradients_equal_the_reference(dtype: torch.dtype, tolerance: float) -> None:
    results = []
    for function in (linear_cross_entropy, linear_cross_entropy_reference):
        hidden, weight, targets = make(dtype=dtype)
        hidden.requires_grad_()
        weight.requires_grad_()
        loss = function(hidden, weight, targets)
        (3.0 * loss).backward()
        results.append((loss, hidden.grad, weight.grad))
    for chunked, reference in zip(*results, strict=True):
        torch.testing.assert_close(chunked, reference, atol=tolerance, rtol=tolerance)


def test_log_probs_sum_to_the_loss() -> None:
    hidden, weight, targets = make()
    log_probs = linear_log_probs(hidden, weight, targets)
    torch.testing.assert_close(log_probs, (hidden @ weight.T).log_softmax(-1)[torch.arange(10), targets])
    torch.testing.assert_close(-log_probs.sum(), linear_cross_entropy(hidden, weight, targets))


def test_under_autocast_products_are_bf16_and_the_loss_float32() -> None:
    hidden, weight, targets = make(dtype=torch.float32)
    hidden.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32
    exact = linear_cross_entropy_reference(hidden, weight, targets)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)
    assert loss.item() != pytest.approx(exact.item(), rel=1e-7)


def two_levels() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden (6, 5), three frequent classes and the one that stands for two rare ones."""
    hidden, weight, _ = make(6)
    return hidden, weight[:4], weight[4:6]


def test_two_levels_are_a_distribution_with_the_product_for_rare_classes() -> None:
    hidden, frequent, rare = two_levels()
    log_probs = torch.stack(
        [two_level_log_probs(hidden, frequent, rare, torch.full((6,), target)) for target in range(5)], dim=1
    )
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(6, dtype=torch.float64))
    first, second = (hidden @ frequent.T).log_softmax(-1), (hidden @ rare.T).log_softmax(-1)
    torch.testing.assert_close(log_probs[:, :3], first[:, :3])
    torch.testing.assert_close(log_probs[:, 3:], first[:, 3:] + second)


def test_the_two_level_loss_is_the_sum_of_its_log_probs() -> None:
    hidden, frequent, rare = two_levels()
    for targets in ([0, 3, 2, 4, 1, 3], [0, 1, 2, 0, 1, 2], [3, 4, 3, 4, 3, 4]):
        wanted = torch.tensor(targets)
        log_probs = two_level_log_probs(hidden, frequent, rare, wanted)
        torch.testing.assert_close(two_level_cross_entropy(hidden, frequent, rare, wanted), -log_probs.sum())
