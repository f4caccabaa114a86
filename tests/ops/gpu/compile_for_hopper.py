"""Compile every kernel for an H100 or H200, on a machine without: the launches of the classes, short of launching.


Run as a script, because it replaces Triton's driver for good. Prints a line for each compiled kernel.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from mode_ssm.ops.gpu import causal_conv, gated_norm, selective_scan, ssd
from mode_ssm.ops.gpu.probe_kernel import sum_to

HOPPER = GPUTarget("cuda", 90, 32)


class NoDevice:
    """What the compiler asks of a driver."""

    def get_current_target(self) -> GPUTarget:
        return HOPPER

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(launch: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        compiled = launch(self, *args, grid=grid, warmup=True, **kwargs)
        print(self.fn.__module__, self.fn.__name__, len(compiled.asm["cubin"]))
        return compiled

    return run


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(*shape, dtype=dtype)


def run_all(dtype: torch.dtype, time: int, everything: bool, scan: selective_scan.SelectiveScan) -> None:
    """Every class forwards and backwards: with all that is optional, or with none of it."""
    batch, channels, heads, width, states = 2, 128, 2, 64, 64
    lengths = torch.zeros(batch, dtype=torch.int64) if everything else None
    u, B = zeros(batch, time, channels, dtype=dtype), zeros(batch, time, states, dtype=dtype)
    A, h = zeros(channels, states), zeros(batch, channels, states)
    D, initial = (zeros(channels), h) if everything else (None, None)
    y, final, starts = scan.forward(u, u, A, B, B, D, lengths, initial, everything, everything, True)
    scan.backward(y, final if everything else None, u, u, A, B, B, D, lengths, starts, everything, everything)

    x, dt, a = u.unflatten(2, (heads, width)), zeros(batch, time, heads), zeros(heads)
    D, initial = (a, h.unflatten(1, (heads, width))) if everything else (None, None)
    mamba2 = ssd.SSD()
    y, final, kept = mamba2.forward(x, dt, a, B, B, D, lengths, initial, everything, True)
    mamba2.backward(y, final if everything else None, x, dt, a, B, B, D, lengths, kept, everything)

    weight = zeros(channels, 4 if everything else 1)
    bias, initial = (zeros(channels), zeros(batch, channels, 3)) if everything else (None, None)
    conv = causal_conv.CausalConv()
    y, final = conv.forward(u, weight, bias, lengths, initial, everything, everything)
    conv.backward(y, final if everything else None, u, weight, bias, lengths, initial, everything, everything)

    norm = gated_norm.GatedRMSNorm()
    y, rstd = norm.forward(u, u, zeros(channels), 1e-5)
    norm.backward(y, u, u, zeros(channels), rstd, 1e-5)


if __name__ == "__main__":
    driver.set_active(NoDevice())
    JITFunction.run = compile_only(JITFunction.run)
    sum_to(1, "cpu")
    if "--default-tiles" in sys.argv:
        run_all(torch.bfloat16, 40, True, selective_scan.SelectiveScan())
        run_all(torch.float32, 40, True, selective_scan.SelectiveScan())
    else:  # which take the assembler seconds
        run_all(torch.bfloat16, 40, True, selective_scan.SelectiveScan(selective_scan.Tiling(frames=2, groups=2)))
        run_all(torch.float16, 1, False, selective_scan.SelectiveScan(selective_scan.Tiling(frames=2, groups=1)))
