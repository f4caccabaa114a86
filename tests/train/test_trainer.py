"""What a run does to parameters, what it refuses to go on with, what it returns."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_task import SINGLE, ToyTask, make_config, parameters, phase

from mode_ssm.config import PhaseConfig, Precision, TrainConfig
from mode_ssm.data.batch import collate
from mode_ssm.train.checkpoint import load_checkpoint
from mode_ssm.train.checks import GRADIENT_CHECK_STEPS, GradientPathError, NonFiniteError
from mode_ssm.train.loop_state import FitResult
from mode_ssm.train.rng import seed_everything
from mode_ssm.train.trainer import Trainer


def fit(config: TrainConfig, task: ToyTask, run_dir: Path) -> FitResult:
    return Trainer(config, task, SINGLE, run_dir).fit()


def weights_after(task: ToyTask, run_dir: Path, phases: dict[str, PhaseConfig], **config: Any) -> dict[str, Any]:
    fit(make_config(phases, **config), task, run_dir)
    return parameters(task)


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def test_each_phase_moves_exactly_the_modules_it_names(tmp_path: Path) -> None:
    first = phase("preprocessor", "encoder", "ctc_head", ctc=1.0, steps=2)
    second = phase("joiner", rnnt=1.0, steps=2)
    third = phase("encoder", "joiner", rnnt=1.0, steps=2)
    task = ToyTask()
    fit(make_config({"a": first, "b": second, "c": third}, checkpoint={"keep": 9}), task, tmp_path)
    a, b, c = (load_checkpoint(tmp_path / f"checkpoints/step_{s:08d}").weights() for s in (2, 4, 6))
    alone = weights_after(ToyTask(), tmp_path / "alone", {"a": first}, optim={"warmup_steps": 0})
    assert moved(alone, a) == {"preprocessor", "encoder", "ctc_head"}  # same start, other rates
    assert torch.equal(alone["joiner.weight"], a["joiner.weight"])
    assert moved(a, b) == {"joiner"}
    assert moved(b, c) == {"encoder", "joiner"}


def test_frozen_modules_are_in_eval_mode_and_trained_ones_in_train_mode(tmp_path: Path) -> None:
    modes: list[dict[str, bool]] = []

    class Watching(ToyTask):
        def before_batch(self, rank: int, epoch: int, number: int) -> None:
            modes.append({name: module.training for name, module in self.modules().items()} | {"": self.model.training})

    phases = {
        "a": phase("encoder", "ctc_head", ctc=1.0, steps=2, evaluate_every_epochs=0.4),
        "b": phase("preprocessor", ctc=1.0, steps=1),
    }
    fit(make_config(phases, optim={"accumulation": 1}), Watching(), tmp_path)
    a = {"preprocessor": False, "encoder": True, "ctc_head": True, "joiner": False, "": True}
    b = {"preprocessor": True, "encoder": False, "ctc_head": False, "joiner": False, "": True}
    assert modes == [a, a, b]


def test_a_loss_term_without_a_gradient_path_is_named(tmp_path: Path) -> None:
    phases = {"late": phase("encoder", "ctc_head", ctc=1.0, rnnt=1.0, steps=3)}
    with pytest.raises(GradientPathError, match=r"^phase late: no gradient path from loss term rnnt to any module"):
        fit(make_config(phases), ToyTask(fault="detached"), tmp_path)


def test_trained_parameters_that_no_loss_reaches_are_all_named_at_the_first_step(tmp_path: Path) -> None:
    task = ToyTask()
    phases = {"late": phase("encoder", "ctc_head", "joiner", ctc=1.0, steps=9)}
    with pytest.raises(GradientPathError) as error:
        fit(make_config(phases), task, tmp_path)
    assert str(error.value) == "phase late: trained, but without gradient: joiner.weight, joiner.bias"
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.parametrize(("steps", "seen"), [(9, GRADIENT_CHECK_STEPS), (1, 1)])
def test_parameters_with_nothing_but_zero_gradients_are_named(tmp_path: Path, steps: int, seen: int) -> None:
    task = ToyTask(fault="dead")
    phases = {"late": phase("encoder", "ctc_head", "joiner", ctc=1.0, rnnt=1.0, steps=steps)}
    with pytest.raises(GradientPathError, match=r"every gradient so far is exactly zero: joiner\.weight$"):
        fit(make_config(phases, optim={"accumulation": 1}), task, tmp_path)
    assert task.batches_drawn == seen


def test_counts_that_differ_from_what_forward_returns_are_refused(tmp_path: Path) -> None:
    task = ToyTask(fault="miscounted")
    with pytest.raises(AssertionError, match=r"term ctc was announced with count .* but forward returned"):
        fit(make_config(), task, tmp_path)


def test_a_nan_stops_before_parameters_move_and_names_the_trials_of_its_batch(tmp_path: Path) -> None:
    task = ToyTask(nan_at=(0, 1, 3))  # step 5 of the first phase, the second of its two batches
    with pytest.raises(NonFiniteError) as error:
        fit(make_config(checkpoint={"every_steps": 2}), task, tmp_path)
    order = np.random.default_rng([0, 1]).permutation(24)
    names = ", ".join(f"s0/train/trial_{i:04d}" for i in order[12:16])
    assert str(error.value) == f"phase warmup, step 5: not finite: loss ctc of the batch {names}"
    saved = load_checkpoint(tmp_path / "checkpoints/step_00000004").weights()
    assert all(torch.equal(saved[name], value) for name, value in parameters(task).items())


def test_a_gradient_that_is_not_finite_under_a_finite_loss_names_all_trials_of_the_step(tmp_path: Path) -> None:
    task = ToyTask(fault="steep")
    with pytest.raises(NonFiniteError, match=r"gradient norm (nan|inf) of the batches s0/train/trial.* \| s0/"):
        fit(make_config(), task, tmp_path)
    assert all(bool(value.isfinite().all()) for value in parameters(task).values())


def test_two_batches_accumulated_equal_one_batch_of_twice_the_size(tmp_path: Path) -> None:
    phases = {"a": phase("preprocessor", "encoder", "ctc_head", "joiner", ctc=0.7, rnnt=0.3, steps=5)}
    two = weights_after(ToyTask(batch_size=4, dropout=0.0), tmp_path / "two", phases, optim={"accumulation": 2})
    one = weights_after(ToyTask(batch_size=8, dropout=0.0), tmp_path / "one", phases, optim={"accumulation": 1})
    for name, value in two.items():
        torch.testing.assert_close(value, one[name], rtol=1e-6, atol=1e-6)


def test_the_logged_loss_is_the_mean_over_the_whole_step(tmp_path: Path) -> None:
    task = ToyTask(dropout=0.0)
    fit(make_config({"a": phase("encoder", "joiner", "ctc_head", ctc=0.5, rnnt=2.0, steps=1)}), task, tmp_path)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    start = ToyTask(dropout=0.0)
    seed_everything(0)
    start.setup()
    order = np.random.default_rng([0, 0]).permutation(24)[:8]
    union = collate([start.trials[i] for i in order], {"s0": 0})
    terms = start.objective(phase("encoder", ctc=0.5, rnnt=2.0))(union)
    means = {term: float(total.detach() / count) for term, (total, count) in terms.items()}
    assert line["train/ctc"] == pytest.approx(means["ctc"], rel=1e-6)
    assert line["train/rnnt"] == pytest.approx(means["rnnt"], rel=1e-6)
    assert line["train/loss"] == pytest.approx(0.5 * means["ctc"] + 2.0 * means["rnnt"], rel=1e-6)


def test_evaluations_leave_no_trace_in_training(tmp_path: Path) -> None:
    def train(name: str, every: float | None) -> tuple[dict[str, torch.Tensor], int]:
        task = ToyTask(dropout=0.5)
        phases = {"a": phase("preprocessor", "encoder", "ctc_head", ctc=1.0, steps=6, evaluate_every_epochs=every)}
        return weights_after(task, tmp_path / name, phases), task.evaluations

    often, seldom = train("often", 1 / 3), train("seldom", None)
    assert (often[1], seldom[1]) == (6, 1)
    assert all(torch.equal(often[0][name], value) for name, value in seldom[0].items())


def test_the_result_and_best_follow_the_metric(tmp_path: Path) -> None:
    phases = {
        "a": phase("encoder", "ctc_head", ctc=1.0, steps=3, evaluate_every_epochs=1 / 3),
        "b": phase("joiner", rnnt=1.0, steps=2),
    }
    task = ToyTask(metrics=[0.9, 0.4, math.nan, 0.6])
    result = fit(make_config(phases, checkpoint={"keep": 1, "every_steps": 1}), task, tmp_path)
    assert result.best_metrics == {"val/per": 0.4}
    assert result.best_checkpoint == tmp_path / "checkpoints/step_00000002"
    assert (tmp_path / "best").readlink() == Path("checkpoints/step_00000002")
    assert result.last_checkpoint == tmp_path / "checkpoints/step_00000005"
    assert [(r.phase, r.steps, r.stopped_early) for r in result.history] == [("a", 3, None), ("b", 2, None)]
    assert result.history[1].before is result.history[0].after
    assert result.history[1].after == {"val/per": 0.6}
    assert result.stopped_early is None
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"step_00000002", "step_00000005"}


def test_a_metric_of_which_more_is_better_is_maximised(tmp_path: Path) -> None:
    phases = {"a": phase("encoder", "ctc_head", ctc=1.0, steps=3, evaluate_every_epochs=1 / 3)}
    task = ToyTask(metrics=[0.5, 0.7, 0.6])
    result = fit(make_config(phases, checkpoint={"higher_is_better": True}), task, tmp_path)
    assert (result.best_metrics, result.best_checkpoint.name) == ({"val/per": 0.7}, "step_00000002")


def test_patience_leaves_a_phase_but_not_the_plan(tmp_path: Path) -> None:
    phases = {
        "a": phase("encoder", "ctc_head", ctc=1.0, steps=6, evaluate_every_epochs=1 / 3, patience=2),
        "b": phase("joiner", rnnt=1.0, steps=2),
    }
    task = ToyTask(metrics=[0.5, 0.6, 0.5, 0.7])
    result = fit(make_config(phases), task, tmp_path)
    assert result.stopped_early == "a: no better val/per in 2 evaluations"
    assert [(r.phase, r.steps) for r in result.history] == [("a", 3), ("b", 2)]
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 7, 8]


def test_a_metric_that_the_task_does_not_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint\.metric=val/wer is not among the metrics: val/per"):
        fit(make_config(checkpoint={"metric": "val/wer"}), ToyTask(), tmp_path)


def test_the_compile_switch_compiles_every_module_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, dynamic: compiled.append(module))
    config = make_config({"a": phase("encoder", "ctc_head", ctc=1.0, steps=1)})
    config.parallel.compile = True
    task = ToyTask()
    fit(config, task, tmp_path)
    assert compiled == list(task.modules().values())


@pytest.mark.parametrize(
    ("precision", "expected"),
    [(Precision.auto, torch.float32), (Precision.fp32, torch.float32), (Precision.bf16, torch.bfloat16)],
)
def test_bf16_runs_on_a_cpu_only_when_asked(tmp_path: Path, precision: Precision, expected: torch.dtype) -> None:
    seen: list[torch.dtype] = []
    task = ToyTask()
    config = make_config({"a": phase("encoder", "ctc_head", ctc=1.0, steps=1)})
    config.parallel.precision = precision
    setup = task.setup

    def watched_setup() -> None:
        setup()
        task.model.ctc_head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))

    task.setup = watched_setup  # type: ignore[method-assign]
    fit(config, task, tmp_path)
    assert seen[0] is expected
