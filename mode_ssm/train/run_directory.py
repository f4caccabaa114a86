"""The run directory: is it free, does it hold a run to continue, is it the same run?"""

import shutil
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mode_ssm.config import TrainConfig
from mode_ssm.train.checkpoint import (
    BEST,
    CONFIG,
    FOLDER,
    Checkpoint,
    config_yaml,
    latest_checkpoint,
    load_checkpoint,
    point_best,
    remove_debris,
    step_folder,
)

METRICS = "metrics.jsonl"

# What a run writes at the top of its directory; `overwrite=true` deletes these and nothing else.
OWN_FILES = (CONFIG, METRICS, BEST, "report.json", "report.html")
OWN_PATTERNS = ("events.out.tfevents.*", f"{FOLDER}/step_*", f"{FOLDER}/.partial_*", f".partial_{BEST}")

# Keys that may differ when a run continues, because they change none of its numbers.
FREE_KEYS = (
    "run_name",
    "run_dir",
    "resume",
    "overwrite",
    "report_test",
    "logging",
    "lm",
    "decode",
    "adapt",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "data.num_workers",
    "data.cache_features",
)


def prepare_run_dir(run_dir: Path, config: TrainConfig, world_size: int) -> Path | None:
    """Make `run_dir` ready and return the checkpoint folder to continue from; None to start at the beginning.

    Raises a one-line `ValueError` when the directory holds a run and neither `resume` nor `overwrite` is set, when both
    are, or when the run to continue was started with another config or number of processes. Rank 0 only.
    """
    if config.resume and config.overwrite:
        raise ValueError("resume=true and overwrite=true contradict each other; set one of them")
    if holds_run(run_dir):
        if config.overwrite:
            delete_run(run_dir)
        elif not config.resume:
            raise ValueError(
                f"{run_dir} already holds {_condition(run_dir)}; continue it with resume=true, "
                "start afresh with overwrite=true, or choose another run_name"
            )
    run_dir.mkdir(parents=True, exist_ok=True)
    remove_debris(run_dir)
    latest = latest_checkpoint(run_dir) if config.resume else None
    if latest is None:
        (run_dir / CONFIG).write_text(config_yaml(config))
        return None
    checkpoint = load_checkpoint(latest)
    refuse_other_run(checkpoint, config, world_size)
    best = checkpoint.state["loop"]["best_step"]
    # A crash may have come between the newest checkpoint and the link to it.
    if best is not None and step_folder(run_dir, best).is_dir():
        point_best(run_dir, best)
    return latest


def holds_run(run_dir: Path) -> bool:
    """Whether there is anything to lose; a start that failed before its first step leaves nothing."""
    metrics = run_dir / METRICS
    return any((run_dir / FOLDER).glob("step_*")) or (metrics.exists() and metrics.stat().st_size > 0)


def _condition(run_dir: Path) -> str:
    latest = latest_checkpoint(run_dir)
    if latest is None:
        return "a run without a checkpoint yet"
    checkpoint = load_checkpoint(latest)
    return "a finished run" if checkpoint.state["loop"]["finished"] else f"a run that stopped at step {checkpoint.step}"


def delete_run(run_dir: Path) -> None:
    for name in OWN_FILES:
        (run_dir / name).unlink(missing_ok=True)
    for pattern in OWN_PATTERNS:
        for path in run_dir.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def refuse_other_run(checkpoint: Checkpoint, config: TrainConfig, world_size: int) -> None:
    """`ValueError` where continuing with `config` would not continue the same run."""
    differing = differing_keys(checkpoint.config, config)
    if differing:
        changes = ", ".join(f"{key}={new} (was {old})" for key, old, new in differing[:3])
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ValueError(
            f"resume=true cannot change the run in {checkpoint.path}: {changes}{more}; "
            "restore these, or choose another run_name"
        )
    if checkpoint.state["world_size"] != world_size:
        raise ValueError(
            f"resume=true with {world_size} process(es), but the run in {checkpoint.path} has "
            f"{checkpoint.state['world_size']}; use torchrun --nproc_per_node={checkpoint.state['world_size']}"
        )


def differing_keys(old: TrainConfig, new: TrainConfig) -> list[tuple[str, Any, Any]]:
    """(key, old, new) for every key that changes a run's numbers, in the order of the schema."""
    was, now = _flatten(old), _flatten(new)
    absent = "absent"
    differing = [
        (key, was.get(key, absent), now.get(key, absent))
        for key in dict.fromkeys([*was, *now])
        if was.get(key, absent) != now.get(key, absent) and not _is_free(key)
    ]
    if not differing and list(old.curriculum.phases) != list(new.curriculum.phases):
        return [("curriculum.phases", list(old.curriculum.phases), list(new.curriculum.phases))]
    return differing


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in FREE_KEYS)


def _flatten(config: TrainConfig) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, child in value.items():
                visit(f"{prefix}.{key}" if prefix else key, child)
        else:
            flat[prefix] = value

    visit("", OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True))
    return flat
