"""Whether Triton kernels can run here."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch


def why_no_triton() -> str | None:
    """What is missing, in a few words; None where kernels run: on a GPU, or interpreted on the CPU for tests."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") or torch.cuda.is_available():
        return None
    return "torch sees no GPU"
