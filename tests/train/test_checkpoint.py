"""Checkpoint folders: whole or absent, readable without running code, found by every name a user may give."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_task import SINGLE, ToyTask, make_config

from mode_ssm.config import Precision, Smoothing
from mode_ssm.train import checkpoint as checkpoint_module
from mode_ssm.train.checkpoint import (
    complete_checkpoints,
    latest_checkpoint,
    load_checkpoint,
    point_best,
    prune,
    remove_debris,
    save_checkpoint,
    step_folder,
)
from mode_ssm.train.rng import preserved_rng, rng_state, seed_everything, set_rng_state
from mode_ssm.train.trainer import Trainer
from mode_ssm.vocab import CLASSES

CPU = torch.device("cpu")


def save(run_dir: Path, step: int) -> Path:
    return save_checkpoint(
        run_dir,
        step,
        weights={"w": torch.full((2, 3), float(step))},
        optimizer_state={"state": {}, "param_groups": []},
        rng_states=[rng_state(CPU), rng_state(CPU)],
        config=make_config(),
        state={"loop": {"step": step}, "world_size": 2, "description": {"sessions": ["s0"]}},
    )


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    config = make_config(seed=7)
    config.data.smoothing = Smoothing.causal
    config.parallel.precision = Precision.bf16
    task = ToyTask()
    Trainer(config, task, SINGLE, tmp_path).fit()
    checkpoint = load_checkpoint(tmp_path / "checkpoints/step_00000012")
    assert checkpoint.config == config
    assert checkpoint.step == 12
    assert checkpoint.description == {"sessions": ["s0"]}
    assert checkpoint.state["vocabulary"] == list(CLASSES)
    assert checkpoint.state["torch_version"] == torch.__version__
    assert checkpoint.state["position"] == {"phase": "joint", "epoch": 4, "batch": 0}
    assert [result["phase"] for result in checkpoint.state["loop"]["history"]] == ["warmup"]
    last = load_checkpoint(tmp_path / "checkpoints/step_00000013")
    assert set(last.weights()) == set(task.model.state_dict())
    assert all(torch.equal(last.weights()[name], value) for name, value in task.model.state_dict().items())


def test_the_files_are_the_documented_ones(tmp_path: Path) -> None:
    names = {"model.safetensors", "optimizer.pt", "rng_rank0.pt", "rng_rank1.pt", "config.yaml", "state.json"}
    folder = save(tmp_path, 123)
    assert folder == tmp_path / "checkpoints" / "step_00000123"
    assert {path.name for path in folder.iterdir()} == names


def test_generators_continue_where_they_were_saved(tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [float(torch.randn(1)), float(np.random.randn()), random.gauss(0, 1), float(torch.rand(1))]

    seed_everything(3, rank=1)
    draw()  # an odd number of gaussians leaves one cached in numpy and python
    torch.save(rng_state(CPU), tmp_path / "rng.pt")
    expected = draw()
    set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True), CPU)
    assert draw() == expected
    with preserved_rng(CPU):
        set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True), CPU)
        assert draw() == expected
    assert draw() != expected


def test_every_rank_draws_its_own_numbers() -> None:
    def drawn(rank: int | None) -> list[float]:
        seed_everything(5, rank)
        return [float(torch.rand(1)), float(np.random.rand()), random.random()]

    assert drawn(0) == drawn(0)
    assert all(a != b for a, b in zip(drawn(0), drawn(1), strict=True))


@pytest.mark.parametrize("files_written", range(8))
def test_a_crash_while_writing_leaves_the_older_one_and_debris_that_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files_written: int
) -> None:
    older = save(tmp_path, 4)
    point_best(tmp_path, 4)
    flushes = 0

    def failing_flush(path: Path) -> None:
        nonlocal flushes
        flushes += 1
        if flushes > files_written:
            raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint_module, "_flush", failing_flush)
    with pytest.raises(OSError, match="no space"):
        save(tmp_path, 8)
    monkeypatch.undo()
    renamed = files_written == 7  # six files and their folder were on disk
    assert latest_checkpoint(tmp_path) == (step_folder(tmp_path, 8) if renamed else older)
    remove_debris(tmp_path)
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"step_00000004"} | (
        {"step_00000008"} if renamed else set()
    )
    assert torch.equal(load_checkpoint(older).weights()["w"], torch.full((2, 3), 4.0))


def test_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    prune(tmp_path, keep=2, best_step=2)
    assert [p.name for p in complete_checkpoints(tmp_path)] == [f"step_0000000{i}" for i in (2, 4, 5)]
    prune(tmp_path, keep=2, best_step=None)
    assert [p.name for p in complete_checkpoints(tmp_path)] == ["step_00000004", "step_00000005"]


def test_best_is_a_relative_link_that_survives_moving_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    save(run, 1)
    save(run, 2)
    point_best(run, 2)
    point_best(run, 1)
    run.rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "best").readlink() == Path("checkpoints/step_00000001")
    assert load_checkpoint(tmp_path / "moved" / "best").step == 1


def test_a_run_folder_means_its_best_and_without_one_its_latest(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert load_checkpoint(tmp_path).step == 2
    point_best(tmp_path, 1)
    assert load_checkpoint(tmp_path).step == 1
    assert load_checkpoint(str(tmp_path / "best")).step == 1
    assert load_checkpoint(tmp_path / "checkpoints/step_00000002").step == 2


def test_a_copied_folder_opens_outside_its_run(tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "decoder"
    shutil.copytree(save(tmp_path / "run", 3), copy)
    assert load_checkpoint(copy).step == 3


def test_a_missing_checkpoint_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    run = tmp_path / "run"
    save(run, 3)
    there = f"there are: {run}/checkpoints/step_00000003"
    for wrong in (run / "best", run / "checkpoints/step_00000009"):
        with pytest.raises(ValueError, match="no checkpoint at") as error:
            load_checkpoint(wrong)
        assert str(error.value) == f"no checkpoint at {wrong}; {there}"
    with pytest.raises(ValueError, match=f"no checkpoint at {tmp_path}/rum/best; runs with checkpoints: {run}$"):
        load_checkpoint(tmp_path / "rum" / "best")
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match=f"no checkpoint at {tmp_path}/new; there are: none$"):
        load_checkpoint(tmp_path / "new")
    with pytest.raises(ValueError, match=r"is no whole checkpoint: .*; whole ones: ") as error:
        load_checkpoint(run / "checkpoints")
    assert str(error.value).endswith(f"whole ones: {run}/checkpoints/step_00000003")


def test_a_damaged_checkpoint_is_named_and_is_never_the_latest(tmp_path: Path) -> None:
    save(tmp_path, 3)
    folder = save(tmp_path, 5)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    assert latest_checkpoint(tmp_path) == step_folder(tmp_path, 3)
    with pytest.raises(ValueError, match="is damaged") as error:
        load_checkpoint(folder)
    assert str(error.value) == (
        f"{folder} is damaged: model.safetensors should have {len(whole)} bytes, found {len(whole) - 4} bytes; "
        f"whole ones: {tmp_path}/checkpoints/step_00000003"
    )
    weights.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors should have \d+ bytes, found no file"):
        load_checkpoint(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"is no whole checkpoint: state\.json cannot be read"):
        load_checkpoint(folder)
    assert save(tmp_path, 5) == latest_checkpoint(tmp_path)  # written again where the damaged one lay


def test_a_config_that_this_version_does_not_know_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("lr: 0.02", "learning_rate: 0.02"))
    state = json.loads((folder / "state.json").read_text())
    state["files"]["config.yaml"] = config.stat().st_size
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"config\.yaml does not fit this version: .*learning_rate") as error:
        load_checkpoint(folder)
    assert "\n" not in str(error.value)
