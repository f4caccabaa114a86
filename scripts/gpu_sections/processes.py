"""Processes: DistributedDataParallel over one, and a run that is killed and resumed."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gpu_sections.result import Result, Table
from gpu_sections.setting import Setting, loss_of
from mode_ssm.train.checkpoint import latest_checkpoint, load_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS, KILL_AFTER = 12, 4
TIMEOUT = 600  # seconds that a subprocess may take
PHASES = ("ctc_warmup", "joint", "mode", "flow_bridge")
RUN = (
    "experiment=quickstart", "data.simulate.scale=tiny", "data.batch_size=4", "data.sessions_per_batch=2",
    "model.d_model=32", "model.stem.projection=32", "model.encoder.n_layers=1", "model.encoder.d_state=16",
    "model.encoder.headdim=16", "model.denoiser.hidden=32", "model.heads.d_joint=32", "decode.beam_size=4",
    "decode.nbest=1", "decode.rnnt_beam_size=1", "logging.tensorboard=false",
    "checkpoint.every_steps=2", "checkpoint.keep=9",
    *(f"curriculum.phases.{name}.steps={STEPS if name == 'ctc_warmup' else 1}" for name in PHASES),
    *(f"curriculum.phases.{name}.{key}=null" for name in PHASES for key in ("epochs", "evaluate_every_epochs")),
)  # fmt: skip


def data_parallel(setting: Setting) -> Result:
    """The gradient through DDP in a group of one, NCCL on a GPU, against the gradient without it."""
    phase, batch = setting.phase("joint"), setting.batch_of(seed=0)
    objective = setting.objective("joint").eval()
    trained = [p for p in objective.parameters() if p.requires_grad]
    backend = "nccl" if setting.device == "cuda" else "gloo"
    gradients, missing = [], 0
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, store=dist.FileStore(f"{folder}/store", 1), rank=0, world_size=1)
        try:
            for module in (objective, DistributedDataParallel(objective)):
                objective.zero_grad(set_to_none=True)
                loss_of(module, batch, phase, bf16=True).backward()
                found = [p.grad.detach().flatten().double() for p in trained if p.grad is not None]
                missing = len(trained) - len(found)
                gradients.append(torch.cat(found))
        finally:
            dist.destroy_process_group()
    alone, through = gradients
    difference = float((through - alone).norm() / alone.norm())
    rows = [["backend", backend], ["parameters without a gradient", missing], ["relative difference", difference]]
    faults = [] if difference <= 1e-3 and not missing else [f"gradients differ by {difference:.1e}, {missing} missing"]
    return Result([Table("gradient of the joint phase through DDP", ("what", "value"), rows)], faults=faults)


def resume(setting: Setting) -> Result:
    """train.py killed without a warning after a checkpoint, resumed, and compared with a run that was left alone."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        whole, killed = folder / "whole", folder / "killed"
        began = time.monotonic()
        _finish(_start(folder, whole, setting.device), whole)
        seconds = time.monotonic() - began
        process = _start(folder, killed, setting.device)
        _kill_after(process, killed / "checkpoints", KILL_AFTER)
        done = _finish(_start(folder, killed, setting.device, "resume=true"), killed)
        first, second = (load_checkpoint(latest_checkpoint(run) or run) for run in (whole, killed))
        a, b = (torch.cat([t.flatten().double() for t in c.weights().values()]) for c in (first, second))
    steps = [checkpoint.state["loop"]["step"] for checkpoint in (first, second)]
    difference = float((a - b).norm() / a.norm()) if a.shape == b.shape else float("nan")
    continued = next((line for line in done.splitlines() if "continuing after step" in line), None)
    bar = 1e-3 if setting.device == "cuda" else 0.0
    faults = []
    if continued is None:
        faults.append("the second process did not continue from a checkpoint")
    if steps[0] != steps[1]:
        faults.append(f"the run ended at step {steps[0]}, the resumed one at {steps[1]}")
    if not difference <= bar:
        faults.append(f"weights of the resumed run differ by {difference:.1e}, the bar is {bar:.0e}")
    rows = [
        ["seconds of the run left alone", seconds],
        ["continued", (continued or "no").split(" from ")[0]],
        ["last step", steps[1]],
        [f"relative difference of weights, at most {bar:.0e}", difference],
    ]
    return Result([Table("a tiny simulated run, killed and resumed", ("what", "value"), rows)], faults=faults)


def _start(folder: Path, run_dir: Path, device: str, *more: str) -> subprocess.Popen[str]:
    precision = "bf16" if device == "cuda" else "fp32"
    arguments = [
        *RUN, f"data.root={folder / 'data'}", f"run_dir={run_dir}", f"parallel.device={device}",
        f"parallel.precision={precision}", f"parallel.threads={torch.get_num_threads()}", *more,
    ]  # fmt: skip
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "train.py"), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    )  # fmt: skip


def _finish(process: subprocess.Popen[str], run_dir: Path) -> str:
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        raise RuntimeError(f"train.py in {run_dir.name} took more than {TIMEOUT} s") from None
    if process.returncode:
        raise RuntimeError(f"train.py ended with {process.returncode}: {output.strip().splitlines()[-1:]}")
    return output


def _kill_after(process: subprocess.Popen[str], checkpoints: Path, step: int) -> None:
    """SIGKILL as soon as a checkpoint of that step or a later one is there."""
    deadline = time.monotonic() + TIMEOUT
    while not any(int(path.name.rpartition("_")[2]) >= step for path in checkpoints.glob("step_*")):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            output, _ = process.communicate()
            raise RuntimeError(f"train.py ended before step {step}: {output.strip().splitlines()[-1:]}")
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
