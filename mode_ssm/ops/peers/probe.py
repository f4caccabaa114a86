"""Whether the packages run here: found out by running them."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from mode_ssm.ops.peers.causal_conv import CausalConv
from mode_ssm.ops.peers.packages import NEEDS, first_line, load
from mode_ssm.ops.peers.selective_scan import SelectiveScan
from mode_ssm.ops.peers.ssd import SSD


def why_no_peer(op: str | None = None) -> str | None:
    """What `op` misses here, in a few words; None where it runs. Without an op: None where any of them runs.

    Found out by running it on the GPU, because packages that are installed, of fitting versions and importable still
    fail there: built for another GPU, another torch or another Triton.
    """
    if op is not None:
        return _why_not(op)
    reasons = {name: _why_not(name) for name in NEEDS}
    return None if None in reasons.values() else "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


@cache
def _why_not(op: str) -> str | None:
    try:
        load(op)
        if not torch.cuda.is_available():
            return "torch sees no GPU"
        probe(op, "cuda")
    except Exception as error:  # whatever a broken extension raises
        return first_line(error)
    return None


def probe(op: str, device: str) -> None:
    """Run `op` forwards and backwards on a few frames. Raises whatever it raises; `ValueError` for wrong numbers."""
    y, expected = _PROBES[op](device)
    error = float((y.cpu().double() - expected).abs().max() / expected.abs().max())
    if not error < 0.05:
        raise ValueError(f"{op} of {NEEDS[op][1]} is off by {error:.1g} of the largest output")


def _selective_scan(device: str) -> tuple[Tensor, Tensor]:
    from mode_ssm.ops.selective_scan import selective_scan_reference

    u, dt, B, C = _bf16(device, (2, 40, 16), (2, 40, 16), (2, 40, 16), (2, 40, 16))
    A, D = -torch.rand(16, 16, device=device), torch.ones(16, device=device)
    lengths = torch.tensor([40, 13], device=device)
    kernel = SelectiveScan()
    y, _, kept = kernel.forward(u, dt, A, B, C, D, lengths, None, True, False, True)
    kernel.backward(torch.ones_like(y), None, u, dt, A, B, C, D, lengths, kept, True, False)
    inputs = (tensor.cpu().double() for tensor in (u, dt, A, B, C, D))
    return y, selective_scan_reference(*inputs, dt_softplus=True, lengths=lengths.cpu())[0]


def _ssd(device: str) -> tuple[Tensor, Tensor]:
    from mode_ssm.ops.ssd import ssd_reference

    x, dt, B, C = _bf16(device, (2, 40, 2, 16), (2, 40, 2), (2, 40, 16), (2, 40, 16))
    A, D, dt = -torch.rand(2, device=device), torch.ones(2, device=device), dt.sigmoid()
    lengths = torch.tensor([40, 13], device=device)
    kernel = SSD()
    y, _, kept = kernel.forward(x, dt, A, B, C, D, lengths, None, False, True)
    kernel.backward(torch.ones_like(y), None, x, dt, A, B, C, D, lengths, kept, False)
    inputs = (tensor.cpu().double() for tensor in (x, dt, A, B, C, D))
    return y, ssd_reference(*inputs, lengths=lengths.cpu())[0]


def _causal_conv(device: str) -> tuple[Tensor, Tensor]:
    from mode_ssm.ops.causal_conv import causal_conv_reference

    x, weight, bias = _bf16(device, (2, 40, 16), (16, 4), (16,))
    lengths = torch.tensor([40, 13], device=device)
    kernel = CausalConv()
    y, _ = kernel.forward(x, weight.float(), bias.float(), lengths, None, False, False)
    kernel.backward(torch.ones_like(y), None, x, weight.float(), bias.float(), lengths, None, False, False)
    inputs = (tensor.cpu().double() for tensor in (x, weight, bias))
    return y, causal_conv_reference(*inputs, lengths=lengths.cpu())[0]


def _bf16(device: str, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(device, torch.bfloat16) for shape in shapes]


_PROBES = {"selective_scan": _selective_scan, "ssd": _ssd, "causal_conv": _causal_conv}
