"""The benchmark's GRU: size, frames, padding, causality, sessions, start. Its equations: the test of the importer."""

import pytest
import torch
from torch import Tensor

from mode_ssm.config import GruConfig, ModelConfig, ModelKind
from mode_ssm.models.gru_baseline import GRUBaseline
from mode_ssm.vocab import NUM_CLASSES

C, S = 6, 3


def build(**changes: object) -> GRUBaseline:
    torch.manual_seed(2)
    settings = {"patch_size": 5, "patch_stride": 2, "hidden": 8, "n_layers": 2, "dropout": 0.0, "input_dropout": 0.0}
    config = ModelConfig(kind=ModelKind.gru, gru=GruConfig(**(settings | changes)))  # type: ignore[arg-type]
    model = GRUBaseline(config, feature_dim=C, num_sessions=S).double().eval()
    for parameter in model.parameters():  # away from special starting values
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def batch() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(3, 30, C, dtype=torch.float64), torch.tensor([30, 11, 21]), torch.tensor([0, 2, -1])


def test_at_the_official_size_it_has_the_official_number_of_parameters() -> None:
    with torch.device("meta"):
        model = GRUBaseline(ModelConfig(kind=ModelKind.gru), feature_dim=512, num_sessions=45)
    hidden, patch = 768, 14 * 512
    sessions = 45 * (512 * 512 + 512)
    first = 3 * hidden * (patch + hidden) + 2 * 3 * hidden
    others = 4 * (3 * hidden * 2 * hidden + 2 * 3 * hidden)
    output, initial_state = hidden * 41 + 41, hidden
    assert sum(p.numel() for p in model.parameters()) == sessions + first + others + output + initial_state
    assert sessions + first + others + output + initial_state == 44_315_177


def test_frames_are_whole_patches_and_at_least_one() -> None:
    config = ModelConfig(kind=ModelKind.gru)  # 14 bins every 4
    bins = torch.tensor([3, 13, 14, 17, 18, 900])
    assert GRUBaseline.frame_lengths(config, bins).tolist() == [1, 1, 1, 1, 2, 222]


@pytest.mark.parametrize("session_layers", [True, False])
def test_padding_and_companions_change_nothing(session_layers: bool) -> None:
    model = build(session_layers=session_layers)
    x, lengths, sessions = batch()
    together = model(x, lengths, sessions)  # what stands beyond the lengths is noise
    assert together.phoneme_logits.shape == (3, 13, NUM_CLASSES)
    assert together.lengths.tolist() == [13, 4, 9]
    for row, length in enumerate(lengths):
        alone = model(x[row : row + 1, :length], lengths[row : row + 1], sessions[row : row + 1])
        frames = int(together.lengths[row])
        torch.testing.assert_close(together.phoneme_logits[row, :frames], alone.phoneme_logits[0], atol=1e-12, rtol=0)


def test_a_recording_shorter_than_a_patch_becomes_one_frame_whatever_its_companions() -> None:
    model = build()
    x, _, sessions = batch()
    lengths = torch.tensor([30, 3, 21])
    alone = model(x[1:2, :3], lengths[1:2], sessions[1:2])
    assert alone.phoneme_logits.shape == (1, 1, NUM_CLASSES)
    torch.testing.assert_close(model(x, lengths, sessions).phoneme_logits[1, :1], alone.phoneme_logits[0])


def test_a_frame_sees_its_patch_and_what_came_before() -> None:
    model = build()
    x, lengths, sessions = (part[:1] for part in batch())
    before = model(x, lengths, sessions).phoneme_logits
    for t in (0, 6, 17):
        changed = x.clone()
        changed[:, t] += 1
        difference = (model(changed, lengths, sessions).phoneme_logits - before).abs()
        first = max(0, -(-(t - 4) // 2))  # the first frame whose 5 bins, every 2, reach bin t
        assert difference[:, :first].sum() == 0
        assert difference[:, first].max() > 1e-9


def test_an_unseen_session_gets_the_mean_of_all_sessions_maps() -> None:
    model = build()
    x, lengths, _ = (part[:1] for part in batch())
    unseen = model(x, lengths, torch.tensor([-1])).phoneme_logits
    table = model.preprocessor.sessions
    assert table is not None
    with torch.no_grad():
        for values in table.tables.values():
            values[0] = values.mean(0)
    torch.testing.assert_close(model(x, lengths, torch.tensor([0])).phoneme_logits, unseen)


def test_a_session_layer_is_an_affine_map_and_softsign_the_identity_at_the_start() -> None:
    model = GRUBaseline(ModelConfig(kind=ModelKind.gru, gru=GruConfig(hidden=8, n_layers=2)), C, S)
    x, lengths, _ = batch()
    x = x[:1].float()
    adapted = model.preprocessor.adapt(x, lengths[:1], torch.tensor([1]))
    torch.testing.assert_close(adapted, x / (1 + x.abs()))
    table = model.preprocessor.sessions
    assert table is not None
    with torch.no_grad():
        for values in table.tables.values():
            values.normal_()
    matrix, offset = torch.eye(C) + table.tables["weight"][1], table.tables["offset"][1]
    moved = x @ matrix + offset
    adapted = model.preprocessor.adapt(x, lengths[:1], torch.tensor([1]))
    torch.testing.assert_close(adapted, moved / (1 + moved.abs()))


def test_recurrent_matrices_start_orthogonal() -> None:
    model = GRUBaseline(ModelConfig(kind=ModelKind.gru, gru=GruConfig(hidden=8, n_layers=2)), C, S)
    for layer in range(2):
        recurrent = getattr(model.encoder.gru, f"weight_hh_l{layer}")  # (3 H, H)
        torch.testing.assert_close(recurrent.T @ recurrent, torch.eye(8), atol=1e-5, rtol=0)


def test_gradients_reach_every_parameter_in_evaluation_mode_too() -> None:
    model = build()
    model(*batch()).phoneme_logits.sum().backward()
    assert all(p.grad is not None and p.grad.count_nonzero() for p in model.parameters())
