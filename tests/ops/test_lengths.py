import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mode_ssm.ops.lengths import few_sizes, length_mask, reverse_within_lengths, strided_lengths


def test_mask_marks_exactly_the_valid_frames() -> None:
    mask = length_mask(torch.tensor([0, 2, 4]), 4)
    assert mask.tolist() == [[False] * 4, [True, True, False, False], [True] * 4]


def test_few_sizes_are_powers_of_two_and_multiples_of_32() -> None:
    sizes = [few_sizes(size) for size in range(257)]
    assert all(size <= rounded < max(2 * size, size + 32) or size == 0 for size, rounded in enumerate(sizes))
    assert sorted(set(sizes)) == [1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256]


@given(length=st.integers(0, 200), stride=st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_strided_lengths_count_the_frames_that_a_stride_keeps(length: int, stride: int) -> None:
    assert strided_lengths(torch.tensor([length]), stride).item() == len(range(0, length, stride))


def test_reversal_turns_the_valid_part_and_leaves_padding_in_place() -> None:
    x = torch.tensor([[1, 2, 3, 90], [4, 5, 91, 92], [6, 7, 8, 9], [93, 94, 95, 96]])[:, :, None]
    reversed_ = reverse_within_lengths(x, torch.tensor([3, 2, 4, 0]))
    assert reversed_[:, :, 0].tolist() == [[3, 2, 1, 90], [5, 4, 91, 92], [9, 8, 7, 6], [93, 94, 95, 96]]


@given(data=st.data(), time=st.integers(1, 12), batch=st.integers(1, 4), trailing=st.sampled_from([(), (3,), (2, 3)]))
@settings(max_examples=25, deadline=None)
def test_reversal_matches_python_and_undoes_itself(
    data: st.DataObject, time: int, batch: int, trailing: tuple[int, ...]
) -> None:
    lengths = data.draw(st.lists(st.integers(0, time), min_size=batch, max_size=batch))
    x = torch.randn(batch, time, *trailing)
    reversed_ = reverse_within_lengths(x, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        assert torch.equal(reversed_[row, :length], x[row, :length].flip(0))
        assert torch.equal(reversed_[row, length:], x[row, length:])
    assert torch.equal(reverse_within_lengths(reversed_, torch.tensor(lengths)), x)


def test_reversal_has_exact_first_and_second_gradients() -> None:
    lengths = torch.tensor([4, 1, 3])
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: reverse_within_lengths(x, lengths), (x,))
    assert torch.autograd.gradgradcheck(lambda x: reverse_within_lengths(x, lengths) ** 2, (x,))
