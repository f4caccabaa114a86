"""Both baselines through the same commands: train, evaluate, adapt."""

import json
from pathlib import Path

import pytest
from command_line import call

from mode_ssm.train.checkpoint import load_checkpoint

SIZES = {
    "gru": ["model.gru.hidden=16", "model.gru.n_layers=2"],
    "transformer": ["model.transformer.d_model=16", "model.transformer.n_layers=1", "model.transformer.n_heads=2"],
}


@pytest.mark.parametrize("kind", ["gru", "transformer"])
def test_a_baseline_trains_evaluates_and_adapts(tiny, tmp_path: Path, kind: str) -> None:
    run_dir = tmp_path / "run"
    call(
        "train.py", f"experiment=sim_{kind}_baseline", f"data.root={tiny.root}", f"run_dir={run_dir}", *SIZES[kind],
        "data.batch_size=4", "data.sessions_per_batch=2", "curriculum.phases.ctc.epochs=2", "decode.beam_size=10",
        "parallel.threads=1", "parallel.device=cpu", "logging.progress=false", cache=tiny.cache,
    )  # fmt: skip
    report = json.loads((run_dir / "report.json").read_text())
    assert [stage["stage"] for stage in report["stages"]] == ["ctc"]
    assert report["stages"][0]["val/per"] >= 0
    assert report["per"] == report["per_greedy_ctc"]
    assert report["wer"] is not None
    assert report["per_rnnt"] is None
    assert report["mode_agreement"] is None
    assert "transducer alone" not in (run_dir / "report.html").read_text()
    checkpoint = load_checkpoint(run_dir / "best")
    assert checkpoint.config.model.kind.value == kind
    assert report["num_parameters"] == sum(
        values.numel() for name, values in checkpoint.weights().items()
        if name.rsplit(".", 1)[-1] not in ("feature_mean", "feature_std", "session_mean", "session_std")
    )  # fmt: skip

    call("evaluate_model.py", f"checkpoint={run_dir}", "tta=true", f"output={tmp_path / 'tta'}", cache=tiny.cache)
    adapted = json.loads((tmp_path / "tta" / "report.json").read_text())
    assert adapted["wer_without_tta"] == report["wer"]
    assert set(adapted["adaptation"]) == set(report["by_session"])
