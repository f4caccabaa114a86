"""A task small enough to train in a blink and real enough to go wrong: ragged batches, dropout, two heads, two losses.

Frames are classified (`ctc`, counted in frames) and trials too (`rnnt`, counted in trials), so that the two terms have
different denominators, and both differ between batches and ranks.
"""

import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mode_ssm.config import (
    CheckpointConfig,
    CurriculumConfig,
    DataConfig,
    LoggingConfig,
    LossWeights,
    OptimConfig,
    ParallelConfig,
    PhaseConfig,
    TrainConfig,
)
from mode_ssm.data.batch import Batch, Trial, TrialInfo, collate
from mode_ssm.tasks.sharding import Ranks
from mode_ssm.tasks.task import LossTerms, Objective
from mode_ssm.train.distributed import Distributed

WIDTH, FRAME_CLASSES, TRIAL_CLASSES = 6, 4, 3
SINGLE = Distributed(rank=0, world_size=1, device=torch.device("cpu"))
MODULES = ["preprocessor", "encoder", "ctc_head", "joiner"]


def make_trial(number: int, split: str = "train") -> Trial:
    rng = np.random.default_rng([number, split == "val"])
    frames = int(rng.integers(3, 12))
    features = rng.standard_normal((frames, WIDTH)).astype(np.float32)
    info = TrialInfo(
        session="s0", split=split, block=0, trial=number, path="toy", key=f"trial_{number:04d}", num_bins=frames,
        num_phonemes=1, sentence=None,
    )  # fmt: skip
    trial_class = np.array([1 + int(features[:, 0].mean() > 0)])
    return Trial(info=info, features=features, phonemes=trial_class)


