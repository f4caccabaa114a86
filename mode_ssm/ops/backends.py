"""Which implementation of each op runs here: probed once, chosen once, said in one line, never swapped silently.

`auto` takes what is known to be fastest, `fastest` measures. Asking for one by name, in `MODE_SSM_BACKEND` or in the
configuration's `parallel.backend`, gets that one or a `ValueError` that says what is missing. float64 always takes the
torch path: it is the precision of the references, and the kernels have none.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mode_ssm.ops.cpu.build import BuildError
from mode_ssm.ops.cpu.library import library, usable_levels
from mode_ssm.ops.cpu.scan_step import ScanStep
from mode_ssm.ops.peers import why_no_peer

ENVIRONMENT_KEY = "MODE_SSM_BACKEND"
CPU_BACKENDS = ("cpu-avx512", "cpu-avx2", "cpu-portable")
NAMES = ("torch", *CPU_BACKENDS, "triton", "mamba-ssm")
FULL_PRECISION = ("torch", *CPU_BACKENDS)  # take float32 (torch: float64 too); the others read bf16 and fp16 as it is
ALIASES = ("auto", "cpu", "fastest")

# Where the kernels of an op stand, by family. An op without "torch" has its torch path in plain, traceable torch.
_KERNELS: dict[str, dict[str, str]] = {
    "selective_scan": {
        "torch": "mode_ssm.ops.torch_path.selective_scan:SelectiveScan",
        "cpu": "mode_ssm.ops.cpu.selective_scan:SelectiveScan",
        "triton": "mode_ssm.ops.gpu.selective_scan:SelectiveScan",
        "mamba-ssm": "mode_ssm.ops.peers:SelectiveScan",
    },
    "ssd": {
        "cpu": "mode_ssm.ops.cpu.ssd:SSD",
        "triton": "mode_ssm.ops.gpu.ssd:SSD",
        "mamba-ssm": "mode_ssm.ops.peers:SSD",
    },
    "causal_conv": {
        "torch": "mode_ssm.ops.torch_path.causal_conv:CausalConv",
        "cpu": "mode_ssm.ops.cpu.causal_conv:CausalConv",
        "triton": "mode_ssm.ops.gpu.causal_conv:CausalConv",
        "mamba-ssm": "mode_ssm.ops.peers:CausalConv",
    },
    "gated_rms_norm": {
        "torch": "mode_ssm.ops.torch_path.gated_norm:GatedRMSNorm",
        "cpu": "mode_ssm.ops.cpu.gated_norm:GatedRMSNorm",
        "triton": "mode_ssm.ops.gpu.gated_norm:GatedRMSNorm",
    },
    "silu_gate": {
        "torch": "mode_ssm.ops.torch_path.gated_norm:SiLUGate",
        "cpu": "mode_ssm.ops.cpu.gated_norm:SiLUGate",
    },
    "transducer_loss": {
        "torch": "mode_ssm.ops.torch_path.transducer_loss:TransducerLoss",
        "cpu": "mode_ssm.ops.cpu.transducer_loss:TransducerLoss",
    },
}
OPS = tuple(_KERNELS)

log = logging.getLogger(__name__)
_requested = "auto"
_chosen: dict[tuple[str, str, torch.dtype], str] = {}


def request(spec: str) -> None:
    """Ask for backends: a name for every op that has it, or `op=name,op=name`; `auto` where nothing is said.

    `MODE_SSM_BACKEND`, where set, is heard instead. Raises `ValueError` for an unknown name and for one that cannot run
    here, with the reason.
    """
    global _requested
    wanted = os.environ.get(ENVIRONMENT_KEY) or spec
    for name in set(_parse(wanted).values()):
        if name not in ALIASES and (reason := why_not(name)):
            raise ValueError(f"backend {name} was asked for and cannot run here: {reason}")
        if name == "cpu" and not _cpu_backend():
            raise ValueError(f"backend cpu was asked for and cannot run here: {why_not('cpu-portable')}")
    _requested = spec
    _chosen.clear()


def requested() -> str:
    """What `request` was given last; `MODE_SSM_BACKEND` aside."""
    return _requested


@torch.compiler.assume_constant_result
def choose(op: str, device: str, dtype: torch.dtype) -> str:
    """The backend of `op` for tensors of this device type and dtype. Raises `ValueError` as `request` does."""
    key = (op, device, dtype)
    if key not in _chosen:
        _chosen[key] = _choose(op, device, dtype)
    return _chosen[key]


@cache
def kernel(op: str, name: str) -> Any:
    """The object that implements `op` on backend `name`; its class states the contract."""
    module, kind = _KERNELS[op][_family(name)].split(":")
    implementation = getattr(import_module(module), kind)
    return implementation(library(name.removeprefix("cpu-"))) if name in CPU_BACKENDS else implementation()


def step(op: str, state: Tensor) -> Any:
    """A scan's compiled one-frame step for this state, or None: gradients and graphs take the torch expression."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or state.dtype != torch.float32 or not state.is_cpu:
        return None
    name = choose(op, "cpu", torch.float32)
    return _step_kernel(op, name) if name in CPU_BACKENDS else None


