"""The real objective under DDP: two gloo processes on ragged batches against one process on their union."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1] / "tasks"))

from tiny_model import BLOCK_ROWS, PHASES, build_model, make_batch

from mode_ssm.models.mode_ssm import MODE_SSM
from mode_ssm.tasks.transcription_objective import TranscriptionObjective, loss_weights

PARTS = ([0, 3], [1, 2])
COUNTED = ("ctc_warmup", "joint", "mode")  # the bridge draws noise: its gradient is random, not comparable


def gradient(phase: str, rows: list[int], union_counts: dict[str, float], world_size: int) -> dict[str, torch.Tensor]:
    """Gradients after one backward pass, normalised as the trainer does: by the counts over all ranks."""
    model = build_model()
    for name in MODE_SSM.MODULES:
        getattr(model, name).requires_grad_(name in PHASES[phase].train)
    objective = TranscriptionObjective(model, PHASES[phase], BLOCK_ROWS, 0.0).train()
    wrapped = DistributedDataParallel(objective) if world_size > 1 else objective
    weights = loss_weights(PHASES[phase])
    terms = wrapped(make_batch(rows))
    sum(weights[t] * world_size / union_counts[t] * total for t, (total, _) in terms.items()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def union_counts(phase: str) -> dict[str, float]:
    objective = TranscriptionObjective(build_model(), PHASES[phase], BLOCK_ROWS, 0.0)
    return objective.counts(make_batch([0, 1, 2, 3]))


def rank_main(rank: int, port: str, output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = {phase: gradient(phase, PARTS[rank], union_counts(phase), 2) for phase in COUNTED}
    if rank == 0:
        torch.save(found, output)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    output = tmp_path_factory.mktemp("gradient") / "rank0.pt"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks = [subprocess.Popen([sys.executable, __file__, rank, port, str(output)]) for rank in ("0", "1")]
    assert [process.wait(timeout=180) for process in ranks] == [0, 0]
    return torch.load(output, weights_only=True)


@pytest.mark.parametrize("phase", COUNTED)
def test_the_gradient_is_that_of_the_union(phase: str, of_two_ranks: dict[str, dict[str, torch.Tensor]]) -> None:
    union = gradient(phase, [0, 1, 2, 3], union_counts(phase), 1)
    assert union.keys() == of_two_ranks[phase].keys()
    for name, expected in union.items():
        difference = of_two_ranks[phase][name] - expected
        assert difference.norm() <= 1e-5 * expected.norm(), name


if __name__ == "__main__":
    rank_main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
