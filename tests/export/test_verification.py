"""Exports against eager: on one stream, by error rates on a split, and by the script."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_stream import FEATURE_DIM, SESSIONS, tiny_source, write_checkpoint

from mode_ssm.data.t15_format import RecordedTrial, session_file, write_session_file
from mode_ssm.export import verification
from mode_ssm.export.bundle import build
from mode_ssm.export.graph import Weights
from mode_ssm.export.streaming_session import Frames
from mode_ssm.export.verification import (
    compare,
    eager_stream,
    example_features,
    open_export,
    phoneme_error_rates,
)
from mode_ssm.tasks.transcription_data import TranscriptionData
from mode_ssm.vocab import SIL

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SCRIPT = Path(__file__).parents[2] / "scripts" / "export_streaming.py"
UNSEEN = "t15.2023.08.18"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two sessions to train on, and one whose only split is val."""
    for s, session in enumerate([*SESSIONS, UNSEEN]):
        for p, split in enumerate(["train", "val"] if session in SESSIONS else ["val"]):
            rng = np.random.default_rng((s, p))
            trials = [
                RecordedTrial(
                    session=session,
                    block=p,
                    trial=i,
                    features=rng.standard_normal((50 + 3 * i, FEATURE_DIM)).astype(np.float32),
                    phonemes=np.append(rng.integers(1, 41, size=4), SIL),
                    sentence=f"{'ab' * (s + 1)} {'cd' * (p + 1)} {'ef' * (i + 1)}",
                )
                for i in range(2)
            ]
            write_session_file(session_file(tmp_path / "data", session, split), trials, with_labels=True)
    return tmp_path / "data"


def test_a_comparison_tells_the_difference_that_is_there() -> None:
    source = tiny_source()
    x = example_features(source, SESSIONS[0], bins=50)
    expected, seconds = eager_stream(source, 0, x)
    assert len(seconds) == len(expected.log_probs) == 13
    session = open_export(build(source, SESSIONS[0], Weights.fp32))
    same = compare(session, x, expected)
    assert same.log_probs < 1e-4
    assert same.encoder_out < 1e-5
    assert same.same_class == 1
    log_probs = expected.log_probs.copy()
    log_probs[3] = -log_probs[3]
    log_probs[4] -= 2.0
    changed = compare(session, x, Frames(log_probs, 1.5 * expected.encoder_out))
    assert changed.log_probs == pytest.approx(2 * np.abs(expected.log_probs[3]).max(), rel=1e-3)
    assert changed.encoder_out == pytest.approx(1 / 3, rel=1e-3)
    assert changed.same_class == pytest.approx(12 / 13)


def test_example_features_follow_the_session() -> None:
    source = tiny_source()
    preprocessor = source.model.preprocessor
    x = example_features(source, SESSIONS[1], bins=20_000)
    np.testing.assert_allclose(x.mean(0), preprocessor.session_mean[1].numpy(), atol=0.05)
    np.testing.assert_allclose(x.std(0), preprocessor.session_std[1].numpy(), atol=0.05)
    unseen = example_features(source, None, bins=20_000)
    np.testing.assert_allclose(unseen.mean(0), preprocessor.feature_mean.numpy(), atol=0.05)


def test_error_rates_of_a_split(root: Path) -> None:
    source = tiny_source(root=str(root))
    data = TranscriptionData.open(source.data, 0, SESSIONS, progress=False)
    rates = phoneme_error_rates(source, data, "val", progress=False)
    assert rates.keys() == {"offline", "streamed", "fp32", "int8"}
    assert {rate.reference_length for rate in rates.values()} == {6 * 5}
    assert rates["offline"].edits > 0
    assert rates["offline"] == rates["streamed"] == rates["fp32"]


def test_error_rates_tell_one_model_from_another(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_source(root=str(root))
    data = TranscriptionData.open(source.data, 0, SESSIONS, progress=False)
    blank = tiny_source(root=str(root))
    blank.model.ctc_head.output.bias[0] = 1e3
    monkeypatch.setattr(verification, "build", lambda source, session, weights: build(blank, session, weights))
    rates = phoneme_error_rates(source, data, "val", progress=False)
    assert rates["fp32"].rate == rates["int8"].rate == 1.0  # nothing but deletions
    assert rates["streamed"].edits == rates["offline"].edits != 30


def run_script(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_the_script_writes_checks_and_reports(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = write_checkpoint(tmp_path / "run", root="elsewhere")
    run_script(run_dir, "--session", SESSIONS[0], "--error-rates", "val", "--root", root, monkeypatch=monkeypatch)
    printed = capsys.readouterr().out
    for word in ("eager: ", "fp32: ", "int8: ", "ms a frame", "greedy CTC", "streamed", "offline"):
        assert word in printed
    folder = run_dir / f"streaming_{SESSIONS[0]}"
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "step_fp32.onnx", "step_int8.onnx"]


def test_the_script_writes_nothing_where_fp32_differs_from_eager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = write_checkpoint(tmp_path / "run")
    monkeypatch.setattr(verification, "TOLERANCE", 0.0)
    with pytest.raises(SystemExit) as stopped:
        run_script(run_dir, "--output", tmp_path / "exported", monkeypatch=monkeypatch)
    assert stopped.value.code == 2
    assert "the fp32 export differs from eager by" in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()


def test_the_script_says_in_one_line_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = write_checkpoint(tmp_path / "run")
    for arguments, message in (
        ([run_dir, "--session", "nobody"], "session=nobody was not trained on"),
        ([run_dir, "--output", tmp_path], "exists already"),
        ([tmp_path / "nothing"], "no checkpoint at"),
    ):
        with pytest.raises(SystemExit):
            run_script(*arguments, monkeypatch=monkeypatch)
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.count("\n") == 1
