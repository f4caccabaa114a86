"""What stands beside exported step models: all that it takes to run them, as one JSON file. Needs no torch."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFile:
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedStatistics:
    """Mean and spread (C,) of training data as recorded: of the session, or, with a window, what blocks start with."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    window_bins: int | None  # of rolling normalisation


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """How to drive a step model.

    A frame takes `stride` bins of `bin_seconds`, smoothed by `smoothing`, taps in the order of time, of which
    `lookahead_bins` lie in the future. `inputs` are `bins` (1, stride, C), zeros where the last frame of a trial lacks
    some, and `bin_mask` (1, stride), 1 for bins that are there. Every one of `states` is an input too, zero before the
    first frame; the output called `after` + its name goes in with the next. `outputs`: `log_probs` of `classes`, and
    `encoder_out`, what the transducer's joiner reads. `files` by how their weights are stored.
    """

    format: int = FORMAT
    checkpoint: str
    session: str | None  # None: the mean of all sessions that the model was trained on
    bin_seconds: float
    stride: int
    smoothing: tuple[float, ...]
    lookahead_bins: int
    normalisation: str = (
        "released"  # data.normalisation of the checkpoint: what bins have gone through before smoothing
    )
    recorded: RecordedStatistics | None = None  # what that takes on a live signal; None: nothing
    classes: tuple[str, ...]
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    states: dict[str, TensorSpec]
    after: str
    opsets: dict[str, int]
    versions: dict[str, str]  # of the packages that wrote it
    files: dict[str, ModelFile]

    def write(self, folder: Path) -> None:
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Raises `ValueError` for a file that is missing, of another format or no manifest."""
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_text())
            if content["format"] != FORMAT:
                raise ValueError(f"{path} has format {content['format']}; this version reads {FORMAT}")
            specs = {key: _specs(content[key]) for key in ("inputs", "outputs", "states")}
            files = {key: ModelFile(**value) for key, value in content["files"].items()}
            tuples = {key: tuple(content[key]) for key in ("smoothing", "classes")}
            recorded = _recorded(content.get("recorded"))
            return cls(**{**content, **specs, **tuples, "files": files, "recorded": recorded})
        except FileNotFoundError:
            raise ValueError(f"no {MANIFEST} in {folder}: scripts/export_streaming.py writes such folders") from None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no manifest of a step model ({type(error).__name__}: {error})") from None

    def file(self, folder: Path, weights: str) -> Path:
        """The model whose weights are stored so; raises `ValueError` where it is not the one that was exported."""
        if weights not in self.files:
            raise ValueError(f"{folder} holds no {weights} model; there are {', '.join(self.files)}")
        entry, path = self.files[weights], folder / self.files[weights].name
        if not path.is_file() or checksum(path) != entry.sha256:
            raise ValueError(f"{path} is missing or not the file that {MANIFEST} names: export it again")
        return path


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _specs(content: dict[str, Any]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(shape=tuple(value["shape"]), dtype=value["dtype"]) for name, value in content.items()}


def _recorded(content: dict[str, Any] | None) -> RecordedStatistics | None:
    if content is None:
        return None
    mean, std = tuple(content["mean"]), tuple(content["std"])
    return RecordedStatistics(mean=mean, std=std, window_bins=content["window_bins"])
