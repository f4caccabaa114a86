"""A tiny model and ragged labelled batches for the tests of the transcription task."""

import torch

from mode_ssm.config import (
    DenoiserConfig,
    EncoderConfig,
    GruConfig,
    HeadsConfig,
    LossWeights,
    ModeConfig,
    ModelConfig,
    ModelKind,
    PhaseConfig,
    SessionAdapter,
    StemConfig,
    TransformerConfig,
)
from mode_ssm.data.batch import Batch, TrialInfo
from mode_ssm.models.gru_baseline import GRUBaseline
from mode_ssm.models.mode_ssm import MODE_SSM
from mode_ssm.models.phoneme_model import PhonemeModel
from mode_ssm.models.transformer_baseline import TransformerBaseline

FEATURES = 6
BLOCK_ROWS = {("s0", 1): 0, ("s0", 2): 1, ("s1", 1): 2}
PHASES = {
    "ctc_warmup": PhaseConfig(steps=1, train=["preprocessor", "encoder", "ctc_head"], loss=LossWeights(ctc=1)),
    "joint": PhaseConfig(
        steps=1,
        train=["preprocessor", "encoder", "ctc_head", "predictor", "joiner"],
        loss=LossWeights(rnnt=1, ctc=0.5),
    ),
    "mode": PhaseConfig(
        steps=1,
        train=["preprocessor", "encoder", "mode_head", "ctc_head", "predictor", "joiner"],
        loss=LossWeights(rnnt=1, ctc=0.5, mode_information=0.1, mode_block=0.1),
    ),
    "flow_bridge": PhaseConfig(
        steps=1,
        train=["denoiser", "ctc_head", "predictor", "joiner"],
        loss=LossWeights(flow=1, rnnt=1, ctc=0.5),
    ),
}


def build_model(seed: int = 0) -> MODE_SSM:
    torch.manual_seed(seed)
    config = ModelConfig(
        d_model=16,
        session_adapter=SessionAdapter.affine,
        stem=StemConfig(kernel_size=4, stride=2),
        encoder=EncoderConfig(n_layers=2, d_state=8, headdim=8, dropout=0.0, bidirectional=True),
        mode=ModeConfig(hidden=8),
        denoiser=DenoiserConfig(hidden=16),
        heads=HeadsConfig(d_joint=12, predictor_dropout=0.0),
    )
    return MODE_SSM(config, FEATURES, num_sessions=2, num_blocks=len(BLOCK_ROWS))


def build_baseline(kind: ModelKind) -> PhonemeModel:
    torch.manual_seed(0)
    transformer = TransformerConfig(
        session_layers=True, patch_size=2, d_model=16, n_layers=2, n_heads=2, head_dim=8, dropout=0.0,
        input_dropout=0.0, time_mask_max_fraction=0.2,
    )  # fmt: skip
    gru = GruConfig(patch_size=4, patch_stride=2, hidden=16, n_layers=2, dropout=0.0, input_dropout=0.0)
    config = ModelConfig(kind=kind, gru=gru, transformer=transformer)
    built = GRUBaseline if kind is ModelKind.gru else TransformerBaseline
    return built(config, FEATURES, num_sessions=2)


def make_batch(rows: list[int]) -> Batch:
    """Trials `rows` of a fixed ragged set, padded to their own longest."""
    generator = torch.Generator().manual_seed(0)
    lengths, labels = [40, 23, 31, 36], [7, 3, 5, 6]
    places = [("s0", 1), ("s1", 1), ("s0", 2), ("s0", 1)]
    features = [torch.randn(n, FEATURES, generator=generator) for n in lengths]
    targets = [torch.randint(1, 41, (n,), generator=generator) for n in labels]
    return Batch(
        features=torch.nn.utils.rnn.pad_sequence([features[r] for r in rows], batch_first=True),
        feature_lengths=torch.tensor([lengths[r] for r in rows]),
        targets=torch.nn.utils.rnn.pad_sequence([targets[r] for r in rows], batch_first=True),
        target_lengths=torch.tensor([labels[r] for r in rows]),
        session_ids=torch.tensor([int(places[r][0][1]) for r in rows]),
        trials=tuple(
            TrialInfo(
                session=places[r][0],
                split="train",
                block=places[r][1],
                trial=r,
                path="",
                key=f"trial_{r:04d}",
                num_bins=lengths[r],
                num_phonemes=labels[r],
                sentence="",
            )
            for r in rows
        ),
    )
