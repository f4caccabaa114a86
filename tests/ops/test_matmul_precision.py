"""When float32 matrix products may run at "medium" precision."""

import logging
from collections.abc import Iterator

import pytest
import torch

from mode_ssm.ops import matmul_precision
from mode_ssm.ops.matmul_precision import Measured, choose_matmul_precision, measure_both


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("plain", "medium", "chosen"),
    [
        (Measured(2e-7, 10.0), Measured(4e-7, 5.0), "medium"),
        (Measured(2e-7, 10.0), Measured(4.1e-7, 5.0), "highest"),  # too wrong
        (Measured(2e-7, 10.0), Measured(2e-3, 1.0), "highest"),  # real bf16
        (Measured(2e-7, 10.0), Measured(2e-7, 8.5), "highest"),  # too little gained
        (Measured(2e-7, 12.0), Measured(2e-7, 10.0), "medium"),
    ],
)
def test_medium_must_be_exact_and_faster(
    plain: Measured,
    medium: Measured,
    chosen: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(matmul_precision, "measure_both", lambda: (plain, medium))
    with caplog.at_level(logging.INFO):
        assert choose_matmul_precision("auto") == chosen
    assert torch.get_float32_matmul_precision() == chosen
    (line,) = caplog.messages
    assert line.startswith(f"float32 matmul precision: {chosen}; error 2.0e-07 at highest, ")


@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_what_is_asked_for_is_not_measured(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul_precision, "measure_both", lambda: pytest.fail("measured"))
    assert choose_matmul_precision(setting) == torch.get_float32_matmul_precision() == setting


def test_a_gpu_keeps_full_precision_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul_precision, "measure_both", lambda: pytest.fail("measured"))
    assert choose_matmul_precision("auto", "cuda") == "highest"
    assert choose_matmul_precision("high", "cuda") == "high"


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="'fast' is unknown; choose one of auto, highest, high, medium"):
        choose_matmul_precision("fast")


def test_the_measurement_sees_float32_and_leaves_no_trace() -> None:
    torch.set_float32_matmul_precision("high")
    plain, medium = measure_both()
    assert torch.get_float32_matmul_precision() == "high"
    assert 1e-8 < plain.error < 1e-6
    assert plain.milliseconds > 0
    assert medium.milliseconds > 0


def test_the_measurement_sees_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that multiplies in bf16 at "medium", as one with AMX does."""
    true_product = torch.Tensor.__matmul__

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium":
            return true_product(a.bfloat16(), b.bfloat16()).float()
        return true_product(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    plain, medium = measure_both()
    assert medium.error > 1e-3 > 1e-6 > plain.error
    assert choose_matmul_precision("auto") == "highest"
