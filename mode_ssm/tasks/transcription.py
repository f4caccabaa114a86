"""The transcription task: recordings of attempted speech to phonemes, MODE_SSM, its objective, quick validation."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mode_ssm.config import PhaseConfig, TrainConfig
from mode_ssm.data.t15_format import SPLITS
from mode_ssm.decode.greedy import greedy_ctc_batch
from mode_ssm.metrics import aggregate, phoneme_errors
from mode_ssm.models.mode_ssm import MODE_SSM
from mode_ssm.tasks.task import Objective, ResumableLoader
from mode_ssm.tasks.transcription_data import TranscriptionData
from mode_ssm.tasks.transcription_objective import TranscriptionObjective, loss_weights


def build_model(config: TrainConfig, num_sessions: int, num_blocks: int) -> MODE_SSM:
    return MODE_SSM(config.model, config.data.feature_dim, num_sessions, num_blocks)


def restore_model(config: TrainConfig, description: Mapping[str, Any], weights: dict[str, Tensor]) -> MODE_SSM:
    """The model of a checkpoint, without its data: `description` is what `describe` gave when it was written."""
    model = build_model(config, len(description["sessions"]), description["num_blocks"])
    model.load_state_dict(weights)
    return model.eval()


def parameter_summary(model: MODE_SSM) -> str:
    """`MODE_SSM: 30,123,456 parameters (preprocessor 12,345,678, ...)`."""
    counts = {name: sum(p.numel() for p in getattr(model, name).parameters()) for name in MODE_SSM.MODULES}
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return f"MODE_SSM: {sum(counts.values()):,} parameters ({parts})"


class TranscriptionTask:
    """Implements `Task`."""

    select_metric = "val/per"

    def __init__(self, config: TrainConfig, device: torch.device, progress: bool = True) -> None:
        self.config, self.device, self.progress = config, device, progress
        self.data: TranscriptionData
        self._model: MODE_SSM

    def setup(self) -> None:
        config = self.config
        self.data = TranscriptionData.open(config.data, config.seed, progress=self.progress)
        self.data.require_frames(config.model.stem.stride)
        torch.manual_seed(config.seed)  # the same weights on every rank
        self._model = build_model(config, len(self.data.sessions), len(self.data.blocks()))
        overall, by_session = self.data.statistics()
        self._model.preprocessor.set_statistics(
            torch.from_numpy(overall.mean),
            torch.from_numpy(overall.std),
            torch.stack([torch.from_numpy(s.mean) for s in by_session]),
            torch.stack([torch.from_numpy(s.std) for s in by_session]),
        )
        self._model.to(self.device)
        if self.progress:
            print(self.headline(), flush=True)

    def headline(self) -> str:
        """One line on model and data."""
        trials = " / ".join(f"{len(self.data.index.trials[split])} {split}" for split in SPLITS)
        return f"{parameter_summary(self.model)}; {len(self.data.sessions)} training sessions, {trials} trials"

    @property
    def model(self) -> MODE_SSM:
        return self._model

    def modules(self) -> Mapping[str, nn.Module]:
        return {name: getattr(self.model, name) for name in MODE_SSM.MODULES}

    def train_loader(self, phase: PhaseConfig, rank: int, world_size: int) -> ResumableLoader:
        return self.data.train_loader(rank, world_size)

    def objective(self, phase: PhaseConfig) -> Objective:
        block_rows = {block: row for row, block in enumerate(self.data.blocks())}
        return TranscriptionObjective(self.model, phase, block_rows, self.config.model.denoiser.corruption_std)

    def loss_weights(self, phase: PhaseConfig) -> dict[str, float]:
        return loss_weights(phase)

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """`val/per` of greedy CTC over the whole split."""
        errors = []
        for batch in self.data.batches(self.data.trials("val")):
            moved = batch.to(self.device)
            output = self.model(moved.features, moved.feature_lengths, moved.session_ids)
            log_probs = output.phoneme_logits.float().log_softmax(-1).cpu()
            for info, hypothesis in zip(batch.trials, greedy_ctc_batch(log_probs, output.lengths.cpu()), strict=True):
                errors.append(phoneme_errors(list(self.data.reference(info).phonemes), hypothesis))
        return {"val/per": aggregate(errors).rate}

    def describe(self) -> dict[str, Any]:
        return {
            "task": self.config.task.name.value,
            "sessions": self.data.sessions,
            "num_blocks": len(self.data.blocks()),
            "num_parameters": sum(p.numel() for p in self.model.parameters()),
        }
