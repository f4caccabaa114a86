"""The parametric sine against its formula, by hand."""

import math

import pytest
import torch

from mode_ssm.models.activations import ParametricSine, inverse_softplus


def test_the_sine_is_its_formula():
    sine = ParametricSine(2, amplitude=2.0, frequency=3.0, decay=0.5).double()
    z = torch.tensor([[0.7, -1.2]], dtype=torch.float64)
    by_hand = [2.0 * math.exp(-0.5 * abs(x)) * math.sin(3.0 * x) for x in (0.7, -1.2)]
    assert sine(z)[0].tolist() == pytest.approx(by_hand, rel=1e-6)


def test_each_feature_has_parameters_of_its_own_and_all_get_gradient():
    sine = ParametricSine(3).double()
    z = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    sine(z)[:, 1].sum().backward()
    for parameter in sine.parameters():
        assert parameter.grad is not None
        assert parameter.grad[1] != 0
        assert parameter.grad[[0, 2]].tolist() == [0.0, 0.0]


def test_gradients_equal_finite_differences():
    sine = ParametricSine(2).double()
    z = torch.tensor([[0.3, -0.8], [2.0, -3.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, *_: sine(z), (z, *sine.parameters()))


def test_amplitude_frequency_and_decay_stay_positive():
    sine = ParametricSine(1)
    with torch.no_grad():
        for parameter in sine.parameters():
            parameter.fill_(-20.0)
    assert 0 < sine(torch.tensor([1.0])).item() < 1e-6


@pytest.mark.parametrize("value", [1e-3, 0.1, 1.0, 30.0])
def test_the_inverse_of_softplus_inverts_it(value: float):
    assert torch.nn.functional.softplus(torch.tensor(inverse_softplus(value))).item() == pytest.approx(value, rel=1e-4)
