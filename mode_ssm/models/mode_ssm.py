"""MODE_SSM: stem, Mamba encoder, mode head, flow denoiser, CTC and transducer heads.

Shapes: B trials, T bins, C features, T' frames, D d_model, U phonemes, V classes, K modes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from mode_ssm.config import ModelConfig
from mode_ssm.models.denoise_flow import DenoiseFlow
from mode_ssm.models.mode_head import ModeHead
from mode_ssm.models.phoneme_model import PhonemeModel, PhonemeOutput
from mode_ssm.models.preprocessor import Preprocessor
from mode_ssm.models.rnnt_ctc_heads import CTCHead, Joiner, StatelessPredictor
from mode_ssm.models.ssm_encoder import SSMEncoder
from mode_ssm.models.streaming import StreamState
from mode_ssm.ops.lengths import strided_lengths


@dataclass(frozen=True, kw_only=True, slots=True)
class ModeSSMOutput(PhonemeOutput):
    """encoder_out (B, T', D), what both heads read; mode_log_probs (B, K), log p(z | X)."""

    encoder_out: Tensor
    mode_log_probs: Tensor


class MODE_SSM(PhonemeModel):  # noqa: N801 (the model's published name)
    """A brain-to-text decoder: features (B, T, C) -> phoneme logits and p(z | X).

    `causal` and `frame_stride` say what an output frame may depend on: bins up to (i + 1) * frame_stride - 1.
    """

    MODULES = ("preprocessor", "encoder", "mode_head", "denoiser", "ctc_head", "predictor", "joiner")

    def __init__(self, config: ModelConfig, feature_dim: int, num_sessions: int, num_blocks: int = 1) -> None:
        super().__init__()
        self.preprocessor: Preprocessor = Preprocessor(config, feature_dim, num_sessions)
        self.encoder = SSMEncoder(config.d_model, config.encoder)
        self.mode_head = ModeHead(config.d_model, config.mode, self.encoder.causal, num_blocks)
        self.denoiser = DenoiseFlow(config.d_model, config.denoiser)
        self.ctc_head = CTCHead(config.d_model)
        self.predictor = StatelessPredictor(config.heads)
        self.joiner = Joiner(config.d_model, config.heads.d_joint)
        self.causal, self.frame_stride = self.encoder.causal, config.stem.stride

    def encode(self, features: Tensor, feature_lengths: Tensor, session_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> (mode-conditioned frames (B, T', D), lengths (B,), mode_log_probs (B, K)): where the denoiser starts."""
        frames, lengths = self.preprocessor(features, feature_lengths, session_ids)
        encoded, lengths = self.encoder(frames, lengths)
        mode = self.mode_head(frames, encoded, lengths)
        return mode.conditioned, lengths, mode.log_probs

    def forward(
        self, features: Tensor, feature_lengths: Tensor, session_ids: Tensor, *, denoise: bool = True
    ) -> ModeSSMOutput:
        """session_ids (B,), -1 for unseen. `denoise=False` leaves the bridge out, as before it is trained."""
        x, lengths, mode_log_probs = self.encode(features, feature_lengths, session_ids)
        if denoise:
            x = self.denoiser(x)
        return ModeSSMOutput(
            phoneme_logits=self.ctc_head(x), lengths=lengths, encoder_out=x, mode_log_probs=mode_log_probs
        )

    def initial_state(self, session_ids: Tensor) -> StreamState:
        """The state before the first frame of trials from these sessions (B,), -1 for unseen.

        Raises `ValueError` for a model that reads the future.
        """
        batch_size = len(session_ids)
        return StreamState(
            encoder=self.encoder.initial_state(batch_size),
            stem=self.preprocessor.initial_state(session_ids),
            mode=self.mode_head.initial_state(batch_size),
            flow_times=self.denoiser.time_embeddings(),
        )

    def step(self, bins: Tensor, state: StreamState, *, denoise: bool = True) -> tuple[Tensor, Tensor, StreamState]:
        """One frame of `forward`: bins (B, stride, C) -> (log_probs (B, V), encoder_out (B, D), new state).

        The last frame of a trial may hold fewer bins. `denoise` as in `forward`.
        """
        ended = state.ends_with(bins.shape[1], self.frame_stride)
        frame, stem = self.preprocessor.step(bins, state.stem)
        encoded, encoder = self.encoder.step(frame, state.encoder)
        x, mode = self.mode_head.step(frame, encoded, state.mode)
        if denoise:
            x = self.denoiser.integrate(x, state.flow_times)
        return F.log_softmax(self.ctc_head(x), -1), x, StreamState(stem, encoder, mode, state.flow_times, ended)

    def joint_logits(self, encoder_out: Tensor, targets: Tensor) -> Tensor:
        """encoder_out (B, T', D), targets (B, U) -> the transducer lattice (B, T', U + 1, V)."""
        predictor_out = self.predictor(self.predictor.contexts(targets))
        return self.joiner(encoder_out.unsqueeze(2), predictor_out.unsqueeze(1))

    @staticmethod
    def frame_lengths(config: ModelConfig, bin_lengths: Tensor) -> Tensor:
        return strided_lengths(bin_lengths, config.stem.stride)

    def adapted_layers(self) -> Sequence[nn.Module]:
        return [self.encoder.blocks[-1]]
