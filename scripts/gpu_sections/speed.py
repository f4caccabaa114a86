"""Speed: the scans by length and state width, and one layer of each mixer, every backend and the peers' own modules."""

from collections.abc import Callable
from importlib import import_module

import torch
from torch import nn

from gpu_sections.result import Plot, Result, Table
from gpu_sections.setting import Setting
from mode_ssm.config import Mixer
from mode_ssm.models.mamba import MIXERS
from mode_ssm.ops.peers import why_no_peer
from mode_ssm.ops.timing import milliseconds
from mode_ssm.ops.verification import on_backend, runnable
from mode_ssm.ops.verification_cases import Shape, workload

LENGTHS, STATES = (100, 250, 500, 1000, 2000), (16, 64, 128)
BUDGET_MS = 2000.0  # for one cell of the table, whatever the backend
TARGETS = {Mixer.mamba: 3.5, Mixer.mamba2: 0.8}  # ms on an H200 at B 64, T 500, d_inner 1024, N 64, bf16


def throughput(setting: Setting) -> Result:
    """Forward and backward times of the scans."""
    lengths, widths = ((5, 12), (4,)) if setting.rehearse else (LENGTHS, STATES)
    result = Result()
    for op in ("selective_scan", "ssd"):
        names = runnable(op, setting.device)
        rows, notes = [], []
        for states in widths:
            curves: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
            for frames in lengths:
                shape = Shape(setting.batch, frames, setting.channels, states, labels=0)
                row: list[float | None] = []
                for name in names:
                    try:
                        time = _time(op, name, shape, setting)
                    except (ValueError, torch.OutOfMemoryError) as error:
                        notes.append(f"{name}, T={frames}, N={states}: {str(error).splitlines()[0]}")
                        row.append(None)
                        continue
                    row.append(time)
                    curves[name].append((frames, 1e3 * setting.batch * frames / time))
                rows.append([states, frames, *row])
            result.plots.append(
                Plot(
                    f"{op}_n{states}", f"{op}, B={setting.batch}, N={states}, bf16", "frames", "frames a second", curves
                )
            )
        columns = ("d_state", "frames", *(f"{name} ms" for name in names))
        title = f"{op} forwards and backwards, B={setting.batch}, d_inner={setting.channels}, bf16"
        result.tables.append(Table(title, columns, rows, notes))
    return result


def _time(op: str, backend: str, shape: Shape, setting: Setting) -> float:
    with on_backend(op, backend):
        run = workload(op, shape, setting.device, torch.bfloat16)
        once = milliseconds({op: run}, setting.device, repeats=1)[op]
        repeats = min(setting.repeats, max(1, int(BUDGET_MS / once)))
        return milliseconds({op: run}, setting.device, repeats)[op]


def layers(setting: Setting) -> Result:
    """One mixer forwards and backwards under bf16 autocast, on the backends that `auto` takes."""
    result = Result()
    rows = []
    d_model = setting.channels // 2
    for mixer in (Mixer.mamba2, Mixer.mamba):
        modules: dict[str, nn.Module | str] = {"ours": MIXERS[mixer](d_model, setting.config.model.encoder)}
        modules["mamba-ssm"] = _peer(mixer, d_model, setting) if setting.device == "cuda" else "runs on a GPU only"
        target = None if setting.rehearse else TARGETS[mixer]
        for name, module in modules.items():
            if isinstance(module, str):
                rows.append([mixer.value, name, None, None, None, module])
                continue
            step = _layer_step(module, name == "ours", setting)
            time = milliseconds({name: step}, setting.device, setting.repeats, warm_up=3)[name]
            own = name == "ours" and target is not None
            rows.append([mixer.value, name, time, target if own else None, time <= target if own else None, ""])
    columns = ("mixer", "whose", "ms", "target ms (H200)", "met", "note")
    title = f"one layer, B={setting.batch}, T={setting.frames}, d_model={d_model}, bf16 autocast"
    result.tables.append(Table(title, columns, rows))
    return result


def _peer(mixer: Mixer, d_model: int, setting: Setting) -> nn.Module | str:
    if reason := why_no_peer("ssd" if mixer is Mixer.mamba2 else "selective_scan"):
        return reason
    encoder = setting.config.model.encoder
    same = {"d_model": d_model, "d_state": encoder.d_state, "d_conv": encoder.d_conv, "expand": encoder.expand}
    package = import_module("mamba_ssm")
    module: nn.Module = (
        package.Mamba2(**same, headdim=encoder.headdim) if mixer is Mixer.mamba2 else package.Mamba(**same)
    )
    return module


def _layer_step(module: nn.Module, takes_lengths: bool, setting: Setting) -> Callable[[], None]:
    module.to(setting.device)
    d_model = setting.channels // 2
    x = torch.randn(setting.batch, setting.frames, d_model, device=setting.device, requires_grad=True)
    lengths = torch.full((setting.batch,), setting.frames, device=setting.device)
    inputs = (x, lengths) if takes_lengths else (x,)

    def step() -> None:
        with torch.autocast(setting.device, dtype=torch.bfloat16):
            y = module(*inputs)
        torch.autograd.grad(y.float().mean(), [x, *module.parameters()])

    return step
