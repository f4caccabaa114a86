"""Learning rate and parameter groups against hand-worked values."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from toy_task import ToyTask, make_config, phase

from mode_ssm.config import LrMultipliers, LrSchedule, OptimConfig, ScheduleScope
from mode_ssm.train.curriculum import resolve_curriculum
from mode_ssm.train.optim import build_optimizer, learning_rate_factor, parameter_groups, set_learning_rates


def test_factor_ramps_up_linearly_then_follows_half_a_cosine() -> None:
    config = OptimConfig(warmup_steps=4, min_lr_ratio=0.1)
    factors = [learning_rate_factor(s, 12, config) for s in range(13)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[8] == pytest.approx(0.1 + 0.9 * 0.5)  # half way down
    assert factors[6] == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert factors[12] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(factors[4:]))


def test_a_run_shorter_than_its_warmup_stays_on_the_ramp() -> None:
    factors = [learning_rate_factor(s, 4, OptimConfig(warmup_steps=5000)) for s in range(4)]
    assert factors == [1 / 5000, 2 / 5000, 3 / 5000, 4 / 5000]


def test_without_warmup_the_first_step_has_the_full_rate() -> None:
    assert learning_rate_factor(0, 10, OptimConfig(warmup_steps=0)) == 1.0


def test_a_step_schedule_falls_once_at_its_part_of_the_run() -> None:
    config = OptimConfig(schedule=LrSchedule.step, warmup_steps=2, min_lr_ratio=0.1, step_at=0.6)
    factors = [learning_rate_factor(s, 10, config) for s in range(10)]
    assert factors == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.1]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_proj = nn.Linear(3, 4)
        self.A_log = nn.Parameter(torch.zeros(4, 2))
        self.D = nn.Parameter(torch.zeros(4, 1))
        self.dt_bias = nn.Parameter(torch.zeros(4))
        self.norm = nn.LayerNorm(4)
        self.session_weights = nn.Parameter(torch.zeros(5, 3, 3))
        self.session_weights.no_weight_decay = True  # type: ignore[attr-defined]


def test_only_matrices_decay_and_recurrence_and_session_parameters_do_not() -> None:
    model = nn.ModuleDict({"encoder": Block(), "ctc_head": nn.Linear(4, 2)})
    groups = parameter_groups(model, dict(model.items()), weight_decay=0.05)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {(g["module"], g["weight_decay"]): {names[id(p)] for p in g["params"]} for g in groups}
    assert found == {
        ("encoder", 0.05): {"encoder.in_proj.weight"},
        ("encoder", 0.0): {
            "encoder.in_proj.bias", "encoder.A_log", "encoder.D", "encoder.dt_bias",
            "encoder.norm.weight", "encoder.norm.bias", "encoder.session_weights",
        },
        ("ctc_head", 0.05): {"ctc_head.weight"},
        ("ctc_head", 0.0): {"ctc_head.bias"},
    }  # fmt: skip


def test_a_parameter_in_no_module_or_in_two_is_refused() -> None:
    model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "ctc_head": nn.Linear(2, 2)})
    with pytest.raises(AssertionError, match=r"in no module of the task: ctc_head\.weight, ctc_head\.bias"):
        parameter_groups(model, {"encoder": model["encoder"]}, 0.1)
    with pytest.raises(AssertionError, match="two modules"):
        parameter_groups(model, {"encoder": model["encoder"], "all": model}, 0.1)


@pytest.mark.parametrize(
    ("scope", "expected"),
    # Second phase, its third step: step 8 of 16 with 4 of warm-up, or step 2 of 10 with 4 of warm-up.
    [(ScheduleScope.run, 0.5 * (1 + math.cos(math.pi * 4 / 12))), (ScheduleScope.phase, 0.75)],
)
def test_rate_of_a_group_is_lr_by_factor_by_multiplier(scope: ScheduleScope, expected: float) -> None:
    second = phase("encoder", ctc=1.0, steps=10, lr_multipliers=LrMultipliers(encoder=0.5, ctc_head=2.0))
    config = make_config({"one": phase("encoder", ctc=1.0, steps=6), "two": second})
    plan = resolve_curriculum(config.curriculum, [6, 6], accumulation=1)
    task = ToyTask()
    task.setup()
    optim = OptimConfig(lr=0.01, warmup_steps=4, schedule_scope=scope)
    optimizer = build_optimizer(task.model, task.modules(), optim)
    assert set_learning_rates(optimizer, optim, plan[1], 2, run_steps=16) == pytest.approx(0.01 * expected)
    rates = {group["module"]: group["lr"] for group in optimizer.param_groups}
    assert rates["encoder"] == pytest.approx(0.005 * expected)
    assert rates["ctc_head"] == pytest.approx(0.02 * expected)
    assert rates["joiner"] == pytest.approx(0.01 * expected)


def test_useless_values_are_named() -> None:
    task = ToyTask()
    task.setup()
    with pytest.raises(ValueError, match=r"optim\.lr=0\.0 must be above 0"):
        build_optimizer(task.model, task.modules(), OptimConfig(lr=0.0))
    with pytest.raises(ValueError, match=r"optim\.min_lr_ratio=2 must lie between 0 and 1"):
        build_optimizer(task.model, task.modules(), OptimConfig(min_lr_ratio=2))
