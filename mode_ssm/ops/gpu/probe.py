"""Whether Triton kernels can run here, found out by running one."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch

COUNT = 100


@cache
def why_no_triton() -> str | None:
    """What is missing, in a few words; None where kernels run: on a GPU, or interpreted on the CPU for tests.

    A compiler, a driver or a GPU that does not fit shows only when a kernel is compiled and launched, in any of their
    exceptions; the first line of the exception is the reason.
    """
    if find_spec("triton") is None:
        return "triton is not installed"
    interpreted = bool(os.environ.get("TRITON_INTERPRET"))
    if not interpreted and not torch.cuda.is_available():
        return "torch sees no GPU"
    try:
        total = import_module("mode_ssm.ops.gpu.probe_kernel").sum_to(COUNT, "cpu" if interpreted else "cuda")
    except Exception as error:
        return f"a first kernel failed: {(str(error) or type(error).__name__).splitlines()[0]}"
    expected = COUNT * (COUNT + 1) // 2
    return None if total == expected else f"a first kernel gave {total:g} instead of {expected}"
