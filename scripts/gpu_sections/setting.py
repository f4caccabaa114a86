"""The model, objective and random batches that sections share, at full size or at the size of a rehearsal.

Shapes: B trials, T frames of the encoder, U phonemes.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from mode_ssm.compose import load_train_config
from mode_ssm.config import ModelConfig, PhaseConfig, TrainConfig
from mode_ssm.data.batch import Batch, TrialInfo
from mode_ssm.models.mode_ssm import MODE_SSM
from mode_ssm.tasks.transcription_objective import TranscriptionObjective
from mode_ssm.vocab import NUM_CLASSES

SESSIONS = 45
FULL = ("experiment=t15_mode_ssm",)
TOY = (
    "experiment=t15_mode_ssm", "model=mode_ssm_small", "model.d_model=32", "model.session_adapter=none",
    "model.stem.projection=16", "model.encoder.n_layers=2", "model.encoder.d_state=8", "model.encoder.headdim=16",
    "model.encoder.bidirectional=false", "model.denoiser.hidden=16", "model.heads.d_joint=16", "data.feature_dim=12",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """Where and how large. `rehearse` shrinks everything, so that the script itself can be tested without a GPU."""

    device: str
    rehearse: bool

    @property
    def batch(self) -> int:
        return 4 if self.rehearse else 64

    @property
    def frames(self) -> int:
        return 12 if self.rehearse else 500

    @property
    def labels(self) -> int:
        return 5 if self.rehearse else 60

    @property
    def channels(self) -> int:
        """d_inner of the ops."""
        return 32 if self.rehearse else 1024

    @property
    def repeats(self) -> int:
        return 1 if self.rehearse else 20

    @cached_property
    def config(self) -> TrainConfig:
        """t15_mode_ssm."""
        return load_train_config(TOY if self.rehearse else FULL)

    def phase(self, name: str) -> PhaseConfig:
        return self.config.curriculum.phases[name]

    def objective(self, phase: str, **encoder: object) -> TranscriptionObjective:
        """The objective of a phase around a new model, whose encoder's settings are changed as given."""
        changed = replace(self.config.model.encoder, **encoder)
        model_config: ModelConfig = replace(self.config.model, encoder=changed)
        torch.manual_seed(0)
        model = MODE_SSM(model_config, self.config.data.feature_dim, SESSIONS)
        trained = self.phase(phase).train
        for name in MODE_SSM.MODULES:
            getattr(model, name).requires_grad_(name in trained)
        corruption = self.config.model.denoiser.corruption_std
        return TranscriptionObjective(model, self.phase(phase), {("session", 0): 0}, corruption).to(self.device)

    def batch_of(self, seed: int) -> Batch:
        """B random trials of T frames and U phonemes each, all of them of odd number."""
        generator = torch.Generator().manual_seed(seed)
        bins, size = self.frames * self.config.model.stem.stride, self.batch
        info = TrialInfo(
            session="session", split="train", block=0, trial=0, path="", key="", num_bins=bins,
            num_phonemes=self.labels, sentence=None,
        )  # fmt: skip
        return Batch(
            features=torch.randn(size, bins, self.config.data.feature_dim, generator=generator),
            feature_lengths=torch.full((size,), bins),
            targets=2 * torch.randint(NUM_CLASSES // 2, (size, self.labels), generator=generator) + 1,
            target_lengths=torch.full((size,), self.labels),
            session_ids=torch.randint(SESSIONS, (size,), generator=generator),
            trials=(info,) * size,
        ).to(self.device)


def loss_of(objective: TranscriptionObjective, batch: Batch, phase: PhaseConfig, bf16: bool) -> torch.Tensor:
    """The weighted mean of a phase's terms, as the trainer divides them."""
    with torch.autocast(batch.features.device.type, dtype=torch.bfloat16, enabled=bf16):
        terms = objective(batch)
    total = [getattr(phase.loss, name) * value / count for name, (value, count) in terms.items()]
    return torch.stack(total).sum()
