"""The entry scripts in fresh processes, on a tiny simulated dataset and a tiny model."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
TINY_MODEL = [
    "model.d_model=32",
    "model.stem.projection=32",
    "model.session_adapter=projection",
    "model.encoder.n_layers=1",
    "model.encoder.d_state=8",
    "model.encoder.headdim=16",
    "model.encoder.expand=1",
    "model.denoiser.hidden=32",
    "model.heads.d_joint=32",
    "data.batch_size=4",
    "data.sessions_per_batch=2",
    "decode.beam_size=10",
    "decode.rnnt_beam_size=2",
    "parallel.threads=1",
    "parallel.device=cpu",
    "logging.progress=false",
]
SHORT = [f"curriculum.phases.{name}.epochs={epochs}" for name, epochs in
         (("ctc_warmup", 2), ("joint", 1), ("mode", 1), ("flow_bridge", 1))]  # fmt: skip


def environment(cache: Path) -> dict[str, str]:
    """One thread, a cache of its own; nothing of a surrounding torchrun."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**inherited, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cache)}


def tiny_run(root: Path, run_dir: Path, *more: str) -> list[str]:
    """Arguments of train.py for the tiny run."""
    return [
        f"data.root={root}",
        "data.simulate.enabled=true",
        "data.simulate.scale=tiny",
        f"run_dir={run_dir}",
        *TINY_MODEL,
        *SHORT,
        *more,
    ]


def command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(REPOSITORY / script), *arguments]


def call(script: str, *arguments: str, cache: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run an entry script to its end and check its exit code."""
    done = subprocess.run(
        command(script, *arguments), env=environment(cache), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done
