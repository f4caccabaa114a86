"""scripts/import_gru_checkpoint.py: equal logits given equal weights, and one line for every fault.

The official model is derived here once more, from its equations and in NumPy; nothing of torch's GRU takes part.
"""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from mode_ssm.tasks.transcription import restore_model
from mode_ssm.train.checkpoint import load_checkpoint

SCRIPT = Path(__file__).parents[1] / "scripts" / "import_gru_checkpoint.py"
SESSIONS = ["t15.2023.08.11", "t15.2023.08.13", "t15.2023.08.18"]
FEATURES, HIDDEN, LAYERS, SIZE, STRIDE, CLASSES = 6, 5, 3, 4, 3, 41

Weights = dict[str, np.ndarray]


def official_weights(seed: int = 0) -> Weights:
    """By the names that the official model gives them."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0.0, 0.5, shape).astype(np.float32)

    weights = {"h0": normal(1, 1, HIDDEN), "out.weight": normal(CLASSES, HIDDEN), "out.bias": normal(CLASSES)}
    for layer in range(LAYERS):
        width = SIZE * FEATURES if layer == 0 else HIDDEN
        weights[f"gru.weight_ih_l{layer}"] = normal(3 * HIDDEN, width)
        weights[f"gru.weight_hh_l{layer}"] = normal(3 * HIDDEN, HIDDEN)
        weights[f"gru.bias_ih_l{layer}"], weights[f"gru.bias_hh_l{layer}"] = normal(3 * HIDDEN), normal(3 * HIDDEN)
    for row in range(len(SESSIONS)):
        weights[f"day_weights.{row}"] = np.eye(FEATURES, dtype=np.float32) + normal(FEATURES, FEATURES)
        weights[f"day_biases.{row}"] = normal(1, FEATURES)
    return weights


def official_logits(weights: Weights, features: np.ndarray, session: int) -> np.ndarray:
    """features (T, C) -> (T', classes), one bin, one patch and one layer after the other."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    adapted = []
    for x in features.astype(np.float64):
        y = x @ w[f"day_weights.{session}"] + w[f"day_biases.{session}"][0]
        adapted.append(y / (1 + np.abs(y)))
    frames = (len(adapted) - SIZE) // STRIDE + 1
    inputs = [np.concatenate(adapted[i * STRIDE : i * STRIDE + SIZE]) for i in range(frames)]
    for layer in range(LAYERS):
        h, outputs = w["h0"][0, 0], []
        for x in inputs:
            of_x = np.split(w[f"gru.weight_ih_l{layer}"] @ x + w[f"gru.bias_ih_l{layer}"], 3)
            of_h = np.split(w[f"gru.weight_hh_l{layer}"] @ h + w[f"gru.bias_hh_l{layer}"], 3)
            reset = 1 / (1 + np.exp(-(of_x[0] + of_h[0])))
            update = 1 / (1 + np.exp(-(of_x[1] + of_h[1])))
            candidate = np.tanh(of_x[2] + reset * of_h[2])
            h = (1 - update) * candidate + update * h
            outputs.append(h)
        inputs = outputs
    return np.stack(inputs) @ w["out.weight"].T + w["out.bias"]


def official_args() -> dict[str, Any]:
    return {
        "model": {
            "n_input_features": FEATURES, "n_units": HIDDEN, "rnn_dropout": 0.4, "n_layers": LAYERS,
            "patch_size": SIZE, "patch_stride": STRIDE,
            "input_network": {"n_input_layers": 1, "input_layer_sizes": [FEATURES], "input_layer_dropout": 0.2},
        },
        "dataset": {
            "data_transforms": {"smooth_data": True, "smooth_kernel_std": 2, "smooth_kernel_size": 100},
            "n_classes": CLASSES, "sessions": SESSIONS, "feature_subset": None,
        },
    }  # fmt: skip


def write_official(
    folder: Path, weights: Weights | None = None, args: dict[str, Any] | None = None, prefix: str = "", **more: Any
) -> Path:
    """As the official training writes its best checkpoint: rates may be numpy's scalars, states lie beside weights."""
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(args or official_args()), folder / "args.yaml")
    named = {f"{prefix}{name}": torch.from_numpy(value) for name, value in (weights or official_weights()).items()}
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    contents = {
        "model_state_dict": named, "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": schedule.state_dict(), "val_PER": 0.101, "val_loss": np.float32(17.5),
    }  # fmt: skip
    torch.save(contents | more, folder / "best_checkpoint")
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    def call(folder: Path, code: int = 0) -> str:
        arguments = [str(SCRIPT), str(folder), "--output", str(tmp_path / "run"), "--root", "data/mine"]
        monkeypatch.setattr(sys, "argv", arguments)
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
            ended = 0
        except SystemExit as done:
            ended = int(done.code or 0)
        printed = capsys.readouterr()
        assert ended == code, printed
        return printed.out if code == 0 else printed.err

    return call


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_imported_model_gives_the_logits_of_the_official_equations(run, tmp_path: Path, prefix: str) -> None:
    weights = official_weights()
    printed = run(write_official(tmp_path / "official", weights, prefix=prefix))
    assert "3 sessions, validation PER 0.1010" in printed
    checkpoint = load_checkpoint(tmp_path / "run" / "best")
    model = restore_model(checkpoint.config, checkpoint.description, checkpoint.weights())
    assert sum(p.numel() for p in model.parameters()) == sum(value.size for value in weights.values())
    rng = np.random.default_rng(1)
    lengths = [25, 4, 18]
    trials = [rng.normal(size=(length, FEATURES)).astype(np.float32) for length in lengths]
    features = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(x) for x in trials], batch_first=True)
    with torch.no_grad():
        output = model(features, torch.tensor(lengths), torch.tensor([0, 1, 2]))
    assert output.lengths.tolist() == [8, 1, 5]
    for row, trial in enumerate(trials):
        expected = official_logits(weights, trial, session=row)
        found = output.phoneme_logits[row, : len(expected)].numpy()
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_the_checkpoint_says_what_the_official_settings_say(run, tmp_path: Path) -> None:
    run(write_official(tmp_path / "official"))
    checkpoint = load_checkpoint(tmp_path / "run" / "best")
    assert checkpoint.description["sessions"] == SESSIONS
    config = checkpoint.config
    assert (config.data.root, config.data.feature_dim, config.data.smoothing_std) == ("data/mine", FEATURES, 2.0)
    gru = config.model.gru
    assert (gru.hidden, gru.n_layers, gru.patch_size, gru.patch_stride) == (HIDDEN, LAYERS, SIZE, STRIDE)
    assert (gru.dropout, gru.input_dropout) == (0.4, 0.2)
    assert checkpoint.state["metrics"] == {"val/per": 0.101}


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('the pickle was run')",))


