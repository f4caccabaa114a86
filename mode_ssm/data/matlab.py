"""Brain-to-Text '24 (T12): MATLAB files, one a session and split, read into the layout of Brain-to-Text '25.

Layout: `<root>/{train,test,competitionHoldOut}/<session>.mat`; the benchmark calls its validation split test, and the
test split competitionHoldOut. A file has, for N trials, `sentenceText` (N), `blockIdx` (N, 1) and the cell arrays
`tx1` and `spikePow` (1, N) of (T, 256) each; phonemes come from a lexicon. As in the benchmark's baseline, features
are the first 128 columns (area 6v) of both, z-scored within each block of the file.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from mode_ssm.data.t15_format import RecordedTrial, write_session_file

FOLDERS = {"train": "train", "val": "test", "test": "competitionHoldOut"}
ELECTRODES = 128  # of area 6v, the first columns
FEATURE_DIM = 2 * ELECTRODES
_VARIABLES = ("blockIdx", "tx1", "spikePow")
_SMALLEST_STD = 1e-8
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def find_matlab_files(root: Path) -> dict[tuple[str, str], Path]:
    """(session, split) -> file, sorted by session; empty where `root` is not laid out like T12."""
    found = {(path.stem, split): path for split, name in FOLDERS.items() for path in root.glob(f"{name}/*.mat")}
    return {key: found[key].absolute() for key in sorted(found, key=lambda key: (key[0], list(FOLDERS).index(key[1])))}


def convert_session(
    source: Path, target: Path, session: str, split: str, pronounce: Callable[[str], Sequence[int]] | None
) -> None:
    """Write a session file of T15's layout, with the time of `source`. It appears whole or not at all.

    Raises `ValueError` in one line for a file of another MATLAB version or without the variables, for a trial that
    does not keep to the format, and where labels are needed and `pronounce` is missing.
    """
    if split != "test" and pronounce is None:
        raise ValueError(f"{source} has sentences without phonemes; name a lexicon with --lexicon")
    trials = read_session(source, session, pronounce if split != "test" else None)
    write_session_file(target, trials, with_labels=split != "test")
    status = source.stat()
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def read_session(path: Path, session: str, pronounce: Callable[[str], Sequence[int]] | None) -> list[RecordedTrial]:
    """Trials of one file, features z-scored. Without `pronounce` they have neither phonemes nor sentence."""
    variables = _load(path, ("sentenceText",) if pronounce is not None else ())
    raw = [_features(path, variables, index) for index in range(variables["tx1"].size)]
    blocks = np.asarray(variables["blockIdx"]).ravel()
    sentences = [str(text).strip() for text in np.ravel(variables.get("sentenceText", [""] * len(raw)))]
    for name, entries in (("blockIdx", len(blocks)), ("sentenceText", len(sentences))):
        if entries != len(raw):
            raise ValueError(f"{path}: tx1 has {len(raw)} trials, but {name} has {entries}")
    trials = []
    for index, (sentence, block, features) in enumerate(zip(sentences, blocks, _z_scored(raw, blocks), strict=True)):
        try:
            phonemes = np.array(pronounce(sentence) if pronounce is not None else [], np.int64)
        except ValueError as error:
            raise ValueError(f"{path} trial {index}: {error}") from None
        trials.append(
            RecordedTrial(
                session=session,
                block=int(block),
                trial=int((blocks[:index] == block).sum()),
                features=features,
                phonemes=phonemes,
                sentence=sentence.replace("’", "'").encode("ascii", "ignore").decode(),
            )
        )
    return trials


def _load(path: Path, texts: tuple[str, ...]) -> dict[str, Any]:
    """Variables of the file, `texts` beside those that every file must have."""
    names = (*_VARIABLES, *texts)
    with open(path, "rb") as file:
        head = file.read(520)
    if _HDF5_SIGNATURE in (head[:8], head[512:520]):
        raise ValueError(f"{path} is a MATLAB v7.3 file; the benchmark's are v5: save it again with -v7")
    try:
        variables: dict[str, Any] = loadmat(path, variable_names=names)
    except (ValueError, TypeError, OSError, NotImplementedError, MatReadError) as error:
        raise ValueError(f"{path} cannot be read as a MATLAB v5 file ({' '.join(str(error).split())})") from None
    missing = [name for name in names if name not in variables]
    if missing:
        raise ValueError(f"{path} has no variable {' and no '.join(missing)}")
    return variables


def _features(path: Path, variables: dict[str, Any], index: int) -> np.ndarray:
    """Raw features (T, 256) float32 of one trial."""
    areas = []
    for name in ("tx1", "spikePow"):
        cells = variables[name]
        if cells.dtype != object or index >= cells.size:
            raise ValueError(f"{path} trial {index}: {name} has no cell for it")
        values = cells.ravel()[index]
        if values.ndim != 2 or values.shape[1] < ELECTRODES or len(values) == 0:
            raise ValueError(f"{path} trial {index}: {name} has shape {values.shape}, expected (T, >= {ELECTRODES})")
        areas.append(values[:, :ELECTRODES].astype(np.float32))
    if len(areas[0]) != len(areas[1]):
        raise ValueError(f"{path} trial {index}: tx1 has {len(areas[0])} bins, spikePow {len(areas[1])}")
    return np.concatenate(areas, axis=1)


def _z_scored(features: Sequence[np.ndarray], blocks: np.ndarray) -> list[np.ndarray]:
    scaled = list(features)
    for block in np.unique(blocks):
        members = np.flatnonzero(blocks == block).tolist()
        whole = np.concatenate([features[index] for index in members]).astype(np.float64)
        mean, std = whole.mean(axis=0), whole.std(axis=0) + _SMALLEST_STD
        for index in members:
            scaled[index] = ((features[index] - mean) / std).astype(np.float32)
    return scaled
