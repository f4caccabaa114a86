"""Does a session file keep to the format? One pass over a file that finds every fault before training starts.

The same pass collects what is expensive to read twice: who the trials are and their feature statistics.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from mode_ssm.data.statistics import FeatureStatistics, merge_blocks
from mode_ssm.vocab import BLANK, CLASSES, NUM_CLASSES, SIL, normalise_sentence

CHECKS_VERSION = 3  # raise whenever a check or what a scan keeps changes: stored scans of other versions are not used

_TRIAL_KEY = re.compile(r"trial_\d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScannedTrial:
    """A trial that keeps to the format. Labels are None where the split withholds them."""

    key: str
    block: int
    trial: int
    num_bins: int
    num_phonemes: int | None
    sentence: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What is wrong with one trial, or with the whole file (key None), in one line."""

    key: str | None
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FileScan:
    """Result of one file. `statistics` covers the trials that are listed; None if there is none."""

    trials: list[ScannedTrial] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    statistics: FeatureStatistics | None = None


def scan_file(path: Path, session: str, *, with_labels: bool, feature_dim: int) -> FileScan:
    """Check every trial of one HDF5 file. Faults become problems, never exceptions."""
    scan = FileScan()
    parts: list[tuple[int, FeatureStatistics]] = []
    numbers: dict[tuple[int, int], str] = {}
    try:
        with h5py.File(path, "r") as file:
            for key in sorted(file, key=trial_order):
                trial, statistics, faults = _check_member(file, key, session, with_labels, feature_dim)
                if faults:
                    scan.problems.append(Problem(key=key, reason="; ".join(faults)))
                elif trial is not None and statistics is not None:
                    first = numbers.setdefault((trial.block, trial.trial), key)
                    if first != key:
                        reason = f"is block {trial.block} trial {trial.trial} once more, after {first}"
                        scan.problems.append(Problem(key=key, reason=reason))
                        continue
                    scan.trials.append(trial)
                    parts.append((trial.block, statistics))
            if len(file) == 0:
                scan.problems.append(Problem(key=None, reason="holds no trial"))
    except (OSError, RuntimeError) as error:  # h5py's two ways to say that the bytes are not HDF5
        return FileScan(problems=[Problem(key=None, reason=f"cannot be read as HDF5 ({_one_line(error)})")])
    return FileScan(trials=scan.trials, problems=scan.problems, statistics=merge_blocks(parts) if parts else None)


def trial_order(key: str) -> tuple[int, str]:
    """The place of a group in its file: by number."""
    return (int(key.removeprefix("trial_")), key) if _TRIAL_KEY.fullmatch(key) else (-1, key)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _check_member(
    file: h5py.File, key: str, session: str, with_labels: bool, feature_dim: int
) -> tuple[ScannedTrial | None, FeatureStatistics | None, list[str]]:
    if not _TRIAL_KEY.fullmatch(key):
        return None, None, ["is not a trial: groups are named trial_0000, trial_0001, ..."]
    faults: list[str] = []
    try:
        group = file[key]
        if not isinstance(group, h5py.Group):
            return None, None, ["is a dataset, not a group"]
        statistics = _check_features(group, feature_dim, faults)
        block, trial = _integer(group, "block_num", faults), _integer(group, "trial_num", faults)
        recorded = _text(group, "session", faults)
        if recorded is not None and recorded != session:
            faults.append(f"attribute session is {recorded!r}, but the folder is {session!r}")
        num_phonemes, sentence = _check_labels(group, faults) if with_labels else (None, None)
    except (OSError, RuntimeError, KeyError) as error:
        return None, None, [*faults, f"cannot be read ({_one_line(error)})"]
    if faults or block is None or trial is None or statistics is None:
        return None, None, faults
    scanned = ScannedTrial(
        key=key,
        block=block,
        trial=trial,
        num_bins=statistics.count,
        num_phonemes=num_phonemes,
        sentence=sentence,
    )
    return scanned, statistics, faults


def _check_features(group: h5py.Group, feature_dim: int, faults: list[str]) -> FeatureStatistics | None:
    num_bins = _integer(group, "n_time_steps", faults)
    dataset = _dataset(group, "input_features", faults)
    if dataset is None:
        return None
    if dataset.dtype != np.float32:
        faults.append(f"input_features is {dataset.dtype}, expected float32")
        return None
    if dataset.ndim != 2 or dataset.shape[1] != feature_dim:
        faults.append(f"input_features has shape {dataset.shape}, expected (T, data.feature_dim={feature_dim})")
        return None
    if num_bins is not None and num_bins != len(dataset):
        faults.append(f"attribute n_time_steps is {num_bins}, but input_features has {len(dataset)} bins")
    if len(dataset) == 0:
        faults.append("input_features is empty")
        return None
    features = dataset[()]
    statistics = FeatureStatistics.of(features)
    # Finite float32 values cannot overflow a float64 mean, so that it is finite exactly where all bins are.
    if not np.isfinite(statistics.mean).all():
        bad_bins, bad_features = np.nonzero(~np.isfinite(features))
        faults.append(
            f"values of input_features that are not finite: {len(bad_bins)}, "
            f"the first ({features[bad_bins[0], bad_features[0]]}) at bin {bad_bins[0]}, feature {bad_features[0]}"
        )
    return statistics


def _check_labels(group: h5py.Group, faults: list[str]) -> tuple[int | None, str | None]:
    num_phonemes = _integer(group, "seq_len", faults)
    sentence = _text(group, "sentence_label", faults)
    ids = _integers(group, "seq_class_ids", faults)
    codes = _integers(group, "transcription", faults)
    if ids is not None and num_phonemes is not None:
        _check_phonemes(ids, num_phonemes, faults)
    if codes is not None and sentence is not None:
        _check_transcription(codes, sentence, faults)
    return num_phonemes, sentence


def _check_phonemes(ids: np.ndarray, num_phonemes: int, faults: list[str]) -> None:
    unknown = np.flatnonzero((ids < BLANK) | (ids >= NUM_CLASSES))
    if len(unknown):
        faults.append(
            f"seq_class_ids holds the unknown class {ids[unknown[0]]} at position {unknown[0]}; "
            f"classes are 1 to {NUM_CLASSES - 1}, 0 is padding"
        )
        return
    labels = int(np.count_nonzero(ids))
    if labels == 0:
        faults.append("seq_class_ids holds no phoneme")
    elif num_phonemes != labels or not ids[:labels].all():
        inside = "" if ids[:labels].all() else " with zeros among them"
        faults.append(f"attribute seq_len is {num_phonemes}, but seq_class_ids holds {labels} phonemes{inside}")
    elif ids[labels - 1] != SIL:
        faults.append(f"seq_class_ids ends in {CLASSES[ids[labels - 1]]}, expected SIL ({SIL}) after the last word")


def _check_transcription(codes: np.ndarray, sentence: str, faults: list[str]) -> None:
    ends = np.flatnonzero(codes == 0)
    used = codes[: ends[0]] if len(ends) else codes
    if ((used < 0) | (used > 0x10FFFF)).any():
        faults.append("transcription holds values that are no character codes")
        return
    text = "".join(chr(code) for code in used)
    # Case and punctuation are left out: the two fields only have to name the same words.
    if normalise_sentence(text) != normalise_sentence(sentence):
        faults.append(f"transcription says {text!r}, but attribute sentence_label says {sentence!r}")


def _dataset(group: h5py.Group, name: str, faults: list[str]) -> h5py.Dataset | None:
    member = group.get(name)
    if isinstance(member, h5py.Dataset):
        return member
    faults.append(f"dataset {name} is missing")
    return None


def _integers(group: h5py.Group, name: str, faults: list[str]) -> np.ndarray | None:
    dataset = _dataset(group, name, faults)
    if dataset is None:
        return None
    if dataset.ndim != 1 or dataset.dtype.kind not in "iu":
        faults.append(f"{name} is {dataset.dtype} of shape {dataset.shape}, expected integers in one dimension")
        return None
    return dataset[()].astype(np.int64)


def _integer(group: h5py.Group, name: str, faults: list[str]) -> int | None:
    if name not in group.attrs:
        faults.append(f"attribute {name} is missing")
        return None
    value = group.attrs[name]
    if np.ndim(value) != 0 or not isinstance(value, int | np.integer):
        faults.append(f"attribute {name} is {_shown(value)}, expected an integer")
        return None
    return int(value)


def _text(group: h5py.Group, name: str, faults: list[str]) -> str | None:
    if name not in group.attrs:
        faults.append(f"attribute {name} is missing")
        return None
    value = group.attrs[name]
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if not isinstance(value, str):
        faults.append(f"attribute {name} is {_shown(value)}, expected text")
        return None
    return str(value)


def _shown(value: object) -> str:
    return repr(value.item() if isinstance(value, np.generic) else value)
