"""From a checkpoint to a folder that streams without torch: step models, and the manifest that says how to run them."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from mode_ssm.config import DataConfig
from mode_ssm.data.log_mel import BIN_SECONDS
from mode_ssm.data.normalisation import (
    Normalise,
    RollingNormalisation,
    SessionNormalisation,
    as_released,
    usable_std,
)
from mode_ssm.data.smoothing import gaussian_kernel, lookahead_bins
from mode_ssm.export.graph import OPSET, Weights
from mode_ssm.export.manifest import Manifest, ModelFile, RecordedStatistics, TensorSpec, checksum
from mode_ssm.export.step_graph import AFTER, build_step_model
from mode_ssm.models.mode_ssm import MODE_SSM
from mode_ssm.tasks.transcription import restore_model
from mode_ssm.train.checkpoint import Checkpoint
from mode_ssm.vocab import CLASSES

UNSEEN = -1
PACKAGES = {"mode_ssm": "mode-ssm", "torch": "torch", "onnx": "onnx", "onnxruntime": "onnxruntime"}


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint's model, and what an exported model has to know beside it."""

    name: str
    model: MODE_SSM
    data: DataConfig
    sessions: list[str]  # in the order of the model's session table
    normalise: Normalise = as_released  # of an opened dataset; its statistics go along

    @classmethod
    def load(cls, checkpoint: Checkpoint) -> "Source":
        """Raises `ValueError` for a baseline, and for a model that reads the future."""
        model = restore_model(checkpoint.config, checkpoint.description, checkpoint.weights())
        if not isinstance(model, MODE_SSM):
            raise ValueError(f"{checkpoint.path} holds a {type(model).__name__}; only MODE_SSM can be exported")
        if not model.causal:
            raise ValueError(
                f"{checkpoint.path} holds a bidirectional model, which reads the future and cannot stream: "
                "train one with model.encoder.bidirectional=false"
            )
        name = f"{checkpoint.path.name} of {checkpoint.path.parent.parent.name}"
        return cls(name, model, checkpoint.config.data, checkpoint.description["sessions"])

    def session_id(self, session: str | None) -> int:
        if session is None:
            return UNSEEN
        if session not in self.sessions:
            raise ValueError(f"session={session} was not trained on; known: {', '.join(self.sessions)}")
        return self.sessions.index(session)


@dataclass(frozen=True, slots=True)
class Export:
    """An ONNX file's content, and a manifest that names no file yet."""

    content: bytes
    manifest: Manifest


def build(source: Source, session: str | None, weights: Weights) -> Export:
    """session None: one that was never seen. Raises `ValueError` for one that is unknown."""
    step = build_step_model(source.model, source.session_id(session), weights)
    versions = {}
    for name, package in PACKAGES.items():
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(package)
    manifest = Manifest(
        checkpoint=source.name,
        session=session,
        bin_seconds=BIN_SECONDS,
        stride=source.model.frame_stride,
        smoothing=tuple(gaussian_kernel(source.data.smoothing_std, source.data.smoothing).tolist()),
        lookahead_bins=lookahead_bins(source.data.smoothing, source.data.smoothing_std),
        normalisation=source.data.normalisation.value,
        recorded=recorded_statistics(source.normalise, session),
        classes=CLASSES,
        inputs={name: TensorSpec(shape=shape) for name, shape in step.inputs.items()},
        outputs={name: TensorSpec(shape=shape) for name, shape in step.outputs.items()},
        states={name: TensorSpec(shape=shape) for name, shape in step.states.items()},
        after=AFTER,
        opsets={"ai.onnx": OPSET, "com.microsoft": 1},
        versions=versions,
        files={},
    )
    return Export(step.proto.SerializeToString(), manifest)


def recorded_statistics(normalise: Normalise, session: str | None) -> RecordedStatistics | None:
    """What `normalise` does to a session's bins, None for data as released; session None gets what is of all."""
    if isinstance(normalise, SessionNormalisation):
        found = normalise.by_session.get(session or "", normalise.overall)
        return RecordedStatistics(
            mean=tuple(found.mean.tolist()), std=tuple(usable_std(found.std).tolist()), window_bins=None
        )
    if isinstance(normalise, RollingNormalisation):
        mean, std = normalise.training.mean, normalise.training.std
        return RecordedStatistics(mean=tuple(mean.tolist()), std=tuple(std.tolist()), window_bins=normalise.window_bins)
    return None


def write_bundle(folder: Path, exports: Mapping[Weights, Export]) -> Manifest:
    """Write `step_<weights>.onnx` for every export of one session, and `manifest.json`; the folder appears whole or not
    at all. Raises `ValueError` where it exists already."""
    if folder.exists():
        raise ValueError(f"{folder} exists already; choose another --output or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        files = {}
        for weights, export in exports.items():
            path = partial / f"step_{weights.value}.onnx"
            path.write_bytes(export.content)
            files[weights.value] = ModelFile(name=path.name, bytes=len(export.content), sha256=checksum(path))
        manifest = replace(next(iter(exports.values())).manifest, files=files)
        manifest.write(partial)
        partial.chmod(0o755)
        os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest
