"""A training step of t15_mode_ssm: memory with and without gradient checkpointing, time, share of the GPU's peak."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from gpu_sections.result import Result, Table
from gpu_sections.setting import Setting, loss_of
from mode_ssm.config import Mixer
from mode_ssm.ops.timing import milliseconds

TARGET_MS = 15.0  # H200, B 64, T 500, bf16, Mamba-2
# Dense bf16 FLOP/s by the beginning of the device's name, from the vendors' data sheets.
PEAK = {"NVIDIA H200": 989e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA A100": 312e12, "NVIDIA L40S": 362e12}


def memory(setting: Setting) -> Result:
    """What a forward and backward pass needs beside parameters and gradients."""
    rows = []
    for mixer in (Mixer.mamba2, Mixer.mamba):
        for checkpointing in (False, True):
            objective = setting.objective("ctc_warmup", mixer=mixer, gradient_checkpointing=checkpointing)
            used, losses = _memory_of_a_step(objective, setting)
            rows.append([mixer.value, checkpointing, used / 2**20, losses])
    what = "peak" if setting.device == "cuda" else "saved for the backward pass"
    faults = [
        f"{plain[0]}: gradient checkpointing takes {saving[2]:.1f} MiB, {plain[2]:.1f} MiB without it"
        for plain, saving in zip(rows[::2], rows[1::2], strict=True)
        if not saving[2] < plain[2]
    ]
    faults += [
        f"{plain[0]}: gradient checkpointing changes the loss from {plain[3]} to {saving[3]}"
        for plain, saving in zip(rows[::2], rows[1::2], strict=True)
        if abs(saving[3] - plain[3]) > 1e-3 * abs(plain[3])
    ]
    title = f"CTC phase, B={setting.batch}, T={setting.frames}, bf16; MiB {what}"
    return Result([Table(title, ("mixer", "gradient checkpointing", "MiB", "loss"), rows)], faults=faults)


def _memory_of_a_step(objective: torch.nn.Module, setting: Setting) -> tuple[int, float]:
    """Bytes, and the loss."""
    phase, batch = setting.phase("ctc_warmup"), setting.batch_of(seed=0)
    objective.eval()  # no dropout: both runs are to have one loss
    if setting.device == "cuda":
        loss_of(objective, batch, phase, bf16=True).backward()  # compiles, and allocates the gradients
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = loss_of(objective, batch, phase, bf16=True)
        loss.backward()
        return torch.cuda.max_memory_allocated() - before, float(loss.detach())
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(objective, batch, phase, bf16=True)
    loss.backward()
    return sum(saved.values()), float(loss.detach())


def step(setting: Setting) -> Result:
    """Forwards, backwards, clipping and AdamW, in the CTC and the joint phase, with either mixer."""
    peak = None
    if setting.device == "cuda":
        name = torch.cuda.get_device_name()
        peak = next((flops for start, flops in PEAK.items() if name.startswith(start)), None)
    rows = []
    for mixer in (Mixer.mamba2, Mixer.mamba):
        for phase in ("ctc_warmup", "joint"):
            time, flops = _step(setting, mixer, phase)
            share = None if peak is None else flops / (time / 1e3) / peak
            target = None if setting.rehearse or mixer is not Mixer.mamba2 else TARGET_MS
            met = None if target is None else time <= target
            trials = 1e3 * setting.batch / time
            rows.append([mixer.value, phase, time, target, met, trials, flops / 1e9, share])
    columns = ("mixer", "phase", "ms", "target ms (H200)", "met", "trials a second", "GFLOP", "share of peak")
    notes = ["GFLOP counts matrix products and convolutions, forwards and backwards, not the scans' own kernels"]
    if peak is None:
        notes.append("no peak is known for this device, so no share of it")
    title = f"training step, B={setting.batch}, T={setting.frames}, U={setting.labels}, bf16"
    return Result([Table(title, columns, rows, notes)])


def _step(setting: Setting, mixer: Mixer, phase_name: str) -> tuple[float, float]:
    """Milliseconds, and floating-point operations."""
    phase, batch = setting.phase(phase_name), setting.batch_of(seed=0)
    objective = setting.objective(phase_name, mixer=mixer).train()
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=setting.device == "cuda")

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(objective, batch, phase, bf16=True).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    with FlopCounterMode(display=False) as counter:
        run()
    return milliseconds({"step": run}, setting.device, setting.repeats, warm_up=3)["step"], counter.get_total_flops()