@cache
def _step_kernel(op: str, name: str) -> Any:
    return ScanStep(library(name.removeprefix("cpu-")), f"{op}_step")


def offered(op: str) -> tuple[str, ...]:
    """Backends that implement `op`, wherever they may run."""
    return tuple(name for name in NAMES if name == "torch" or _family(name) in _KERNELS[op])


def _family(name: str) -> str:
    """The key of a backend in `_KERNELS`."""
    return "cpu" if name in CPU_BACKENDS else name


@cache
def why_not(name: str) -> str | None:
    """What backend `name` misses on this machine, in a few words; None where it runs."""
    if name == "torch":
        return None
    if name in CPU_BACKENDS:
        level = name.removeprefix("cpu-")
        if level not in usable_levels():
            return f"this CPU has no {level.upper()}"
        try:
            library(level)
        except (BuildError, OSError) as error:
            return str(error)
        return None
    if name == "triton":
        from mode_ssm.ops.gpu.probe import why_no_triton

        return why_no_triton()
    if name == "mamba-ssm":
        return why_no_peer()
    raise ValueError(f"unknown backend {name!r}; choose one of {', '.join((*ALIASES, *NAMES))}")


def describe(device: str) -> str:
    """`selective_scan: cpu-avx512; ssd: cpu-avx512; ...` for float32 tensors on `device`."""
    return "; ".join(f"{op}: {choose(op, device, torch.float32)}" for op in OPS)


def _parse(spec: str) -> dict[str, str]:
    """Spec to the name asked for by each op."""
    wanted = dict.fromkeys(OPS, "auto")
    for part in filter(None, (part.strip() for part in spec.split(","))):
        op, separator, name = part.rpartition("=")
        if name not in (*ALIASES, *NAMES):
            raise ValueError(f"unknown backend {name!r}; choose one of {', '.join((*ALIASES, *NAMES))}")
        if separator and op not in OPS:
            raise ValueError(f"unknown op {op!r} in backend {spec!r}; choose one of {', '.join(OPS)}")
        has_it = (op,) if separator else OPS
        for each in has_it:
            if name in ALIASES or name in offered(each):
                wanted[each] = name
            elif separator:
                raise ValueError(f"{each} has no backend {name}; choose one of {', '.join(offered(each))}")
    return wanted


def _choose(op: str, device: str, dtype: torch.dtype) -> str:
    name = _parse(os.environ.get(ENVIRONMENT_KEY) or _requested)[op]
    if dtype == torch.float64:
        return "torch"
    if name == "auto":
        candidates = ["triton", "torch"] if device == "cuda" else [_cpu_backend() or "torch"]
        return next(c for c in candidates if c in offered(op) and (c == "torch" or why_not(c) is None))
    if name == "fastest":
        return _fastest(op, device, dtype)
    if name == "cpu":
        name = _cpu_backend() or "cpu-portable"
    missing = why_no_peer(op) if name == "mamba-ssm" else why_not(name)
    if reason := missing or _wrong_device(name, device):
        raise ValueError(f"backend {name} was asked for {op} and cannot run here: {reason}")
    return name


def _fastest(op: str, device: str, dtype: torch.dtype) -> str:
    """The backend that took least for a small forward and backward pass, of all that run here."""
    from mode_ssm.ops.verification import speeds  # which calls the ops, and they this module

    _chosen[op, device, dtype] = "torch"  # for the call that the measurement makes before it names a backend
    measured = {speed.backend: speed.milliseconds for speed in speeds(device, dtype, [op])}
    log.info("%s on %s: %s", op, device, ", ".join(f"{name} {time:.2f} ms" for name, time in measured.items()))
    return min(measured, key=lambda name: measured[name])


def _wrong_device(name: str, device: str) -> str | None:
    interpreted = name == "triton" and bool(os.environ.get("TRITON_INTERPRET"))
    at_home = {"cpu-": "cpu", "triton": "cuda", "mamba-ssm": "cuda"}
    home = next((place for prefix, place in at_home.items() if name.startswith(prefix)), device)
    return None if device == home or interpreted else f"the tensors are on {device}, it runs on {home}"


@cache
def _cpu_backend() -> str | None:
    """The widest compiled kernels that this CPU runs; None, said once, where nothing can be compiled."""
    name = f"cpu-{usable_levels()[0]}"
    if reason := why_not(name):
        log.warning("compiled kernels are off: %s; ops take the torch path, same numbers, several times slower", reason)
        return None
    return name
