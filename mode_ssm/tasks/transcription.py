"""The transcription task: recordings of attempted speech to phonemes, the model, its objective, quick validation."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mode_ssm.config import ModelConfig, ModelKind, PhaseConfig, TrainConfig
from mode_ssm.data.batch import TrialInfo
from mode_ssm.data.t15_format import SPLITS
from mode_ssm.decode.greedy import greedy_ctc_batch
from mode_ssm.decode.transducer_beam import greedy_transducer
from mode_ssm.metrics import ErrorRate, aggregate, phoneme_errors
from mode_ssm.models.gru_baseline import GRUBaseline
from mode_ssm.models.mode_ssm import MODE_SSM
from mode_ssm.models.phoneme_model import PhonemeModel
from mode_ssm.models.transformer_baseline import TransformerBaseline
from mode_ssm.tasks.decoding import HeadTransducer
from mode_ssm.tasks.sharding import Ranks, batch_units, deal
from mode_ssm.tasks.task import Objective, ResumableLoader
from mode_ssm.tasks.transcription_data import TranscriptionData
from mode_ssm.tasks.transcription_objective import CtcObjective, TranscriptionObjective, loss_weights

MODELS: Mapping[ModelKind, type[PhonemeModel]] = {
    ModelKind.mode_ssm: MODE_SSM,
    ModelKind.gru: GRUBaseline,
    ModelKind.transformer: TransformerBaseline,
}


def build_model(config: TrainConfig, num_sessions: int, num_blocks: int) -> PhonemeModel:
    if config.model.kind is ModelKind.gru:
        return GRUBaseline(config.model, config.data.feature_dim, num_sessions)
    if config.model.kind is ModelKind.transformer:
        return TransformerBaseline(config.model, config.data.feature_dim, num_sessions)
    return MODE_SSM(config.model, config.data.feature_dim, num_sessions, num_blocks)


def num_frames(config: ModelConfig, num_bins: int) -> int:
    """Frames that the model makes of a trial."""
    return int(MODELS[config.kind].frame_lengths(config, torch.tensor(num_bins)))


def restore_model(config: TrainConfig, description: Mapping[str, Any], weights: dict[str, Tensor]) -> PhonemeModel:
    """The model of a checkpoint, without its data: `description` is what `describe` gave when it was written."""
    model = build_model(config, len(description["sessions"]), description["num_blocks"])
    model.load_state_dict(weights)
    return model.eval()


def parameter_summary(model: PhonemeModel) -> str:
    """`MODE_SSM: 30,123,456 parameters (preprocessor 12,345,678, ...)`."""
    counts = {name: sum(p.numel() for p in getattr(model, name).parameters()) for name in model.MODULES}
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return f"{type(model).__name__}: {sum(counts.values()):,} parameters ({parts})"


class TranscriptionTask:
    """Implements `Task`."""

    def __init__(self, config: TrainConfig, device: torch.device, progress: bool = True) -> None:
        self.config, self.device, self.progress = config, device, progress
        self.select_metric = "val/per_mean" if config.model.kind is ModelKind.mode_ssm else "val/per"
        self.data: TranscriptionData
        self._model: PhonemeModel

    def setup(self) -> None:
        config = self.config
        self.data = TranscriptionData.open(config.data, config.seed, progress=self.progress)
        for split in ("train", "val"):  # the first to learn from, the second to choose by; refused before hours of work
            self.data.trials(split)
        self.data.require_frames(lambda num_bins: num_frames(config.model, num_bins))
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
    def model(self) -> PhonemeModel:
        return self._model

    def modules(self) -> Mapping[str, nn.Module]:
        return {name: getattr(self.model, name) for name in self.model.MODULES}

    def train_loader(self, phase: PhaseConfig, rank: int, world_size: int) -> ResumableLoader:
        return self.data.train_loader(rank, world_size, self.device)

    def objective(self, phase: PhaseConfig) -> Objective:
        if not isinstance(self.model, MODE_SSM):
            return CtcObjective(self.model, phase)
        block_rows = {block: row for row, block in enumerate(self.data.blocks())}
        return TranscriptionObjective(self.model, phase, block_rows, self.config.model.denoiser.corruption_std)

    def loss_weights(self, phase: PhaseConfig) -> dict[str, float]:
        return loss_weights(phase)

    def evaluate(self, ranks: Ranks) -> dict[str, float]:
        """Phoneme error rates over the validation split without a beam: `val/per` of CTC and, of models with a
        transducer, `val/per_rnnt` and their mean, which picks the best checkpoint because decoding uses both heads."""
        units = batch_units(self.data.trials("val"), self.config.data.eval_batch_size)
        own = deal(units, ranks.world_size)[ranks.rank]
        shares = ranks.gather_objects(ranks.together(lambda: self._greedy_errors(own)))
        per = aggregate(ctc for ctc, _ in shares).rate
        if not isinstance(self.model, MODE_SSM):
            return {"val/per": per}
        per_rnnt = aggregate(rnnt for _, rnnt in shares).rate
        return {"val/per": per, "val/per_rnnt": per_rnnt, "val/per_mean": (per + per_rnnt) / 2}

    @torch.inference_mode()
    def _greedy_errors(self, trials: Sequence[TrialInfo]) -> tuple[ErrorRate, ErrorRate]:
        """Phoneme errors of CTC and of the transducer; of a model without one the second is empty."""
        ctc_errors: list[ErrorRate] = []
        rnnt_errors: list[ErrorRate] = []
        transducer = HeadTransducer(self.model) if isinstance(self.model, MODE_SSM) else None
        for batch in self.data.batches(trials):
            moved = batch.to(self.device)
            output = self.model(moved.features, moved.feature_lengths, moved.session_ids)
            references = [self.data.reference(info).phonemes.tolist() for info in batch.trials]
            ctc = greedy_ctc_batch(output.phoneme_logits.cpu(), output.lengths.cpu())
            ctc_errors += map(phoneme_errors, references, ctc)
            if transducer is not None:
                frames = transducer.project(output.encoder_out)
                rnnt = greedy_transducer(transducer, frames, output.lengths, self.config.decode.rnnt_max_symbols)
                rnnt_errors += map(phoneme_errors, references, rnnt)
        return aggregate(ctc_errors), aggregate(rnnt_errors)

    def describe(self) -> dict[str, Any]:
        return {
            "task": self.config.task.name.value,
            "sessions": self.data.sessions,
            "num_blocks": len(self.data.blocks()),
            "num_parameters": sum(p.numel() for p in self.model.parameters()),
        }
