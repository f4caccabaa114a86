"""A phase made ready to train: modules frozen or not, objective built and wrapped, gradients accumulated."""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mode_ssm.config import Precision
from mode_ssm.tasks.task import Objective, Task
from mode_ssm.train.checks import GradientCheck, check_terms
from mode_ssm.train.curriculum import ResolvedPhase
from mode_ssm.train.distributed import Distributed
from mode_ssm.train.rng import preserved_rng


@dataclass(kw_only=True, slots=True)
class RunningPhase:
    """`wrapped` is the objective, inside DDP where there are several processes; `parameters` are those that train."""

    plan: ResolvedPhase
    batches: Iterator[Any]
    objective: Objective
    wrapped: nn.Module
    weights: dict[str, float]
    parameters: list[nn.Parameter]
    check: GradientCheck
    distributed: Distributed
    bf16: bool
    terms_checked: bool = False

    @classmethod
    def enter(
        cls,
        plan: ResolvedPhase,
        batches: Iterator[Any],
        task: Task,
        distributed: Distributed,
        bf16: bool,
        steps_done: int,
    ) -> "RunningPhase":
        """Freeze and unfreeze, build the objective, wrap it. Draws nothing from the run's random streams."""
        modules = task.modules()
        torch.compiler.reset()  # graphs of the last phase know which parameters were frozen then
        with preserved_rng(distributed.device):
            objective = task.objective(plan.config)
            objective.to(distributed.device).train()
            for name, module in modules.items():
                trained = name in plan.config.train
                module.requires_grad_(trained)
                module.train(trained)  # no dropout in what does not learn
            wrapped = DistributedDataParallel(objective) if distributed.world_size > 1 else objective
        return cls(
            plan=plan,
            batches=batches,
            objective=objective,
            wrapped=wrapped,
            weights=task.loss_weights(plan.config),
            parameters=[p for name in plan.config.train for p in modules[name].parameters()],
            check=GradientCheck(modules, plan.name, plan.config, plan.steps - steps_done),
            distributed=distributed,
            bf16=bf16,
        )

    def backward(self, batches: Sequence[Any], counts: Mapping[str, float]) -> list[dict[str, float]]:
        """Accumulate the gradient of sum_k w_k * sum_k / count_k, with `counts` over all batches and ranks.

        Returns this rank's term sums by batch.
        """
        # DDP averages over ranks what is to be summed.
        world_size = self.distributed.world_size
        scales = {t: w * world_size / counts[t] if counts[t] else 0.0 for t, w in self.weights.items()}
        sums = []
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            with nullcontext() if last else self._local():
                with torch.autocast(self.distributed.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                    terms = self.wrapped(batch)
                if not self.terms_checked:
                    check_terms(terms, self.objective.counts(batch), self.weights, self.plan.name)
                    self.terms_checked = True
                torch.stack([scales[term] * total for term, (total, _) in terms.items()]).sum().backward()
            sums.append({term: total.detach() for term, (total, _) in terms.items()})
        return [{term: float(total) for term, total in by_term.items()} for by_term in sums]

    def _local(self) -> Any:
        """Gradients stay on this rank; the last batch of a step sends the accumulated ones."""
        return self.wrapped.no_sync() if isinstance(self.wrapped, DistributedDataParallel) else nullcontext()

    def leave(self) -> None:
        """Let DDP go, also when an error's traceback still holds this phase.

        Its hooks would fire in the next phase; and a process group that dies with it, after `Distributed.close`, joins
        gloo's threads while it holds the GIL that they wait for.
        """
        self.wrapped = self.objective
        if self.distributed.world_size > 1:
            gc.collect()


def use_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether forward passes run under bf16 autocast. A CPU does so only when asked: there it is rarely faster."""
    supported = device.type == "cpu" or torch.cuda.is_bf16_supported()
    if precision is Precision.bf16 and not supported:
        raise ValueError("parallel.precision=bf16, but this GPU has no bf16; use auto or fp32")
    return precision is Precision.bf16 or (precision is Precision.auto and device.type == "cuda" and supported)
