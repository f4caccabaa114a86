"""The loss terms of transcription: CTC, transducer, the mode's regularisers, the flow bridge.

Every term is a sum over trials with the count that normalises it: phonemes for CTC and transducer (trials where the
phase says so), trials for the mode, frames for the flow. No term couples the trials of a batch, so that sums over ranks
and accumulated batches equal those of one large batch.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mode_ssm.config import LossNormaliser, PhaseConfig
from mode_ssm.data.batch import Batch
from mode_ssm.models.denoise_flow import sample_path
from mode_ssm.models.mode_ssm import MODE_SSM
from mode_ssm.models.phoneme_model import PhonemeModel
from mode_ssm.ops.joint_transducer_loss import joint_transducer_loss
from mode_ssm.ops.lengths import length_mask, strided_lengths
from mode_ssm.tasks.task import LossTerms, Objective
from mode_ssm.vocab import BLANK

BLOCK_SHARPNESS = 5.0  # how fast a block that stands out is assigned; 2 to 5 found the simulator's blocks, 20 did not


def loss_weights(phase: PhaseConfig) -> dict[str, float]:
    """The non-zero weights of a phase by term."""
    names = ("ctc", "rnnt", "mode_information", "mode_block", "flow")
    return {name: weight for name in names if (weight := float(getattr(phase.loss, name))) != 0}


def label_count(batch: Batch, normaliser: LossNormaliser) -> Tensor:
    """What divides the sums of CTC and transducer."""
    phonemes = batch.target_lengths.sum()
    return phonemes if normaliser is LossNormaliser.phonemes else torch.full_like(phonemes, len(batch))


def ctc_sum(logits: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
    """-log P(targets) summed over trials: logits (B, T', V), lengths (B,) in frames."""
    log_probs = logits.float().log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(log_probs, batch.targets, lengths, batch.target_lengths, blank=BLANK, reduction="sum")


class CtcObjective(Objective):
    """CTC alone, for models that have no other head."""

    model: PhonemeModel

    def __init__(self, model: PhonemeModel, phase: PhaseConfig) -> None:
        super().__init__()
        self.model, self.normaliser = model, phase.normaliser

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"ctc": float(label_count(batch, self.normaliser))}

    def forward(self, batch: Batch) -> LossTerms:
        output = self.model(batch.features, batch.feature_lengths, batch.session_ids)
        return {"ctc": (ctc_sum(output.phoneme_logits, output.lengths, batch), label_count(batch, self.normaliser))}


