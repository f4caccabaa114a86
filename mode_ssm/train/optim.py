"""AdamW's parameter groups and the learning rate as a pure function of the step."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import AdamW

from mode_ssm.config import LrSchedule, OptimConfig, ScheduleScope
from mode_ssm.train.curriculum import ResolvedPhase

# Recurrence parameters of a Mamba block: decay would pull time constants and skips to zero (state-spaces/mamba).
SSM_NO_DECAY = ("A_log", "D", "dt_bias")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: matrices only, and none that opts out with `no_weight_decay = True`."""
    return (
        parameter.ndim > 1
        and name.rsplit(".", 1)[-1] not in SSM_NO_DECAY
        and not getattr(parameter, "no_weight_decay", False)
    )


def parameter_groups(model: nn.Module, modules: Mapping[str, nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """One group for each (module, decayed or not) that has parameters: `params`, `module`, `weight_decay`."""
    groups: list[dict[str, Any]] = []
    for module_name, module in modules.items():
        for decayed in (True, False):
            params = [p for name, p in module.named_parameters() if decays(name, p) == decayed]
            if params:
                groups.append(
                    {"params": params, "module": module_name, "weight_decay": weight_decay if decayed else 0.0}
                )
    grouped = [id(p) for group in groups for p in group["params"]]
    lost = [name for name, p in model.named_parameters() if id(p) not in set(grouped)]
    assert not lost, f"parameters in no module of the task: {', '.join(lost)}"
    assert len(grouped) == len(set(grouped)), "a parameter belongs to two modules of the task"
    return groups


def build_optimizer(model: nn.Module, modules: Mapping[str, nn.Module], config: OptimConfig) -> AdamW:
    for key in ("lr", "clip_norm", "eps"):
        if not getattr(config, key) > 0:
            raise ValueError(f"optim.{key}={getattr(config, key)} must be above 0")
    if not 0 <= config.min_lr_ratio <= 1:
        raise ValueError(f"optim.min_lr_ratio={config.min_lr_ratio} must lie between 0 and 1")
    if config.warmup_steps < 0:
        raise ValueError(f"optim.warmup_steps={config.warmup_steps} must not be negative")
    groups = parameter_groups(model, modules, config.weight_decay)
    return AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps)


def learning_rate_factor(step: int, total_steps: int, config: OptimConfig) -> float:
    """Factor on the learning rate for the update that follows `step` updates (0, 1, ...).

    Linear from 1 / warmup_steps to 1 over the warm-up, then half a cosine that reaches `min_lr_ratio` at `total_steps`,
    or 1 until `step_at` of them and `min_lr_ratio` from there on. A warm-up longer than the run is a ramp that the run
    leaves early.
    """
    warmup_steps, min_lr_ratio = config.warmup_steps, config.min_lr_ratio
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if config.schedule is LrSchedule.step:
        return min_lr_ratio if step >= config.step_at * total_steps else 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return min_lr_ratio + (1.0 - min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_learning_rates(
    optimizer: AdamW, config: OptimConfig, phase: ResolvedPhase, step_in_phase: int, run_steps: int
) -> float:
    """Set every group to lr x factor x the phase's multiplier for its module; return lr x factor."""
    in_run = config.schedule_scope is ScheduleScope.run
    factor = learning_rate_factor(
        phase.start_step + step_in_phase if in_run else step_in_phase, run_steps if in_run else phase.steps, config
    )
    for group in optimizer.param_groups:
        group["lr"] = config.lr * factor * getattr(phase.config.lr_multipliers, group["module"])
    return config.lr * factor
