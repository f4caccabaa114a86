"""Which module of which package computes what, and its import."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Op -> the module that computes it, and what to install where it does not load.
NEEDS = {
    "selective_scan": ("selective_scan_cuda", "mamba-ssm and its extension (built by MAMBA_KEEP_CUDA_BUILD=TRUE)"),
    "ssd": ("mamba_ssm.ops.triton.ssd_combined", "mamba-ssm"),
    "causal_conv": ("causal_conv1d_cuda", "causal-conv1d"),
}


def load(op: str) -> Any:
    module, package = NEEDS[op]
    try:
        return import_module(module)
    except Exception as error:  # an extension built for another torch: ImportError, OSError or RuntimeError
        raise ValueError(f"backend mamba-ssm needs {package} for {op} ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