class ToyModel(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.preprocessor = nn.Sequential(nn.Linear(WIDTH, 8), nn.LayerNorm(8), nn.Dropout(dropout))
        self.encoder = nn.GRU(8, 8, batch_first=True)
        self.ctc_head = nn.Linear(8, FRAME_CLASSES)
        self.joiner = nn.Linear(8, TRIAL_CLASSES)
        self.trial_gain = 1.0

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        hidden, _ = self.encoder(self.preprocessor(batch.features))  # (B, T, 8)
        last = hidden[torch.arange(len(batch)), batch.feature_lengths - 1] * self.trial_gain
        return self.ctc_head(hidden), self.joiner(last)


def frame_labels(batch: Batch) -> Tensor:
    """(B, T): which of the first features is largest; -100 beyond the length."""
    labels = batch.features[..., :FRAME_CLASSES].argmax(-1)
    padding = torch.arange(labels.shape[1]) >= batch.feature_lengths[:, None]
    return labels.masked_fill(padding, -100)


class ToyObjective(Objective):
    def __init__(self, model: ToyModel, weights: Mapping[str, float], task: "ToyTask") -> None:
        super().__init__()
        self.model = model
        self.weights = weights
        self.task = task

    def forward(self, batch: Batch) -> LossTerms:
        frame_logits, trial_logits = self.model(batch)
        terms: LossTerms = {}
        counts = self.counts(batch)
        if "ctc" in self.weights:
            ctc = F.cross_entropy(frame_logits.transpose(1, 2), frame_labels(batch), reduction="sum")
            terms["ctc"] = (ctc, torch.tensor(counts["ctc"]))
        if "rnnt" in self.weights:
            logits = trial_logits.detach() if self.task.fault == "detached" else trial_logits
            rnnt = F.cross_entropy(logits, batch.targets[:, 0], reduction="sum")
            terms["rnnt"] = (rnnt, torch.tensor(counts["rnnt"]))
        if self.task.fault == "miscounted":
            terms["ctc"] = (terms["ctc"][0], terms["ctc"][1] + 1)
        if self.task.fault == "steep":  # finite, with the infinite slope of a square root at zero
            terms["ctc"] = (terms["ctc"][0] + (terms["ctc"][0] * 0).sqrt(), terms["ctc"][1])
        return terms

    def counts(self, batch: Batch) -> dict[str, float]:
        every = {"ctc": float(batch.feature_lengths.sum()), "rnnt": float(len(batch))}
        return {term: every[term] for term in self.weights}


@dataclass
class ToyLoader:
    """Batch i of an epoch holds trials i * world * size ... of the epoch's order, dealt out to ranks in turn."""

    task: "ToyTask"
    rank: int
    world_size: int
    batch_size: int
    steps_per_epoch: int

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        torch.rand(1)  # as torch's DataLoader, which draws a seed from the global stream whenever it is started
        order = np.random.default_rng([self.task.seed, epoch]).permutation(len(self.task.trials))
        for number in range(start_batch, self.steps_per_epoch):
            self.task.before_batch(self.rank, epoch, number)
            first = (number * self.world_size + self.rank) * self.batch_size
            batch = collate([self.task.trials[i] for i in order[first : first + self.batch_size]], {"s0": 0})
            if self.task.nan_at == (self.rank, epoch, number):
                batch.features[0, 0] = torch.nan
            yield batch


class ToyTask:
    """`nan_at`, `kill_at` (SIGKILL) and `signal_at` (SIGTERM) are (rank, epoch, batch).

    `fault`: "detached" cuts the rnnt term off its parameters, "dead" silences the joiner's input, "miscounted" lets
    forward return another ctc count, "steep" gives the ctc term an infinite slope.
    """

    select_metric = "val/per"

    def __init__(
        self,
        *,
        num_trials: int = 24,
        batch_size: int = 4,
        dropout: float = 0.2,
        seed: int = 0,
        fault: str | None = None,
        nan_at: tuple[int, int, int] | None = None,
        kill_at: tuple[int, int, int] | None = None,
        signal_at: tuple[int, int, int] | None = None,
        metrics: list[float] | None = None,
    ) -> None:
        self.trials = [make_trial(i) for i in range(num_trials)]
        self.batch_size, self.dropout, self.seed, self.fault = batch_size, dropout, seed, fault
        self.nan_at, self.kill_at, self.signal_at = nan_at, kill_at, signal_at
        self.scripted_metrics = metrics  # returned in turn instead of measured ones
        self.evaluations = self.batches_drawn = 0

    def setup(self) -> None:
        self._model = ToyModel(self.dropout)
        self._model.trial_gain = 0.0 if self.fault == "dead" else 1.0

    @property
    def model(self) -> ToyModel:
        return self._model

    def modules(self) -> Mapping[str, nn.Module]:
        return {name: getattr(self.model, name) for name in MODULES}

    def train_loader(self, phase: PhaseConfig, rank: int, world_size: int) -> ToyLoader:
        steps = len(self.trials) // (self.batch_size * world_size)
        return ToyLoader(self, rank, world_size, self.batch_size, steps)

    def objective(self, phase: PhaseConfig) -> Objective:
        return ToyObjective(self.model, self.loss_weights(phase), self)

    def loss_weights(self, phase: PhaseConfig) -> dict[str, float]:
        weights = {f.name: getattr(phase.loss, f.name) for f in fields(phase.loss)}
        return {term: weight for term, weight in weights.items() if weight}

    def evaluate(self, ranks: Ranks) -> dict[str, float]:
        assert not any(module.training for module in self.model.modules())
        torch.rand(3)
        np.random.rand(3)
        self.evaluations += 1
        if self.scripted_metrics is not None:
            return {"val/per": self.scripted_metrics[self.evaluations - 1]}
        batch = collate([make_trial(i, "val") for i in range(ranks.rank, 16, ranks.world_size)], {"s0": 0})
        labels = frame_labels(batch)
        with torch.no_grad():
            wrong = (self.model(batch)[0].argmax(-1) != labels)[labels >= 0]
        shares = ranks.gather_objects((int(wrong.sum()), len(wrong)))
        return {"val/per": sum(errors for errors, _ in shares) / sum(frames for _, frames in shares)}

    def describe(self) -> dict[str, Any]:
        return {"sessions": ["s0"]}

    def before_batch(self, rank: int, epoch: int, number: int) -> None:
        self.batches_drawn += 1
        if self.kill_at == (rank, epoch, number):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.signal_at == (rank, epoch, number):
            os.kill(os.getpid(), signal.SIGTERM)


def phase(*modules: str, **values: Any) -> PhaseConfig:
    """A phase that trains `modules`; ctc and rnnt with weight where given."""
    loss = LossWeights(ctc=values.pop("ctc", 0.0), rnnt=values.pop("rnnt", 0.0))
    return PhaseConfig(train=list(modules), loss=loss, **values)


def two_phases() -> dict[str, PhaseConfig]:
    """Frames first, then both losses with a frozen preprocessor; 6 batches of 4 an epoch, 2 to a step: 6 + 7 steps."""
    return {
        "warmup": phase("preprocessor", "encoder", "ctc_head", ctc=1.0, epochs=2.0, evaluate_every_epochs=1.0),
        "joint": phase("encoder", "ctc_head", "joiner", ctc=0.5, rnnt=0.5, steps=7),
    }


def make_config(phases: dict[str, PhaseConfig] | None = None, **values: Any) -> TrainConfig:
    optim = {"lr": 0.02, "warmup_steps": 3, "accumulation": 2} | values.pop("optim", {})
    checkpoint = {"every_steps": 4, "keep": 2} | values.pop("checkpoint", {})
    return TrainConfig(
        run_name="toy",
        run_dir="runs/toy",
        data=DataConfig(root="toy"),
        curriculum=CurriculumConfig(phases=two_phases() if phases is None else phases),
        optim=OptimConfig(**optim),
        checkpoint=CheckpointConfig(**checkpoint),
        parallel=ParallelConfig(device="cpu", threads=1),
        logging=LoggingConfig(progress=False, tensorboard=False, every_steps=1),
        **values,
    )


def parameters(task: ToyTask) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in task.model.named_parameters()}
