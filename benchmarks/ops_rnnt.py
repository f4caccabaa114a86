"""The transducer loss against torchaudio's, one thread."""

from collections.abc import Callable
from importlib import import_module

import torch
from ops_row import Part, Row
from torch import Tensor

from mode_ssm.ops import backends
from mode_ssm.ops.timing import milliseconds
from mode_ssm.ops.transducer_loss import transducer_loss


def rnnt(quick: bool) -> Part:
    torch.set_num_threads(1)
    batch, frames, labels, classes = (2, 10, 4, 9) if quick else (16, 100, 60, 41)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, frames, labels + 1, classes, generator=generator).requires_grad_()
    targets = torch.randint(1, classes, (batch, labels), generator=generator)
    read, said = torch.full((batch,), frames), torch.full((batch,), labels)
    title = f"transducer loss, B={batch} T={frames} U={labels} V={classes}, both ways, 1 thread"
    title += f", {backends.choose('transducer_loss', 'cpu', torch.float32)}"
    peer = getattr(import_module("torchaudio.functional"), "rnnt_loss", None)
    if peer is None:
        return Part(title, [Row("rnnt_vs_torchaudio", None, "x", "this torchaudio has no rnnt_loss")])

    def both_ways(loss: Callable[[], Tensor]) -> Callable[[], tuple[float, Tensor]]:
        def run() -> tuple[float, Tensor]:
            value = loss()
            return float(value.detach()), torch.autograd.grad(value, logits)[0]

        return run

    int32 = [tensor.int() for tensor in (targets, read, said)]
    runs = {
        "ours": both_ways(lambda: transducer_loss(logits, targets, read, said).sum()),
        "torchaudio": both_ways(lambda: peer(logits, *int32, blank=0, reduction="sum")),
    }
    (a, grad_a), (b, grad_b) = (run() for run in runs.values())
    difference = float((grad_a - grad_b).abs().max() / grad_a.abs().max())
    times = milliseconds(runs, repeats=3 if quick else 9)
    details = [
        f"ours {times['ours']:.1f} ms, torchaudio {times['torchaudio']:.1f} ms; losses {a:.3f} and {b:.3f}, "
        f"gradients differ by {difference:.0e}"
    ]
    return Part(title, [Row("rnnt_vs_torchaudio", times["torchaudio"] / times["ours"], "x")], details)
