"""When a run may start, continue or begin afresh in a directory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_task import SINGLE, ToyTask, make_config, phase

from mode_ssm.config import LoggingConfig, TrainConfig
from mode_ssm.train.run_directory import differing_keys, prepare_run_dir
from mode_ssm.train.trainer import Trainer


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    Trainer(make_config(short()), ToyTask(), SINGLE, tmp_path / "run").fit()
    return tmp_path / "run"


def short() -> dict[str, Any]:
    return {"a": phase("encoder", "ctc_head", ctc=1.0, steps=2), "b": phase("joiner", rnnt=1.0, steps=1)}


def prepare(run_dir: Path, config: TrainConfig, world_size: int = 1) -> Path | None:
    return prepare_run_dir(run_dir, config, world_size)


def test_a_second_start_offers_resume_and_overwrite(finished: Path) -> None:
    with pytest.raises(ValueError, match="already holds a finished run; continue it with resume=true, start afresh"):
        prepare(finished, make_config(short()))
    for later in finished.glob("checkpoints/step_00000003"):
        later.rename(finished / "gone")
    with pytest.raises(ValueError, match=r"already holds a run that stopped at step 2; continue .*overwrite=true"):
        prepare(finished, make_config(short()))


def test_a_start_that_failed_before_training_is_no_run(tmp_path: Path) -> None:
    assert prepare(tmp_path, make_config()) is None
    assert prepare(tmp_path, make_config()) is None


def test_overwrite_deletes_the_run_and_nothing_else(finished: Path) -> None:
    (finished / "notes.txt").write_text("mine")
    (finished / "evaluate_val").mkdir()
    (finished / "checkpoints" / "exported").mkdir()
    assert prepare(finished, make_config(short(), overwrite=True)) is None
    left = {str(path.relative_to(finished)) for path in finished.rglob("*")}
    assert left == {"notes.txt", "evaluate_val", "checkpoints", "checkpoints/exported", "config.yaml"}


def test_resume_and_overwrite_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resume=true and overwrite=true contradict each other"):
        prepare(tmp_path, make_config(resume=True, overwrite=True))


def test_resume_refuses_a_config_that_would_be_another_run(finished: Path) -> None:
    other = make_config(short(), resume=True, seed=1, optim={"lr": 0.5})
    with pytest.raises(
        ValueError, match=r"cannot change the run in .*: seed=1 \(was 0\), optim\.lr=0\.5 \(was 0\.02\);"
    ):
        prepare(finished, other)
    renamed = {("c" if name == "b" else name): value for name, value in short().items()}
    with pytest.raises(ValueError, match=r"curriculum\.phases\.b\..* and \d+ more"):
        prepare(finished, make_config(renamed, resume=True))
    turned = dict(reversed(short().items()))
    with pytest.raises(ValueError, match=r"curriculum\.phases=\['b', 'a'\] \(was \['a', 'b'\]\)"):
        prepare(finished, make_config(turned, resume=True))
    with pytest.raises(
        ValueError, match=r"resume=true with 2 process\(es\), but the run .* has 1; use torchrun --nproc"
    ):
        prepare(finished, make_config(short(), resume=True), world_size=2)


def test_resume_accepts_what_does_not_change_the_run(finished: Path) -> None:
    config = make_config(short(), resume=True, report_test=True, checkpoint={"every_steps": 1, "keep": 5})
    config.logging = LoggingConfig(every_steps=3)
    config.data.num_workers = 2
    config.decode.beam_size = 7
    config.lm.order = 5
    config.adapt.steps = 1
    assert prepare(finished, config) == finished / "checkpoints/step_00000003"


def test_a_best_link_that_a_crash_left_behind_is_repaired(finished: Path) -> None:
    best = (finished / "best").readlink()
    (finished / "best").unlink()
    (finished / "checkpoints" / ".partial_step_00000009").mkdir()
    prepare(finished, make_config(short(), resume=True))
    assert (finished / "best").readlink() == best
    assert not (finished / "checkpoints" / ".partial_step_00000009").exists()


def test_differences_are_listed_in_the_order_of_the_schema() -> None:
    one, other = make_config(), make_config(seed=4)
    other.data.smoothing_std = 1.5
    other.model.encoder.n_layers = 3
    assert differing_keys(one, other) == [
        ("seed", 0, 4),
        ("data.smoothing_std", 2.0, 1.5),
        ("model.encoder.n_layers", 8, 3),
    ]
    assert differing_keys(one, replace(one, resume=True)) == []
