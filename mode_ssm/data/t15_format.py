"""The official Brain-to-Text '25 HDF5 layout, to the letter: constants and the writer.

One file a session and split, one group a trial. Checked against the benchmark's own reader, which takes
`input_features`, `seq_class_ids`, `transcription` and the attributes named below.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

LABEL_WIDTH = 500  # seq_class_ids and transcription are zero-padded to this
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedTrial:
    """What a file stores about one trial. features (T, C) float32; phonemes (U,) class ids."""

    session: str
    block: int
    trial: int
    features: np.ndarray
    phonemes: np.ndarray
    sentence: str


def session_file(root: Path | str, session: str, split: str) -> Path:
    return Path(root) / session / f"data_{split}.hdf5"


def trial_key(index: int) -> str:
    return f"trial_{index:04d}"


def write_session_file(path: Path, trials: Iterable[RecordedTrial], *, with_labels: bool) -> int:
    """Write trials in order and return their number. The file appears whole or not at all.

    Without labels (the test split) the phonemes, the transcription and the attributes `seq_len` and
    `sentence_label` are left out. Raises `ValueError` for a label longer than the format holds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with h5py.File(partial, "w") as file:
            for trial in trials:
                write_trial(file, trial, with_labels=with_labels)
            count = len(file)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def write_trial(file: h5py.File, trial: RecordedTrial, *, with_labels: bool) -> None:
    """Append a trial to an open session file. Raises `ValueError` for a label longer than the format holds."""
    group = file.create_group(trial_key(len(file)))
    group.create_dataset("input_features", data=np.ascontiguousarray(trial.features, np.float32))
    group.attrs["n_time_steps"] = np.int64(len(trial.features))
    if with_labels:
        text = trial.sentence.encode("ascii")
        group.create_dataset("seq_class_ids", data=_padded(trial.phonemes, trial))
        group.create_dataset("transcription", data=_padded(np.frombuffer(text, np.uint8), trial))
        group.attrs["seq_len"] = np.int64(len(trial.phonemes))
        group.attrs["sentence_label"] = trial.sentence
    group.attrs["session"] = trial.session
    group.attrs["block_num"] = np.int64(trial.block)
    group.attrs["trial_num"] = np.int64(trial.trial)


def _padded(values: np.ndarray, trial: RecordedTrial) -> np.ndarray:
    if len(values) > LABEL_WIDTH:
        raise ValueError(
            f"{trial.session} block {trial.block} trial {trial.trial}: "
            f"{len(values)} labels, the format holds {LABEL_WIDTH}"
        )
    padded = np.zeros(LABEL_WIDTH, np.int32)
    padded[: len(values)] = values
    return padded
