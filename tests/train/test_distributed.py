"""Device choice and threads of one process; several processes are in tests/distributed."""

import pytest
import torch

from mode_ssm.config import ParallelConfig
from mode_ssm.train import distributed as module
from mode_ssm.train.distributed import Distributed, choose_device, init_distributed


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    alone = init_distributed(ParallelConfig(device="cpu", threads=1))
    assert (alone.rank, alone.world_size, alone.is_main, alone.device.type) == (0, 1, True, "cpu")
    assert alone.all_reduce_sum([1.5, 2.0]) == [1.5, 2.0]
    assert alone.broadcast_object("x") == "x"
    assert alone.on_main(lambda: 3) == alone.together(lambda: 3) == 3


@pytest.mark.parametrize(("threads", "processes", "expected"), [(0, 1, 6), (0, 2, 3), (0, 8, 1), (5, 2, 5)])
def test_threads_are_cores_divided_by_processes_unless_given(
    monkeypatch: pytest.MonkeyPatch, threads: int, processes: int, expected: int
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(module, "available_cores", lambda: 6)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    init_distributed(ParallelConfig(device="cpu", threads=threads))
    assert chosen == [expected]


@pytest.mark.parametrize(("processes", "expected"), [(1, 6), (2, 3), (4, 1), (8, 1)])
def test_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch, processes: int, expected: int) -> None:
    monkeypatch.setattr(module, "available_cores", lambda: 6)
    device = torch.device("cpu")
    assert Distributed(rank=0, world_size=8, device=device, local_world_size=processes).cores == expected


def test_a_device_that_is_not_there_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", 0, 1).type == "cpu"
    with pytest.raises(ValueError, match=r"parallel\.device=cuda, but torch sees no GPU here; use .*auto or cpu"):
        choose_device("cuda", 0, 1)
    with pytest.raises(ValueError, match=r"parallel\.device=gpu is unknown; choose auto, cpu or cuda"):
        choose_device("gpu", 0, 1)


def test_each_process_gets_its_own_gpu_and_more_processes_than_gpus_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto", 1, 2) == torch.device("cuda", 1)
    assert choose_device("cpu", 1, 2) == torch.device("cpu")
    with pytest.raises(ValueError, match=r"3 processes on this machine, but 2 GPU\(s\); use .*--nproc_per_node=2"):
        choose_device("auto", 0, 3)
