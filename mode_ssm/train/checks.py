"""What the trainer refuses to go on with: losses without a gradient path, dead parameters, NaN and infinity."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mode_ssm.config import PhaseConfig
from mode_ssm.tasks.task import LossTerms
from mode_ssm.train.distributed import Distributed

# A zero-initialised projection passes no gradient on until its own first update, and drop-path can silence a block for
# a step: a parameter may get exact zeros at first, but not through all of these steps of a phase.
GRADIENT_CHECK_STEPS = 4

MAX_NAMES = 40


class GradientPathError(RuntimeError):
    """A phase trains something that its loss does not reach."""


class NonFiniteError(RuntimeError):
    """A loss or a gradient is NaN or infinite on some rank; parameters are as they were before the step."""


def check_terms(terms: LossTerms, counts: Mapping[str, float], weights: Mapping[str, float], phase: str) -> None:
    """The terms of the first forward pass of a phase are the weighted ones, carry gradient, and count as announced."""
    assert set(terms) == set(weights) == set(counts), (
        f"phase {phase}: forward returned {sorted(terms)}, counts {sorted(counts)}, weights name {sorted(weights)}"
    )
    for term, (_, count) in terms.items():
        assert math.isclose(float(count), counts[term], rel_tol=1e-6), (
            f"phase {phase}: term {term} was announced with count {counts[term]}, but forward returned {float(count)}"
        )
    detached = [term for term, (total, _) in terms.items() if not total.requires_grad]
    if detached:
        raise GradientPathError(
            f"phase {phase}: no gradient path from loss term {', '.join(detached)} to any module that the phase trains"
        )


class GradientCheck:
    """Watches the first steps of a phase: every trained parameter gets gradient, every frozen one none."""

    def __init__(self, modules: Mapping[str, nn.Module], phase: str, config: PhaseConfig, steps: int) -> None:
        named = {f"{m}.{name}": p for m, module in modules.items() for name, p in module.named_parameters()}
        trained = {f"{m}.{name}" for m in config.train for name, _ in modules[m].named_parameters()}
        self._phase = phase
        self._trained = {name: p for name, p in named.items() if name in trained}
        self._frozen = {name: p for name, p in named.items() if name not in trained}
        self._only_zeros = set(self._trained)
        self._steps_left = min(GRADIENT_CHECK_STEPS, steps)

    def after_backward(self) -> None:
        """Call once a step between backward and update; raises `GradientPathError` listing all names."""
        if self._steps_left == 0:
            return
        self._steps_left -= 1
        faults: list[str] = []
        missing = [name for name, p in self._trained.items() if p.grad is None]
        if missing:
            faults.append(f"trained, but without gradient: {shorten(missing)}")
        leaking = [name for name, p in self._frozen.items() if p.grad is not None]
        if leaking:
            faults.append(f"frozen, but with gradient: {shorten(leaking)}")
        self._only_zeros -= {name for name in self._only_zeros if _has_gradient(self._trained[name])}
        if self._steps_left == 0:
            zero = [name for name in self._trained if name in self._only_zeros and name not in missing]
            if zero:
                faults.append(f"trained, but every gradient so far is exactly zero: {shorten(zero)}")
        if faults:
            raise GradientPathError(f"phase {self._phase}: " + "; ".join(faults))


def _has_gradient(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and bool(parameter.grad.count_nonzero())


def shorten(names: Sequence[str], limit: int = MAX_NAMES) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def ensure_finite(
    distributed: Distributed,
    phase: str,
    step: int,
    batches: Sequence[Any],
    losses: Sequence[Mapping[str, float]],
    gradient_norm: float,
    all_finite: bool,
) -> None:
    """Raise the same `NonFiniteError` on every rank unless `all_finite`, which every rank knows alike.

    `losses` holds this rank's term sums by batch. Where all losses are finite and only the gradient is not, the
    gradient is already a mix over batches and ranks, and all of its trials are named.
    """
    if all_finite:
        return
    own = []
    for batch, terms in zip(batches, losses, strict=True):
        bad = [term for term, value in terms.items() if not math.isfinite(value)]
        if bad:
            own.append(f"loss {', '.join(bad)} of the batch {_trial_names(batch)}")
    found = [text for texts in distributed.gather_objects(own) for text in texts]
    if not found:
        names = distributed.gather_objects([_trial_names(batch) for batch in batches])
        found = [f"gradient norm {gradient_norm} of the batches {' | '.join(n for rank in names for n in rank)}"]
    raise NonFiniteError(f"phase {phase}, step {step}: not finite: {'; '.join(found)}")


def _trial_names(batch: Any) -> str:
    return shorten([trial.name for trial in batch.trials]) if hasattr(batch, "trials") else repr(type(batch).__name__)
