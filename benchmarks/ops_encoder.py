"""The encoder of t15_mode_ssm against a GRU and a Transformer of as many parameters, and where its time goes.

Forwards and backwards of `output.sum()`, no dropout. Shapes: B trials, T frames, D d_model, E = expand * D.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from ops_row import Part, Row
from torch import Tensor, nn

from mode_ssm.compose import load_train_config
from mode_ssm.config import EncoderConfig, Mixer
from mode_ssm.models.ssm_encoder import SSMEncoder
from mode_ssm.ops import backends
from mode_ssm.ops.matmul_precision import measure_both, passes
from mode_ssm.ops.timing import milliseconds
from mode_ssm.ops.verification_cases import Shape, workload
from mode_ssm.train.allocator import keep_freed_memory

THREADS = 2
TOLERANCE = 0.02  # of the Transformer's number of parameters
Step = Callable[[], object]


def causal_transformer(width: int, n_layers: int, feedforward: int, head: int) -> nn.TransformerEncoder:
    """Pre-norm, batch first; scaled dot-product attention as torch chooses it."""
    heads = width // head
    layer = nn.TransformerEncoderLayer(width, heads, feedforward, dropout=0.0, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)


def parameters_of(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def matched_transformer(width: int, parameters: int, head: int) -> nn.TransformerEncoder:
    """As many layers as come nearest to a number of parameters with a feed-forward layer of four times the width, which
    is then made a little wider or narrower: few wide layers are the fastest Transformer of that size.

    Raises:
        ValueError: it is not within 2 %.
    """
    with torch.device("meta"):
        n_layers = max(1, round(parameters / parameters_of(causal_transformer(width, 1, 4 * width, head))))
        thin, thick = (parameters_of(causal_transformer(width, n_layers, f, head)) for f in (width, 2 * width))
    exact = width * (1 + (parameters - thin) / (thick - thin))
    transformer = causal_transformer(width, n_layers, 4 * round(exact / 4), head)
    if abs(parameters_of(transformer) / parameters - 1) > TOLERANCE:
        raise ValueError(f"no Transformer of width {width} has {parameters:,} parameters within {TOLERANCE:.0%}")
    return transformer


def encoder(quick: bool) -> Part:
    torch.set_num_threads(1 if quick else THREADS)
    keep_freed_memory()  # as every process of ours does; the peers gain as much
    torch.manual_seed(0)
    config = load_train_config(["experiment=t15_mode_ssm"]).model
    d_model, settings = config.d_model, replace(config.encoder, dropout=0.0, drop_path=0.0)
    batch, frames, gru_width, gru_layers, head, repeats = 8, 500, 768, 5, 64, 5
    if quick:
        d_model, batch, frames, gru_width, gru_layers, head, repeats = 64, 2, 20, 32, 1, 4, 1
        settings = replace(settings, n_layers=2, d_state=8, headdim=16)
    x = torch.randn(batch, frames, d_model)
    lengths = torch.full((batch,), frames)
    ours = {mixer: SSMEncoder(d_model, replace(settings, mixer=mixer)) for mixer in (Mixer.mamba2, Mixer.mamba)}
    gru = nn.GRU(d_model, gru_width, gru_layers, batch_first=True)
    transformer = matched_transformer(d_model, parameters_of(ours[Mixer.mamba2]), head)
    mask = nn.Transformer.generate_square_subsequent_mask(frames)
    steps: dict[str, Step] = {
        "mamba2": _step(ours[Mixer.mamba2], x, lambda module: module(x, lengths)[0]),
        "mamba": _step(ours[Mixer.mamba], x, lambda module: module(x, lengths)[0]),
        "gru": _step(gru, x, lambda module: module(x)[0]),
        "transformer": _step(transformer, x, lambda module: module(x, mask=mask, is_causal=True)),
    }
    part = Part(f"encoder, B={batch} T={frames} d_model={d_model}, both ways, {torch.get_num_threads()} threads")
    _sizes(part, {**{mixer.value: module for mixer, module in ours.items()}, "gru": gru}, transformer)
    measured = measure_both()
    before = torch.get_float32_matmul_precision()
    for precision in ("highest", "medium"):
        suffix = "" if precision == "highest" else "_medium"
        if precision == "medium" and not passes(*measured):
            note = f"medium is off by {measured[1].error:.0e}, or not faster: it does not pass the gate"
            part.rows.extend(Row(f"encoder_vs_{name}{suffix}", None, "x", note) for name in ("gru", "transformer"))
            continue
        torch.set_float32_matmul_precision(precision)
        times = milliseconds(steps, repeats=repeats)
        listed = ", ".join(f"{name} {time:.1f} ms" for name, time in times.items())
        part.details.append(f"matmul precision {precision}: {listed}")
        for ours_name in ("mamba2", "mamba"):
            label = "encoder" if ours_name == "mamba2" else "encoder_mamba1"
            for peer in ("gru", "transformer"):
                note = f"{ours_name}, matmul precision {precision}"
                part.rows.append(Row(f"{label}_vs_{peer}{suffix}", times[peer] / times[ours_name], "x", note))
        part.details.extend(breakdown(settings, d_model, batch, frames, times["mamba2"], repeats, quick))
    torch.set_float32_matmul_precision(before)
    return part


def _step(module: nn.Module, x: Tensor, forward: Callable[..., Tensor]) -> Step:
    def run() -> None:
        module.zero_grad(set_to_none=True)
        forward(module).sum().backward()

    return run


def _sizes(part: Part, modules: dict[str, nn.Module], transformer: nn.TransformerEncoder) -> None:
    counts = {name: parameters_of(module) for name, module in {**modules, "transformer": transformer}.items()}
    feedforward = transformer.layers[0].linear1
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    shape = f"{transformer.num_layers} layers of {feedforward.in_features}, feed-forward {feedforward.out_features}"
    part.details.append(f"parameters: {listed} ({shape})")
    part.details.append(f"ours runs on {backends.describe('cpu')}")


def breakdown(
    settings: EncoderConfig, d_model: int, batch: int, frames: int, total: float, repeats: int, quick: bool
) -> list[str]:
    """Where `total` milliseconds of a Mamba-2 encoder go, each part measured alone on tensors of the same shape."""
    rows, inner = batch * frames, settings.expand * d_model
    heads = inner // settings.headdim
    conv_channels = inner + 2 * settings.d_state
    widths = ((d_model, inner + conv_channels + heads), (inner, d_model))  # in_proj, out_proj
    conv = Shape(batch, frames, conv_channels, settings.d_state, 0)
    gate = Shape(batch, frames, inner, settings.d_state, 0)
    norm = nn.LayerNorm(d_model)
    x = torch.randn(batch, frames, d_model, requires_grad=True)
    parts: dict[str, Step] = {
        "GEMM": _products(rows, widths),
        "scan": workload("ssd", gate, "cpu", torch.float32),
        "conv": workload("causal_conv", conv, "cpu", torch.float32),
        "gated norm": workload("gated_rms_norm", gate, "cpu", torch.float32),
        "layer norm": _step(norm, x, lambda module: module(x)),
    }
    times = milliseconds(parts, repeats=max(3, repeats))
    by_layer = {name: settings.n_layers * time for name, time in times.items()}
    by_layer["rest"] = total - sum(by_layer.values())
    shares = ", ".join(f"{name} {time:.1f} ms ({time / total:.0%})" for name, time in by_layer.items())
    operations = sum(3 * 2 * rows * a * b for a, b in widths)  # the product, and the two of its gradients
    rate = operations / times["GEMM"] / 1e6
    gemm, exp = _ceilings(quick)
    return [
        f"a Mamba-2 encoder step at {torch.get_float32_matmul_precision()}: {shares}",
        f"GEMM {rate:.0f} GFLOP/s of {gemm:.0f} in a large product; exp {exp:.2f} G/s",
    ]


def _products(rows: int, widths: tuple[tuple[int, int], ...]) -> Step:
    """The matrix products of the projections, forwards and backwards."""
    buffers = [(torch.randn(rows, a), torch.randn(b, a), torch.randn(rows, b)) for a, b in widths]

    def run() -> None:
        for inputs, weight, grad in buffers:
            F.linear(inputs, weight)
            grad @ weight
            grad.mT @ inputs

    return run


def _ceilings(quick: bool) -> tuple[float, float]:
    """GFLOP/s of a large float32 product, and 1e9 exponentials a second over numbers that fit the cache."""
    size = 256 if quick else 2048
    a, b = torch.randn(2, size, size).unbind()
    values, out = torch.randn(2, 2**15).unbind()
    repeated = 10 if quick else 200

    def exponentials() -> None:
        for _ in range(repeated):
            torch.exp(values, out=out)

    times = milliseconds({"gemm": lambda: a @ b, "exp": exponentials}, repeats=3)
    return 2 * size**3 / times["gemm"] / 1e6, repeated * values.numel() / times["exp"] / 1e6
