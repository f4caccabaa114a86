import pytest
import torch
from torch import Tensor

from mode_ssm.ops.causal_conv import causal_conv, causal_conv_reference, causal_conv_step

TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}


def random_inputs(width: int, batch: int = 4, time: int = 9, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, weight, bias, initial state."""
    torch.manual_seed(width)
    shapes = [(batch, time, 3), (3, width), (3,), (batch, 3, width - 1)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("width", [1, 2, 4, 7])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("stateful", [False, True])
def test_matches_the_loop_on_outputs_states_and_gradients(
    dtype: torch.dtype, width: int, ragged: bool, stateful: bool
) -> None:
    x, weight, bias, past = random_inputs(width, dtype=dtype)
    lengths = torch.tensor([9, 5, 1, 0]) if ragged else None
    wanted = [x, weight, bias] + ([past] if stateful and width > 1 else [])
    results = []
    for function in (causal_conv, causal_conv_reference):
        y, state = function(x, weight, bias, lengths=lengths, initial_state=past if stateful else None)
        torch.manual_seed(0)
        loss = (y * torch.randn(y.shape, dtype=dtype)).sum() + (state * torch.randn(state.shape, dtype=dtype)).sum()
        results.append([y, state, *torch.autograd.grad(loss, wanted)])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_a_hand_worked_case() -> None:
    x = torch.tensor([1.0, 2.0, 3.0])[None, :, None]
    y, state = causal_conv(x, torch.tensor([[100.0, 10.0, 1.0]]), torch.tensor([0.5]))
    assert y.flatten().tolist() == [1.5, 12.5, 123.5]
    assert state.flatten().tolist() == [2.0, 3.0]


@pytest.mark.parametrize("width", [1, 4])
def test_steps_equal_the_whole_sequence(width: int) -> None:
    x, weight, bias, state = random_inputs(width)
    y, final_state = causal_conv(x, weight, bias, initial_state=state)
    for t in range(x.shape[1]):
        frame, state = causal_conv_step(x[:, t], state, weight, bias)
        torch.testing.assert_close(frame, y[:, t])
    torch.testing.assert_close(state, final_state)


def test_a_sequence_in_two_pieces_equals_the_whole() -> None:
    x, weight, bias, _ = random_inputs(4)
    y, final_state = causal_conv(x, weight, bias)
    first, state = causal_conv(x[:, :2], weight, bias)  # shorter than the state
    second, state = causal_conv(x[:, 2:], weight, bias, initial_state=state)
    torch.testing.assert_close(torch.cat([first, second], 1), y)
    torch.testing.assert_close(state, final_state)


def test_padding_and_companions_change_nothing_and_get_no_gradient() -> None:
    x, weight, bias, _ = random_inputs(4)
    lengths = torch.tensor([6, 3, 9, 1])
    y, state = causal_conv(x, weight, bias, lengths=lengths)
    (grad,) = torch.autograd.grad(y.square().sum() + state.square().sum(), x)
    for row, length in enumerate(lengths.tolist()):
        alone, alone_state = causal_conv(x[row : row + 1, :length], weight, bias)
        torch.testing.assert_close(y[row : row + 1, :length], alone)
        torch.testing.assert_close(state[row : row + 1], alone_state)
        assert y[row, length:].count_nonzero() == 0
        assert grad[row, length:].count_nonzero() == 0


def test_gradcheck() -> None:
    x, weight, bias, past = random_inputs(3, batch=2, time=4)
    lengths = torch.tensor([4, 2])
    assert torch.autograd.gradcheck(
        lambda x, weight, bias, past: causal_conv(x, weight, bias, lengths=lengths, initial_state=past),
        (x, weight, bias, past),
    )


def test_low_precision_input_is_computed_in_float32_under_autocast() -> None:
    x, weight, bias, _ = random_inputs(4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = causal_conv(x.bfloat16(), weight, bias)
    expected, _ = causal_conv(x.bfloat16().float(), weight, bias)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected.bfloat16())