class TranscriptionObjective(Objective):
    """`forward(batch) -> {term: (sum, count)}` for the terms that the phase weighs.

    `block_rows` maps (session, block) of a training trial to its row in the mode head's memory.
    """

    model: MODE_SSM
    block_sessions: Tensor

    def __init__(
        self,
        model: MODE_SSM,
        phase: PhaseConfig,
        block_rows: dict[tuple[str, int], int],
        corruption_std: float,
    ) -> None:
        super().__init__()
        self.model = model
        self.terms, self.normaliser = frozenset(loss_weights(phase)), phase.normaliser
        self.denoise = "denoiser" in phase.train
        self.block_rows = block_rows
        sessions = sorted({session for session, _ in block_rows})
        by_row = sorted(block_rows, key=lambda block: block_rows[block])
        session_of_row = torch.tensor([sessions.index(session) for session, _ in by_row])
        self.register_buffer("block_sessions", session_of_row, persistent=False)
        self.corruption_std = corruption_std

    def counts(self, batch: Batch) -> dict[str, float]:
        labels = float(label_count(batch, self.normaliser))
        frames = float(strided_lengths(batch.feature_lengths, self.model.frame_stride).sum())
        by_term = {"ctc": labels, "rnnt": labels, "flow": frames}
        return {term: by_term.get(term, float(len(batch))) for term in sorted(self.terms)}

    def forward(self, batch: Batch) -> LossTerms:
        terms: LossTerms = {}
        if "flow" in self.terms:
            encoder_out, lengths, mode_log_probs = self._bridge(batch, terms)
        else:
            encoder_out, lengths, mode_log_probs = self.model.encode(
                batch.features, batch.feature_lengths, batch.session_ids
            )
            if self.denoise:
                encoder_out = self.model.denoiser(encoder_out)
        if "ctc" in self.terms:
            total = ctc_sum(self.model.ctc_head(encoder_out), lengths, batch)
            terms["ctc"] = total, label_count(batch, self.normaliser)
        if "rnnt" in self.terms:
            total = self._transducer(encoder_out, lengths, batch)
            terms["rnnt"] = total, label_count(batch, self.normaliser)
        if self.terms & {"mode_information", "mode_block"}:
            self._mode(mode_log_probs, batch, terms)
        return terms

    def _transducer(self, encoder_out: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
        predictor, joiner = self.model.predictor, self.model.joiner
        losses = joint_transducer_loss(
            joiner.encoder_proj(encoder_out),
            predictor(predictor.contexts(batch.targets)),
            joiner.output.weight,
            joiner.output.bias,
            batch.targets,
            lengths,
            batch.target_lengths,
            blank=BLANK,
        )
        return losses.sum()

    def _bridge(self, batch: Batch, terms: LossTerms) -> tuple[Tensor, Tensor, Tensor]:
        """Flow matching from the encoding of a further degraded recording to that of the recording as it came."""
        with torch.no_grad():
            x_1, lengths, _ = self.model.encode(batch.features, batch.feature_lengths, batch.session_ids)
        level = self.corruption_std * torch.rand(len(batch), 1, 1, device=batch.features.device)
        noise = torch.randn_like(batch.features) * level * self.model.preprocessor.feature_std
        x_0, _, mode_log_probs = self.model.encode(batch.features + noise, batch.feature_lengths, batch.session_ids)
        path = sample_path(x_0, x_1, torch.rand(len(batch), device=x_1.device))
        error = (self.model.denoiser.velocity(path.x_t, path.t) - path.velocity).float().square().mean(-1)
        mask = length_mask(lengths, error.shape[1])
        terms["flow"] = (error * mask).sum(), lengths.sum()
        return self.model.denoiser(x_0), lengths, mode_log_probs

    def _mode(self, log_probs: Tensor, batch: Batch, terms: LossTerms) -> None:
        head = self.model.mode_head
        rows = torch.tensor([self.block_rows[t.session, t.block] for t in batch.trials], device=log_probs.device)
        log_probs = log_probs.float()
        count = torch.tensor(float(len(batch)), device=log_probs.device)
        log_block = head.block_posterior.clamp(min=1e-6).log()  # (rows, K)
        log_session = session_means(log_block, self.block_sessions)[self.block_sessions[rows]]  # (B, K)
        if "mode_information" in self.terms:
            # With the marginal held constant, the gradient of -KL(p || marginal) is that of H(z | X) - H(z | session).
            divergence = (log_probs.exp() * (log_probs - log_session.log_softmax(-1))).sum(-1)
            terms["mode_information"] = (math.log(log_probs.shape[-1]) - divergence).sum(), count
        if "mode_block" in self.terms:
            # A block belongs where it stands out from its session's blocks. Compared with nothing, or with a running
            # mean over trials, all blocks follow whichever mode is a little ahead at the start.
            target = (BLOCK_SHARPNESS * (log_block[rows] - log_session)).softmax(-1)
            terms["mode_block"] = -(target * log_probs).sum(), count
        if self.training:
            head.observe(log_probs.detach(), rows)


def session_means(log_block: Tensor, block_sessions: Tensor) -> Tensor:
    """Mean over each session's blocks: log_block (rows, K), block_sessions (rows,) -> (sessions, K)."""
    counts = torch.bincount(block_sessions).to(log_block.dtype).unsqueeze(-1)
    return log_block.new_zeros(len(counts), log_block.shape[-1]).index_add(0, block_sessions, log_block) / counts