def changed(**values: Any) -> dict[str, Any]:
    args = official_args()
    for key, value in values.items():
        section, name = key.split("__")
        args[section][name] = value
    return args


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda f: write_official(f, note=Harmful()), "best_checkpoint is refused: it asks for exec, which"),
        (lambda f: (write_official(f) / "args.yaml").unlink(), "no args.yaml in"),
        (lambda f: (write_official(f) / "best_checkpoint").unlink(), "no best_checkpoint in"),
        (lambda f: (write_official(f) / "best_checkpoint").write_bytes(b"nothing"), "no file of torch.save"),
        (lambda f: (write_official(f) / "args.yaml").write_text("a: [1"), "args.yaml is not YAML"),
        (lambda f: (write_official(f) / "args.yaml").write_text("model: {}"), "dataset.n_classes is missing"),
        (lambda f: write_official(f, args=changed(dataset__n_classes=32)), "dataset.n_classes=32; only 41"),
        (lambda f: write_official(f, args=changed(model__patch_size=0)), "model.patch_size=0, a GRU without patches"),
        (lambda f: write_official(f, args=changed(dataset__sessions=SESSIONS[:2])),
         "preprocessor.sessions.tables.weight is (3, 6, 6), not (2, 6, 6)"),
        (lambda f: write_official(f, args=changed(model__n_units=7)), "initial_state is (1, 1, 5), not (1, 1, 7)"),
        (lambda f: write_official(f, args=changed(model__n_layers=2)), "encoder.gru.weight_ih_l2 is unknown"),
        (lambda f: write_official(f, args=changed(model__n_layers=4)), "encoder.gru.weight_ih_l3 is missing"),
        (lambda f: write_official(f, args=changed(model__n_units="wide")), "model.gru.hidden=wide"),
        (lambda f: write_official(f, model_state_dict=[1, 2]), "no model_state_dict of tensors in it"),
        (lambda f: write_official(f, {"h0": np.zeros((1, 1, 5), np.float32)}), "expected day_weights.0, day_weights.1"),
    ],
)  # fmt: skip
def test_a_fault_ends_in_one_line_and_leaves_nothing(run, tmp_path: Path, fault, message: str) -> None:
    fault(tmp_path / "official")
    printed = run(tmp_path / "official", code=2)
    assert message in printed
    assert printed.startswith("error: ")
    assert len(printed.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_there_is_left_alone(run, tmp_path: Path) -> None:
    folder = write_official(tmp_path / "official")
    run(folder)
    assert "holds a run already" in run(folder, code=2)
