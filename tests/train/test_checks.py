"""The gradient check, step by step."""

import pytest
import torch
from torch import nn
from toy_task import phase

from mode_ssm.train.checks import GRADIENT_CHECK_STEPS, GradientCheck, GradientPathError, shorten


def modules() -> dict[str, nn.Module]:
    return {"encoder": nn.Linear(2, 2), "joiner": nn.Linear(2, 2)}


def set_gradients(module: nn.Module, value: float) -> None:
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, value)


def test_gradients_may_be_zero_at_first_as_behind_a_zero_initialised_projection() -> None:
    parts = modules()
    check = GradientCheck(parts, "a", phase("encoder", ctc=1.0, steps=9), steps=9)
    for step in range(GRADIENT_CHECK_STEPS + 3):
        set_gradients(parts["encoder"], 0.0 if step != 2 else 1e-30)
        check.after_backward()


def test_zero_through_the_whole_window_is_named() -> None:
    parts = modules()
    check = GradientCheck(parts, "a", phase("encoder", ctc=1.0, steps=9), steps=9)
    set_gradients(parts["encoder"], 0.0)
    for _ in range(GRADIENT_CHECK_STEPS - 1):
        check.after_backward()
    with pytest.raises(GradientPathError, match=r"is exactly zero: encoder\.weight, encoder\.bias$"):
        check.after_backward()


def test_a_frozen_parameter_with_gradient_and_a_trained_one_without_come_in_one_error() -> None:
    parts = modules()
    check = GradientCheck(parts, "a", phase("encoder", ctc=1.0, steps=9), steps=9)
    set_gradients(parts["joiner"], 1.0)
    with pytest.raises(GradientPathError) as error:
        check.after_backward()
    assert str(error.value) == (
        "phase a: trained, but without gradient: encoder.weight, encoder.bias; "
        "frozen, but with gradient: joiner.weight, joiner.bias"
    )


def test_long_lists_of_names_are_cut() -> None:
    assert shorten(["a", "b", "c"], limit=2) == "a, b and 1 more"
    assert shorten(["a", "b"], limit=2) == "a, b"
