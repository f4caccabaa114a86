"""Whether float32 matrix products may run at torch's "medium" precision: measured here, not assumed.

On CPUs with AVX512-BF16 the math library computes "medium" as a sum of bf16 products: twice as fast, and off by 4e-7
where plain float32 is off by 2.4e-7. On others, those with bf16 matrix units (AMX) among them, the same setting is real
bf16, off by 1e-3, or changes nothing.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch

CHOICES = ("auto", "highest", "high", "medium")
MAX_ERROR_RATIO = 2.0
MIN_SPEEDUP = 1.2
SHAPE = (500, 512, 2048)  # rows, inner, columns: an input projection of the full model over one trial
REPEATS = 4

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Measured:
    """Root mean square error of a product relative to that of its entries, and its shortest time in milliseconds.

    The mean, because the largest of a million errors is a matter of luck, and a gate must fall the same way every time.
    """

    error: float
    milliseconds: float


def choose_matmul_precision(setting: str, device: str = "cpu") -> str:
    """Set torch's float32 matmul precision for this process and return it: "highest", "high" or "medium".

    `auto` takes "medium" where a measurement of about 0.1 s finds it exact and faster (`passes`), else "highest". For a
    GPU it is "highest": TF32 is off by 1e-3.

    Raises:
        ValueError: an unknown setting.
    """
    if setting not in CHOICES:
        raise ValueError(f"matmul precision {setting!r} is unknown; choose one of {', '.join(CHOICES)}")
    chosen = setting
    if setting == "auto":
        chosen = "highest"
        if device == "cpu":
            plain, medium = measure_both()
            chosen = "medium" if passes(plain, medium) else "highest"
            log.info(
                "float32 matmul precision: %s; error %.1e at highest, %.1e at medium; medium is %.2f times as fast",
                chosen, plain.error, medium.error, plain.milliseconds / medium.milliseconds,
            )  # fmt: skip
    torch.set_float32_matmul_precision(chosen)
    return chosen


def passes(plain: Measured, medium: Measured) -> bool:
    """Whether "medium" is worth it: at most twice the error of plain float32, at least 1.2 times as fast."""
    return medium.error <= MAX_ERROR_RATIO * plain.error and plain.milliseconds >= MIN_SPEEDUP * medium.milliseconds


def measure_both() -> tuple[Measured, Measured]:
    """A float32 product under "highest" and under "medium", in turns; leaves torch's setting as it was."""
    rows, inner, columns = SHAPE
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rows, inner, generator=generator)
    b = torch.randn(inner, columns, generator=generator)
    exact = a[:50].double() @ b.double()
    before = torch.get_float32_matmul_precision()
    settings = ("highest", "medium")
    times: dict[str, list[float]] = {setting: [] for setting in settings}
    errors = {}
    try:
        for repeat in range(REPEATS + 1):
            for setting in settings:
                torch.set_float32_matmul_precision(setting)
                start = time.perf_counter()
                product = a @ b
                if repeat:  # the first builds the kernel
                    times[setting].append(1e3 * (time.perf_counter() - start))
                errors[setting] = float((product[:50].double() - exact).norm() / exact.norm())
    finally:
        torch.set_float32_matmul_precision(before)
    plain, medium = (Measured(errors[s], min(times[s])) for s in settings)
    return plain, medium
