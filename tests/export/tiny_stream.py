"""A tiny causal model with random weights, as a source of exports and as a checkpoint."""

from pathlib import Path

import torch

from mode_ssm.config import (
    DataConfig,
    DenoiserConfig,
    EncoderConfig,
    HeadsConfig,
    ModeConfig,
    ModelConfig,
    ModelKind,
    SessionAdapter,
    Smoothing,
    StemConfig,
    TrainConfig,
)
from mode_ssm.export.bundle import Source
from mode_ssm.tasks.transcription import build_model
from mode_ssm.train.checkpoint import save_checkpoint

FEATURE_DIM = 6
SESSIONS = ["t15.2023.08.11", "t15.2023.08.13"]


def tiny_config(
    adapter: SessionAdapter = SessionAdapter.affine,
    smoothing: Smoothing = Smoothing.symmetric,
    root: str = "",
    stem: dict[str, object] | None = None,
    **encoder: object,
) -> TrainConfig:
    projection = 5 if adapter is SessionAdapter.projection else None
    return TrainConfig(
        data=DataConfig(root=root, feature_dim=FEATURE_DIM, smoothing=smoothing),
        model=ModelConfig(
            d_model=24,
            session_adapter=adapter,
            stem=StemConfig(**{"kernel_size": 7, "projection": projection, **(stem or {})}),
            encoder=EncoderConfig(**{"n_layers": 2, "d_state": 8, "headdim": 8, **encoder}),
            mode=ModeConfig(hidden=8, n_modes=3),
            denoiser=DenoiserConfig(hidden=16, n_steps=3),
            heads=HeadsConfig(d_joint=12),
        ),
    )


def tiny_weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = build_model(config, len(SESSIONS), num_blocks=1)
    for parameter in model.parameters():  # away from special starting values
        parameter.data += 0.1 * torch.randn_like(parameter)
    rows = len(SESSIONS), FEATURE_DIM
    model.preprocessor.set_statistics(
        torch.randn(FEATURE_DIM), torch.rand(FEATURE_DIM) + 0.5, torch.randn(rows), torch.rand(rows) + 0.5
    )
    return model.state_dict()


def tiny_source(**changes: object) -> Source:
    config = tiny_config(**changes)
    model = build_model(config, len(SESSIONS), num_blocks=1).eval().requires_grad_(False)
    model.load_state_dict(tiny_weights(config))
    return Source("step_00000001 of tiny", model, config.data, SESSIONS)


def write_checkpoint(run_dir: Path, kind: ModelKind = ModelKind.mode_ssm, **changes: object) -> Path:
    """A run directory with one checkpoint, and what a task would say of it."""
    config = tiny_config(**changes)
    config.model.kind = kind
    description = {"sessions": SESSIONS, "num_blocks": 1, "num_parameters": 0}
    save_checkpoint(
        run_dir,
        1,
        weights=tiny_weights(config),
        optimizer_state={},
        rng_states=[],
        config=config,
        state={"loop": {"step": 1}, "description": description},
    )
    return run_dir
