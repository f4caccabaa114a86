"""Checkpoints: one folder a step, whole or not there at all, loadable without running code from it.

    checkpoints/step_00000123/
        model.safetensors   weights
        optimizer.pt        AdamW's state                              (torch, weights_only)
        rng_rank0.pt ...    generators of every rank                   (torch, weights_only)
        config.yaml         the whole TrainConfig
        state.json          loop state, versions, vocabulary, task.describe(), sizes of the other files

A folder is written under a hidden name, flushed to disk and renamed. `best` beside `checkpoints/` is a relative link.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import load_file, save_file
from torch import Tensor

from mode_ssm.config import TrainConfig

FORMAT = 1
FOLDER = "checkpoints"
BEST = "best"
WEIGHTS, OPTIMIZER, CONFIG, STATE = "model.safetensors", "optimizer.pt", "config.yaml", "state.json"
_STEP, _PARTIAL = "step_", ".partial_"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint on disk: small things read, large ones on request.

    `state` is state.json; `description` is what `Task.describe()` returned: enough to rebuild the model without data.
    """

    path: Path
    config: TrainConfig
    state: dict[str, Any]
    description: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["loop"]["step"])

    def weights(self) -> dict[str, Tensor]:
        """The model's state dict, on the CPU."""
        try:
            return load_file(self.path / WEIGHTS)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{self.path / WEIGHTS} is damaged ({error})") from None

    def optimizer_state(self) -> dict[str, Any]:
        return torch.load(self.path / OPTIMIZER, map_location="cpu", weights_only=True)

    def rng_state(self, rank: int) -> dict[str, Any]:
        return torch.load(self.path / _rng_name(rank), map_location="cpu", weights_only=True)


def _rng_name(rank: int) -> str:
    return f"rng_rank{rank}.pt"


def step_folder(run_dir: Path, step: int) -> Path:
    return run_dir / FOLDER / f"{_STEP}{step:08d}"


def save_checkpoint(
    run_dir: Path,
    step: int,
    *,
    weights: Mapping[str, Tensor],
    optimizer_state: dict[str, Any],
    rng_states: Sequence[dict[str, Any]],
    config: TrainConfig,
    state: dict[str, Any],
) -> Path:
    """Write the folder of `step` so that a crash at any moment leaves it whole or absent. Rank 0 only."""
    target = step_folder(run_dir, step)
    partial = target.with_name(f"{_PARTIAL}{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, partial / WEIGHTS)
    torch.save(optimizer_state, partial / OPTIMIZER)
    for rank, rng in enumerate(rng_states):
        torch.save(rng, partial / _rng_name(rank))
    (partial / CONFIG).write_text(config_yaml(config))
    sizes = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
    (partial / STATE).write_text(json.dumps({"format": FORMAT, **state, "files": sizes}, indent=1) + "\n")
    for file in partial.iterdir():
        _flush(file)
    _flush(partial)
    if target.exists():  # only ever one that `complete_checkpoints` refused
        shutil.rmtree(target)
    partial.rename(target)
    _flush(target.parent)
    return target


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_state(folder: Path) -> dict[str, Any]:
    """state.json of a whole checkpoint; `ValueError` in one line for a damaged one."""
    try:
        state = json.loads((folder / STATE).read_text())
        sizes = state["files"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} is no whole checkpoint: {STATE} cannot be read ({type(error).__name__})") from None
    if state["format"] != FORMAT:
        raise ValueError(f"{folder} has checkpoint format {state['format']}; this version reads {FORMAT}")
    for name, size in sizes.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            found = f"{file.stat().st_size} bytes" if file.is_file() else "no file"
            raise ValueError(f"{folder} is damaged: {name} should have {size} bytes, found {found}")
    return state


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """Folders of whole checkpoints, oldest first."""
    whole = []
    for folder in sorted((run_dir / FOLDER).glob(f"{_STEP}*")):
        try:
            _read_state(folder)
        except ValueError:
            continue
        whole.append(folder)
    return whole


def latest_checkpoint(run_dir: Path) -> Path | None:
    return next(reversed(complete_checkpoints(run_dir)), None)


def remove_debris(run_dir: Path) -> None:
    """Delete what a crash left half-written."""
    for leftover in (run_dir / FOLDER).glob(f"{_PARTIAL}*"):
        shutil.rmtree(leftover)
    (run_dir / f"{_PARTIAL}{BEST}").unlink(missing_ok=True)


def point_best(run_dir: Path, step: int) -> None:
    """Let `best` name the checkpoint of `step`; at no moment is the link missing once it was there."""
    link = run_dir / f"{_PARTIAL}{BEST}"
    link.unlink(missing_ok=True)
    link.symlink_to(step_folder(run_dir, step).relative_to(run_dir))
    os.replace(link, run_dir / BEST)
    _flush(run_dir)


def prune(run_dir: Path, keep: int, best_step: int | None) -> None:
    """Delete all but the `keep` newest checkpoints and the best one."""
    whole = complete_checkpoints(run_dir)
    for folder in whole[: max(0, len(whole) - keep)]:
        if best_step is None or folder != step_folder(run_dir, best_step):
            # Renamed first: a crash inside rmtree must not leave a folder that looks like a damaged checkpoint.
            doomed = folder.with_name(f"{_PARTIAL}{folder.name}")
            folder.rename(doomed)
            shutil.rmtree(doomed)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Open a step folder, a `best` link, or a run directory (its best checkpoint, the latest where none is best yet).

    Raises a one-line `ValueError` for a missing or damaged one, naming those that are there.
    """
    folder, run_dir = _find(Path(path))
    try:
        state = _read_state(folder)
    except ValueError as error:
        raise ValueError(f"{error}; whole ones: {_listing(run_dir)}") from None
    try:
        config = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(TrainConfig), OmegaConf.load(folder / CONFIG))
        )
    except OmegaConfBaseException as error:
        raise ValueError(f"{folder / CONFIG} does not fit this version: {str(error).splitlines()[0]}") from None
    assert isinstance(config, TrainConfig)
    return Checkpoint(path=folder, config=config, state=state, description=state["description"])


def _find(path: Path) -> tuple[Path, Path]:
    """(checkpoint folder, run directory around it) that a user's path means; neither is read yet."""
    run_dir = next((p for p in (path, path.parent, path.parent.parent) if (p / FOLDER).is_dir()), None)
    if path.is_dir() and run_dir != path:
        return path.resolve(), run_dir or path
    if run_dir is None:
        nearest = next(parent for parent in path.absolute().parents if parent.is_dir())
        runs = sorted(str(folder.parent) for folder in nearest.glob(f"*/{FOLDER}"))
        raise ValueError(f"no checkpoint at {path}; runs with checkpoints: {', '.join(runs) or 'none'}")
    best = path / BEST
    folder = best.resolve() if best.exists() else latest_checkpoint(path)
    if folder is None:
        raise ValueError(f"no checkpoint at {path}; there are: {_listing(run_dir)}")
    return folder, run_dir


def _listing(run_dir: Path) -> str:
    there = [str(folder) for folder in complete_checkpoints(run_dir)]
    if (run_dir / BEST).exists():
        there.append(str(run_dir / BEST))
    return ", ".join(there) or "none"


def config_yaml(config: TrainConfig) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def git_commit() -> str | None:
    """Commit of the code that runs, with `-dirty` after it where files differ; None outside a git checkout."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
