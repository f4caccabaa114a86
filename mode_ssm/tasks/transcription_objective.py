"""The loss terms of transcription: CTC, transducer, the mode's regularisers, the flow bridge.

Every term is a sum over trials with the count that normalises it: phonemes for CTC and transducer, trials for the
mode, frames for the flow. No term couples the trials of a batch, so that sums over ranks and accumulated batches
equal those of one large batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mode_ssm.config import PhaseConfig
from mode_ssm.data.batch import Batch
from mode_ssm.models.denoise_flow import sample_path
from mode_ssm.models.mode_ssm import MODE_SSM
from mode_ssm.ops.lengths import length_mask, strided_lengths
from mode_ssm.ops.transducer_loss import transducer_loss
from mode_ssm.tasks.task import LossTerms, Objective
from mode_ssm.vocab import BLANK


def loss_weights(phase: PhaseConfig) -> dict[str, float]:
    """The non-zero weights of a phase by term."""
    names = ("ctc", "rnnt", "mode_information", "mode_block", "flow")
    return {name: weight for name in names if (weight := float(getattr(phase.loss, name))) != 0}


class TranscriptionObjective(Objective):
    """`forward(batch) -> {term: (sum, count)}` for the terms that the phase weighs.

    `block_rows` maps (session, block) of a training trial to its row in the mode head's memory.
    """

    model: MODE_SSM

    def __init__(
        self,
        model: MODE_SSM,
        phase: PhaseConfig,
        block_rows: dict[tuple[str, int], int],
        corruption_std: float,
    ) -> None:
        super().__init__()
        self.model = model
        self.terms = frozenset(loss_weights(phase))
        self.denoise = "denoiser" in phase.train
        self.block_rows = block_rows
        self.corruption_std = corruption_std

    def counts(self, batch: Batch) -> dict[str, float]:
        phonemes = float(batch.target_lengths.sum())
        frames = float(strided_lengths(batch.feature_lengths, self.model.frame_stride).sum())
        by_term = {"ctc": phonemes, "rnnt": phonemes, "flow": frames}
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
            terms["ctc"] = self._ctc(encoder_out, lengths, batch), batch.target_lengths.sum()
        if "rnnt" in self.terms:
            logits = self.model.joint_logits(encoder_out, batch.targets)
            losses = transducer_loss(logits.float(), batch.targets, lengths, batch.target_lengths, blank=BLANK)
            terms["rnnt"] = losses.sum(), batch.target_lengths.sum()
        if self.terms & {"mode_information", "mode_block"}:
            self._mode(mode_log_probs, batch, terms)
        return terms

    def _ctc(self, encoder_out: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
        log_probs = self.model.ctc_head(encoder_out).float().log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(log_probs, batch.targets, lengths, batch.target_lengths, blank=BLANK, reduction="sum")

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
        blocks = [self.block_rows.get((t.session, t.block), -1) for t in batch.trials]
        rows = torch.tensor(blocks, device=log_probs.device)
        log_probs = log_probs.float()
        count = torch.tensor(float(len(batch)), device=log_probs.device)
        # The memory is cloned: `observe` below changes it in place before the backward pass reads it.
        marginal, block_posterior = head.marginal.clone(), head.block_posterior[rows].clone()
        if "mode_information" in self.terms:
            # With the marginal held constant, the gradient of -KL(p || marginal) is that of H(z | X) - H(z).
            divergence = (log_probs.exp() * (log_probs - marginal.log())).sum()
            terms["mode_information"] = count * torch.tensor(float(len(marginal))).log() - divergence, count
        if "mode_block" in self.terms:
            cross_entropy = -(block_posterior * log_probs).sum(-1)
            terms["mode_block"] = (cross_entropy * (rows >= 0)).sum(), count
        if self.training:
            head.observe(log_probs.detach(), rows)
