"""The loop: phases of optimizer steps over an objective, on any number of processes, resumable to the bit."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from mode_ssm.config import TrainConfig
from mode_ssm.tasks.task import ResumableLoader, Task
from mode_ssm.train.checkpoint import (
    Checkpoint,
    git_commit,
    load_checkpoint,
    point_best,
    prune,
    save_checkpoint,
    step_folder,
)
from mode_ssm.train.checks import ensure_finite
from mode_ssm.train.curriculum import (
    ResolvedPhase,
    batch_position,
    batch_stream,
    check_curriculum,
    check_modules_have_multipliers,
    resolve_curriculum,
)
from mode_ssm.train.distributed import Distributed
from mode_ssm.train.interrupt import Interrupted, StopSignals
from mode_ssm.train.logger import StepRecord, open_logger
from mode_ssm.train.loop_state import FitResult, LoopState
from mode_ssm.train.optim import build_optimizer, set_learning_rates
from mode_ssm.train.rng import preserved_rng, rng_state, seed_everything, set_rng_state
from mode_ssm.train.run_directory import prepare_run_dir
from mode_ssm.train.running_phase import RunningPhase, use_bf16
from mode_ssm.vocab import CLASSES


class Trainer:
    """Runs the curriculum of `config` on `task`.

    `fit` seeds the generators, calls `task.setup()` and moves the model to the device; nobody else does. It raises
    `ValueError` for a config or run directory that does not work, `GradientPathError` and `NonFiniteError` for training
    that must not go on, `Interrupted` (with `exit_code`) after SIGINT or SIGTERM; all with one-line messages.
    """

    def __init__(self, config: TrainConfig, task: Task, distributed: Distributed, run_dir: Path) -> None:
        self.metric = config.checkpoint.metric or task.select_metric
        self.config = config
        self.task = task
        self.distributed = distributed
        self.run_dir = run_dir
        self.state = LoopState()
        self._saved_step: int | None = None
        self._commit = git_commit()

    def fit(self) -> FitResult:
        """Train from the beginning, or from the newest checkpoint with `resume`; a finished run returns its result."""
        config, distributed = self.config, self.distributed
        if config.checkpoint.keep < 1 or config.checkpoint.every_steps < 1:
            raise ValueError("checkpoint.keep and checkpoint.every_steps must be 1 or more")
        folder = distributed.on_main(lambda: prepare_run_dir(self.run_dir, config, distributed.world_size))
        checkpoint = load_checkpoint(folder) if folder else None
        if checkpoint:
            self.state = LoopState.from_dict(checkpoint.state["loop"])
            self._saved_step = self.state.step
            if self.state.finished:
                return self._result()
        self._set_up(checkpoint)
        with (
            StopSignals(announce=distributed.is_main) as self._signals,
            open_logger(
                self.run_dir, config.logging, self._phases, self.state.step, distributed.is_main
            ) as self._logger,
        ):
            self._announce(checkpoint)
            for plan in self._phases[self.state.phase_index :]:
                self._run_phase(plan)
        return self._result()

    def _run_phase(self, plan: ResolvedPhase) -> None:
        """Steps, evaluations and checkpoints from where the state stands to the end of the phase."""
        state = self.state
        first_batch = state.step_in_phase * self.config.optim.accumulation
        batches = batch_stream(self._loaders[plan.index], plan, first_batch)
        phase = RunningPhase.enter(plan, batches, self.task, self.distributed, self._bf16, state.step_in_phase)
        self._optimizer.zero_grad(set_to_none=True)
        try:
            while True:
                self._step(phase)
                better, ends = False, state.step_in_phase == plan.steps
                if ends or (plan.evaluate_every and state.step_in_phase % plan.evaluate_every == 0):
                    metrics, better = self._evaluate(plan)
                    stopped_early = None if ends else self._out_of_patience(plan)
                    if ends or stopped_early:
                        state.end_phase(plan.name, state.step_in_phase, metrics, stopped_early)
                        state.finished = state.phase_index == len(self._phases)
                        self._save()
                        return
                if better or state.step % self.config.checkpoint.every_steps == 0:
                    self._save()
        finally:
            phase.leave()

    def _step(self, phase: RunningPhase) -> None:
        """One update of the parameters from `accumulation` batches on every rank."""
        state, optim, device = self.state, self.config.optim, self.distributed.device
        started = time.monotonic()
        with preserved_rng(device):
            batches = [next(phase.batches).to(device) for _ in range(optim.accumulation)]
        counts, trials = self._agree(phase, batches)
        rate = set_learning_rates(self._optimizer, optim, phase.plan, state.step_in_phase, self._run_steps)
        losses = phase.backward(batches, counts)
        norm = float(clip_grad_norm_(phase.parameters, optim.clip_norm))
        means = self._global_means(phase, batches, losses, counts, norm)
        phase.check.after_backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

        state.step_in_phase += 1
        state.step = phase.plan.start_step + state.step_in_phase
        self._log(phase, means, rate, norm, trials, time.monotonic() - started)

    # -- one step -------------------------------------------------------------------------------------------------

    def _agree(self, phase: RunningPhase, batches: list[Any]) -> tuple[dict[str, float], int]:
        """Count of every term and number of trials over all batches and ranks; leaves if any rank got a signal."""
        own = [phase.objective.counts(batch) for batch in batches]
        per_term = [sum(counts[term] for counts in own) for term in phase.weights]
        signals = self._signals.received
        *totals, trials, signalled = self.distributed.all_reduce_sum(
            [*per_term, float(sum(len(batch) for batch in batches)), float(signals > 0)]
        )
        if signalled:
            signals = max(self.distributed.gather_objects(signals))
            if self._saved_step != self.state.step:
                self._save()
            raise Interrupted(signals, self.state.step, step_folder(self.run_dir, self.state.step))
        return dict(zip(phase.weights, totals, strict=True)), int(trials)

    def _global_means(
        self,
        phase: RunningPhase,
        batches: list[Any],
        losses: list[dict[str, float]],
        counts: Mapping[str, float],
        norm: float,
    ) -> dict[str, float]:
        """Every term's mean over the whole step; stops all ranks if anything on any of them is not finite."""
        own = [sum(by_term[term] for by_term in losses) for term in phase.weights]
        *sums, norms = self.distributed.all_reduce_sum([*own, norm])
        ensure_finite(
            self.distributed,
            phase.plan.name,
            self.state.step + 1,
            batches,
            losses,
            norm,
            all_finite=all(math.isfinite(value) for value in [*sums, norms]),
        )
        return {t: s / counts[t] if counts[t] else 0.0 for t, s in zip(phase.weights, sums, strict=True)}

    def _log(
        self, phase: RunningPhase, means: Mapping[str, float], rate: float, norm: float, trials: int, seconds: float
    ) -> None:
        plan, state = phase.plan, self.state
        record = StepRecord(
            step=state.step,
            step_in_phase=state.step_in_phase,
            phase=plan,
            epoch=plan.start_epoch + state.step_in_phase * self.config.optim.accumulation / plan.steps_per_epoch,
            loss=sum(weight * means[term] for term, weight in phase.weights.items()),
            terms=means,
            learning_rate=rate,
            gradient_norm=norm,
            trials=trials,
            seconds=seconds,
        )
        self._logger.step(record, self._seconds())

    # -- around the steps -----------------------------------------------------------------------------------------

    def _set_up(self, checkpoint: Checkpoint | None) -> None:
        config, task, distributed = self.config, self.task, self.distributed
        seed_everything(config.seed)
        task.setup()
        task.model.to(distributed.device)
        modules = task.modules()
        check_modules_have_multipliers(modules)
        check_curriculum(config.curriculum, modules)
        self._loaders: list[ResumableLoader] = [
            task.train_loader(phase, distributed.rank, distributed.world_size)
            for phase in config.curriculum.phases.values()
        ]
        self._phases = resolve_curriculum(
            config.curriculum, [loader.steps_per_epoch for loader in self._loaders], config.optim.accumulation
        )
        self._run_steps = sum(phase.steps for phase in self._phases)
        self._optimizer = build_optimizer(task.model, modules, config.optim)
        self._bf16 = use_bf16(config.parallel.precision, distributed.device)
        if config.parallel.compile:
            for module in modules.values():  # not the whole: objectives call the parts; lengths differ by batch
                module.compile(dynamic=True)
        seed_everything(config.seed, distributed.rank)
        if checkpoint:
            task.model.load_state_dict(checkpoint.weights())
            self._optimizer.load_state_dict(checkpoint.optimizer_state())
            set_rng_state(checkpoint.rng_state(distributed.rank), distributed.device)
        self._started = time.monotonic() - self.state.seconds

    def _announce(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint:
            self._logger.note(f"continuing after step {self.state.step} from {checkpoint.path}")
        elif self.config.resume:
            self._logger.note(f"no checkpoint in {self.run_dir} yet; starting at the beginning")

    def _evaluate(self, plan: ResolvedPhase) -> tuple[dict[str, float], bool]:
        """Metrics, the same on all ranks; whether they are the best of the run."""
        metrics = self._evaluate_task()
        self.distributed.on_main(lambda: self._require_metric(metrics))
        better = self.state.take_evaluation(metrics, self.metric, self.config.checkpoint.higher_is_better)
        self._logger.evaluation(self.state.step, plan.name, metrics, self._seconds())
        return metrics, better

    def _evaluate_task(self) -> dict[str, float]:
        """Leaves no trace in the training: modes of modules and generators are as before."""
        model = self.task.model
        training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            with preserved_rng(self.distributed.device):
                return self.task.evaluate(self.distributed)
        finally:
            for module in training:
                module.training = True

    def _require_metric(self, metrics: Mapping[str, float]) -> None:
        if self.metric not in metrics:
            raise ValueError(f"checkpoint.metric={self.metric} is not among the metrics: {', '.join(metrics)}")

    def _out_of_patience(self, plan: ResolvedPhase) -> str | None:
        patience = plan.config.patience
        if patience is None or self.state.evaluations_without_better < patience:
            return None
        return f"no better {self.metric} in {patience} evaluations"

    def _save(self) -> None:
        """Write the checkpoint of the present step, let `best` follow, delete old ones. All ranks take part."""
        state, config = self.state, self.config
        state.seconds = self._seconds()
        rng_states = self.distributed.gather_objects(rng_state(self.distributed.device))

        def write() -> None:
            save_checkpoint(
                self.run_dir,
                state.step,
                weights=self.task.model.state_dict(),
                optimizer_state=self._optimizer.state_dict(),
                rng_states=rng_states,
                config=config,
                state={"loop": state.to_dict(), **self._facts()},
            )
            if state.best_step == state.step:
                point_best(self.run_dir, state.step)
            prune(self.run_dir, config.checkpoint.keep, state.best_step)

        self.distributed.on_main(write)
        self._saved_step = state.step

    def _facts(self) -> dict[str, Any]:
        """What a checkpoint says beside the loop's state: for people, and to rebuild the model."""
        state = self.state
        position: dict[str, Any] = {"phase": None, "epoch": None, "batch": None}
        if not state.finished:
            plan = self._phases[state.phase_index]
            epoch, batch = batch_position(plan, state.step_in_phase * self.config.optim.accumulation)
            position = {"phase": plan.name, "epoch": epoch, "batch": batch}
        return {
            "position": position,
            "metrics": state.history[-1].after if state.history else None,
            "world_size": self.distributed.world_size,
            "git_commit": self._commit,
            "torch_version": torch.__version__,
            "vocabulary": list(CLASSES),
            "description": self.task.describe(),
        }

    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _result(self) -> FitResult:
        state = self.state
        last = step_folder(self.run_dir, state.step)
        return FitResult(
            best_checkpoint=last if state.best_step is None else step_folder(self.run_dir, state.best_step),
            best_metrics=state.best_metrics or state.history[-1].after,
            last_checkpoint=last,
            history=tuple(state.history),
            seconds=state.seconds,
        )
