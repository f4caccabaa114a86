"""From a checkpoint to a folder: what the manifest says, whole or absent, damage noticed."""

import json
from pathlib import Path

import pytest
from tiny_stream import FEATURE_DIM, SESSIONS, tiny_source, write_checkpoint

from mode_ssm.config import ModelKind, Smoothing
from mode_ssm.export.bundle import Source, build, write_bundle
from mode_ssm.export.graph import Weights
from mode_ssm.export.manifest import MANIFEST, Manifest, checksum
from mode_ssm.train.checkpoint import load_checkpoint
from mode_ssm.vocab import CLASSES

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tiny_source()
    write_bundle(tmp_path / "exported", {weights: build(source, SESSIONS[1], weights) for weights in Weights})
    return tmp_path / "exported"


def test_a_folder_holds_both_models_and_a_manifest(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, "step_fp32.onnx", "step_int8.onnx"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    manifest = Manifest.read(folder)
    assert manifest.checkpoint == "step_00000001 of tiny"
    assert manifest.session == SESSIONS[1]
    assert manifest.classes == CLASSES
    assert (manifest.stride, manifest.bin_seconds, manifest.lookahead_bins) == (4, 0.02, 4)
    assert sum(manifest.smoothing) == pytest.approx(1)
    assert manifest.inputs["bins"].shape == (1, 4, FEATURE_DIM)
    assert {spec.dtype for spec in manifest.states.values()} == {"float32"}
    assert manifest.versions.keys() >= {"mode_ssm", "onnx", "onnxruntime"}
    for weights in Weights:
        path = manifest.file(folder, weights.value)
        assert manifest.files[weights.value].bytes == path.stat().st_size
        assert manifest.files[weights.value].sha256 == checksum(path)


def test_a_manifest_survives_being_read_and_written(folder: Path, tmp_path: Path) -> None:
    Manifest.read(folder).write(tmp_path)
    assert Manifest.read(tmp_path) == Manifest.read(folder)
    assert (tmp_path / MANIFEST).read_text() == (folder / MANIFEST).read_text()


@pytest.mark.parametrize(
    ("smoothing", "taps", "ahead"), [(Smoothing.none, 1, 0), (Smoothing.causal, 5, 0), (Smoothing.symmetric, 9, 4)]
)
def test_smoothing_and_its_look_ahead_are_told(smoothing: Smoothing, taps: int, ahead: int) -> None:
    manifest = build(tiny_source(smoothing=smoothing), None, Weights.fp32).manifest
    assert (len(manifest.smoothing), manifest.lookahead_bins) == (taps, ahead)
    assert manifest.session is None


@pytest.mark.parametrize(
    ("kind", "name"), [(ModelKind.gru, "GRUBaseline"), (ModelKind.transformer, "TransformerBaseline")]
)
def test_a_baseline_is_refused_in_one_line(tmp_path: Path, kind: ModelKind, name: str) -> None:
    checkpoint = load_checkpoint(write_checkpoint(tmp_path, kind))
    with pytest.raises(ValueError, match=f"holds a {name}; only MODE_SSM can be exported$"):
        Source.load(checkpoint)


def test_a_folder_that_exists_is_left_alone(folder: Path) -> None:
    before = checksum(folder / MANIFEST)
    with pytest.raises(ValueError, match="exists already"):
        write_bundle(folder, {Weights.fp32: build(tiny_source(), None, Weights.fp32)})
    assert checksum(folder / MANIFEST) == before


def test_a_damaged_model_is_noticed(folder: Path) -> None:
    path = folder / "step_int8.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"step_int8\.onnx is missing or not the file"):
        Manifest.read(folder).file(folder, "int8")


def test_a_model_that_was_not_written_names_those_that_were(folder: Path) -> None:
    with pytest.raises(ValueError, match="no int4 model; there are fp32, int8"):
        Manifest.read(folder).file(folder, "int4")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no manifest.json in"),
        ("{", "is no manifest of a step model"),
        ('{"format": 1}', "is no manifest of a step model"),
        ('{"format": 7}', "has format 7; this version reads 1"),
    ],
)
def test_a_manifest_that_is_none_is_refused_in_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        Manifest.read(tmp_path)
    assert "\n" not in str(error.value)


def test_a_manifest_is_plain_json(folder: Path) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    assert content["states"]["blocks.0.conv"] == {"shape": [1, 3, 64], "dtype": "float32"}


def test_a_source_is_read_from_a_checkpoint(tmp_path: Path) -> None:
    source = Source.load(load_checkpoint(write_checkpoint(tmp_path / "run")))
    assert source.name == "step_00000001 of run"
    assert [source.session_id(name) for name in (None, *SESSIONS)] == [-1, 0, 1]
    with pytest.raises(ValueError, match=r"session=t15\.1999.* known: t15\.2023\.08\.11, t15\.2023\.08\.13"):
        source.session_id("t15.1999.01.01")


def test_a_bidirectional_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds a bidirectional model.*bidirectional=false"):
        Source.load(load_checkpoint(write_checkpoint(tmp_path / "run", bidirectional=True)))
