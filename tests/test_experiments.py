"""Every experiment composes and builds at full size; the full recipe is the published one."""

from pathlib import Path

import pytest
import torch

from mode_ssm.compose import load_train_config
from mode_ssm.config import Mixer, ModelKind, Precision, SessionAdapter
from mode_ssm.models.transformer_lm import TransformerLM
from mode_ssm.tasks.transcription import build_model, num_frames, parameter_summary
from mode_ssm.tasks.transcription_objective import loss_weights
from mode_ssm.train.curriculum import check_curriculum, resolve_curriculum
from mode_ssm.vocab import NUM_CLASSES

FOLDER = Path(__file__).parents[1] / "configs" / "experiment"
EXPERIMENTS = sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.stem.startswith("lm_"))
T15_SESSIONS = 45


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_composes_and_builds_at_full_size(name: str) -> None:
    config = load_train_config([f"experiment={name}"])
    model = build_model(config, num_sessions=2, num_blocks=3)
    features, lengths = torch.zeros(2, 64, config.data.feature_dim), torch.tensor([64, 40])
    with torch.no_grad():
        output = model(features, lengths, torch.zeros(2, dtype=torch.int64))
    assert output.phoneme_logits.shape == (2, num_frames(config.model, 64), NUM_CLASSES)
    assert output.lengths.tolist() == [num_frames(config.model, 64), num_frames(config.model, 40)]
    check_curriculum(config.curriculum, model.MODULES)
    names = ["ctc_warmup", "joint", "mode", "flow_bridge"] if config.model.kind is ModelKind.mode_ssm else ["ctc"]
    phases = resolve_curriculum(config.curriculum, [100] * len(names), config.optim.accumulation)
    assert [phase.name for phase in phases] == names
    assert all(loss_weights(phase.config) for phase in phases)


def test_the_small_language_model_composes_and_builds() -> None:
    config = load_train_config(["experiment=lm_small", "text.train=[train.txt]", "text.valid=[valid.txt]"])
    model = TransformerLM(config.language_model, num_tokens=20_000)
    with torch.no_grad():
        assert model(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, config.language_model.d_model)
    assert 2e6 < sum(p.numel() for p in model.parameters()) < 1e7
    check_curriculum(config.curriculum, ["language_model"])


def test_the_full_recipe_is_the_documented_one_and_reports_its_parameters() -> None:
    config = load_train_config(["experiment=t15_mode_ssm"])
    model, optim = config.model, config.optim
    encoder = model.encoder
    assert (model.d_model, encoder.d_state, encoder.n_layers, encoder.d_conv) == (512, 64, 8, 4)
    assert encoder.mixer is Mixer.mamba2
    assert model.session_adapter is SessionAdapter.affine
    assert [phase.epochs for phase in config.curriculum.phases.values()] == [10, 15, 10, 5]
    assert (optim.lr, optim.beta1, optim.beta2, optim.weight_decay) == (2e-4, 0.9, 0.98, 0.05)
    assert (optim.warmup_steps, optim.accumulation) == (5000, 4)
    assert config.parallel.precision is Precision.bf16
    with torch.device("meta"):
        built = build_model(config, T15_SESSIONS, num_blocks=200)
    summary = parameter_summary(built)
    # The session adapter by hand: 45 matrices of 512 x 512 and as many offsets.
    assert sum(p.numel() for p in built.preprocessor.sessions.parameters()) == T15_SESSIONS * (512 * 512 + 512)
    assert f"{sum(p.numel() for p in built.parameters()):,} parameters" in summary
