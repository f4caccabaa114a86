import gc
import pickle

import numpy as np
import pytest
import torch

from mode_ssm.data.batch_memory import BatchMemory


def test_memory_comes_back_when_the_tensor_and_all_views_are_gone() -> None:
    memory = BatchMemory(keep=2)
    first = memory.take(3, 5)
    address = first.data_ptr()
    view, array = first[1:, 2:], first.numpy()
    del first
    assert memory.take(3, 5).data_ptr() != address
    del view
    assert memory.take(3, 5).data_ptr() != address
    del array
    gc.collect()
    both = memory.take(15), memory.take(3, 5)
    assert address in {tensor.data_ptr() for tensor in both}
    assert (both[1].shape, both[1].dtype) == ((3, 5), torch.float32)


def test_two_tensors_in_use_never_share_memory() -> None:
    memory = BatchMemory(keep=3)
    rng = np.random.default_rng(0)
    held: list[tuple[torch.Tensor, float]] = []
    for value in range(60):
        tensor = memory.take(int(rng.integers(1, 9)), int(rng.integers(1, 30_000)))
        tensor.fill_(value)
        held.append((tensor, float(value)))
        del tensor
        if rng.random() < 0.6 or len(held) > 6:
            held.pop(int(rng.integers(len(held))))
        assert all((kept == filled).all() for kept, filled in held)


def test_no_more_is_kept_than_allowed_and_the_largest_stay() -> None:
    memory = BatchMemory(keep=2)
    tensors = [memory.take(n, 1 << 20) for n in (1, 4, 2, 3)]
    tensors.clear()
    assert sorted(block.size >> 20 for block in memory._free) == [3, 4]


@pytest.mark.parametrize("keep", [1, 4])
def test_another_process_starts_with_none(keep: int) -> None:
    memory = BatchMemory(keep)
    memory.take(10)
    copy = pickle.loads(pickle.dumps(memory))
    assert (copy.keep, copy._free) == (keep, [])
