"""Shards: trials of many sessions in one HDF5 file, laid out so that one trial is one contiguous read.

    features (N, C) float32     the bins of all trials one after the other; contiguous, not compressed
    phonemes (P,) int32         class ids of all trials
    trials/                     a column each: session, key, block, trial, num_bins, num_phonemes (-1: none), sentence
    blocks/                     a row for each block of each session: session, block, count, mean, std (float64),
                                covariance (C, C) float32

The bytes of `features` stand at one offset, so that a trial is one `preadv` into memory that is there already: no lock,
no GIL, no copy. Compression saves a third of the space at best and costs ten times the reading.
A block is never divided between shards; its statistics are complete.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from mode_ssm.data.batch import TrialInfo
from mode_ssm.data.checks import ScannedTrial
from mode_ssm.data.statistics import FeatureStatistics, RunningCovariance, merge

SHARD_FORMAT = 1  # raise whenever the layout changes
SHARD_SUFFIX = ".h5"  # session files of the benchmark end in .hdf5


@dataclass(frozen=True, slots=True)
class SessionPart:
    """Trials of one session file that go into a shard, in the order of the file."""

    path: Path
    session: str
    trials: tuple[ScannedTrial, ...]


def write_shard(path: Path, split: str, parts: Sequence[SessionPart], feature_dim: int, fingerprint: str) -> None:
    """Write a shard: the file appears whole, and on disk, or not at all.

    fingerprint: what it is made from, for `read_fingerprint`. Equal arguments give equal bytes. Raises `OSError` in one
    line, naming the file, where it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            with h5py.File(partial, "w") as file:
                write_header(file, split, feature_dim, fingerprint)
                _write_trials(file, parts, feature_dim)
        except (OSError, RuntimeError) as error:  # h5py has both for a full disk
            raise OSError(f"cannot write {path}: {' '.join(str(error).split())}") from error
        replace_durably(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_header(file: h5py.File, split: str, feature_dim: int, fingerprint: str) -> None:
    file.attrs.update(format=SHARD_FORMAT, split=split, feature_dim=feature_dim, fingerprint=fingerprint)


def replace_durably(partial: Path, path: Path) -> None:
    """Give a finished file its name; after a loss of power there is the old file or the whole new one."""
    _sync(partial)
    os.replace(partial, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_trials(file: h5py.File, parts: Sequence[SessionPart], feature_dim: int) -> None:
    trials = [(part.session, trial) for part in parts for trial in part.trials]
    features = create_features(file, sum(trial.num_bins for _, trial in trials), feature_dim)
    phonemes: list[np.ndarray] = []
    statistics: dict[tuple[str, int], list[FeatureStatistics]] = {}
    covariances: dict[tuple[str, int], RunningCovariance] = {}
    first = 0
    for part in parts:
        with h5py.File(part.path, "r") as source:
            for trial in part.trials:
                group, block = source[trial.key], (part.session, trial.block)
                read = group["input_features"][()]
                if len(read) != trial.num_bins:
                    raise OSError(f"{part.path} {trial.key} changed while it was read")
                features[first : first + len(read)] = read
                first += len(read)
                statistics.setdefault(block, []).append(FeatureStatistics.of(read))
                covariances.setdefault(block, RunningCovariance()).add(read)
                if trial.num_phonemes is not None:
                    phonemes.append(group["seq_class_ids"][: trial.num_phonemes])
    write_trial_table(file, trials, phonemes)
    write_block_table(file, {block: merge(found) for block, found in statistics.items()})
    rows = file["blocks"].create_dataset("covariance", (len(covariances), feature_dim, feature_dim), np.float32)
    for row, covariance in enumerate(covariances.values()):
        rows[row] = covariance.covariance()


def create_features(file: h5py.File, num_bins: int, feature_dim: int) -> h5py.Dataset:
    return file.create_dataset("features", (num_bins, feature_dim), np.float32, fill_time="never")


def write_trial_table(
    file: h5py.File, trials: Sequence[tuple[str, ScannedTrial]], phonemes: Sequence[np.ndarray]
) -> None:
    """trials: (session, trial); phonemes of those that have any."""
    file["phonemes"] = np.concatenate([np.zeros(0, np.int32), *phonemes], dtype=np.int32)
    table = file.create_group("trials")
    table["session"] = _texts(session for session, _ in trials)
    table["key"] = _texts(trial.key for _, trial in trials)
    table["sentence"] = _texts(trial.sentence or "" for _, trial in trials)
    for column in ("block", "trial", "num_bins"):
        table[column] = np.array([getattr(trial, column) for _, trial in trials], np.int64)
    counts = [-1 if trial.num_phonemes is None else trial.num_phonemes for _, trial in trials]
    table["num_phonemes"] = np.array(counts, np.int64)


def write_block_table(file: h5py.File, blocks: Mapping[tuple[str, int], FeatureStatistics]) -> None:
    table = file.create_group("blocks")
    table["session"] = _texts(session for session, _ in blocks)
    table["block"] = np.array([block for _, block in blocks], np.int64)
    table["count"] = np.array([found.count for found in blocks.values()], np.int64)
    table["mean"] = np.stack([found.mean for found in blocks.values()])
    table["std"] = np.stack([found.std for found in blocks.values()])


def _texts(values: Iterable[str]) -> np.ndarray:
    """Fixed-width UTF-8: plain columns, which are the same bytes every time."""
    return np.array([value.encode() for value in values], dtype=np.bytes_)


def read_fingerprint(path: Path) -> str | None:
    """The fingerprint of a complete shard, None of anything else."""
    try:
        with h5py.File(path, "r") as file:
            return str(file.attrs["fingerprint"]) if file.attrs["format"] == SHARD_FORMAT else None
    except (OSError, RuntimeError, KeyError):
        return None


class Shard:
    """A shard, open for reading by any number of threads, and by children after a fork.

    `trials` as an official folder would list them, but for the path; `statistics[session, block]` of the raw features.
    """

    def __init__(self, path: Path | str) -> None:
        """Raises `ValueError` in one line for a file that is no shard, or one of another version."""
        self.path = str(path)
        try:
            with h5py.File(path, "r") as file:
                if file.attrs["format"] != SHARD_FORMAT:
                    raise ValueError(f"{path} has format {file.attrs['format']}, expected {SHARD_FORMAT}")
                self.split, self.feature_dim = str(file.attrs["split"]), int(file.attrs["feature_dim"])
                self._offset: int = file["features"].id.get_offset()
                self._phonemes = file["phonemes"][()].astype(np.int64)
                self.trials = list(self._read_trials(file["trials"]))
                self.statistics = dict(_read_blocks(file["blocks"]))
        except (OSError, RuntimeError, KeyError) as error:
            raise ValueError(f"{path} is not a shard ({' '.join(str(error).split())})") from None
        bins = np.cumsum([0, *(trial.num_bins for trial in self.trials)])
        labels = np.cumsum([0, *(trial.num_phonemes or 0 for trial in self.trials)])
        self._starts = {
            (trial.session, trial.key): (int(first), int(label))
            for trial, first, label in zip(self.trials, bins, labels, strict=False)
        }
        self._descriptor = os.open(path, os.O_RDONLY)

    def _read_trials(self, table: h5py.Group) -> Iterator[TrialInfo]:
        columns = {name: table[name][()].tolist() for name in table}
        for row in range(len(columns["key"])):
            labelled = columns["num_phonemes"][row] >= 0
            yield TrialInfo(
                session=columns["session"][row].decode(),
                split=self.split,
                block=columns["block"][row],
                trial=columns["trial"][row],
                path=self.path,
                key=columns["key"][row].decode(),
                num_bins=columns["num_bins"][row],
                num_phonemes=columns["num_phonemes"][row] if labelled else None,
                sentence=columns["sentence"][row].decode() if labelled else None,
            )

    def close(self) -> None:
        os.close(self._descriptor)

    def read_into(self, info: TrialInfo, features: np.ndarray) -> None:
        """Fill features (T, C) float32, contiguous."""
        first, _ = self._starts[info.session, info.key]
        row_bytes = 4 * self.feature_dim
        target = features.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(target):
            read = os.preadv(self._descriptor, [target[done:]], self._offset + first * row_bytes + done)
            if read == 0:
                raise OSError(f"{self.path} ends before {info.name}; prepare the data again")
            done += read

    def phonemes(self, info: TrialInfo) -> np.ndarray | None:
        """Class ids (U,) int64, or None where the split withholds them."""
        if info.num_phonemes is None:
            return None
        _, first = self._starts[info.session, info.key]
        return self._phonemes[first : first + info.num_phonemes]


def _read_blocks(table: h5py.Group) -> Iterator[tuple[tuple[str, int], FeatureStatistics]]:
    sessions, blocks, counts = (table[name][()].tolist() for name in ("session", "block", "count"))
    for session, block, count, mean, std in zip(
        sessions, blocks, counts, table["mean"][()], table["std"][()], strict=True
    ):
        yield (session.decode(), block), FeatureStatistics(count=count, mean=mean, std=std)


def block_covariance(path: Path | str, session: str, block: int) -> np.ndarray:
    """Covariance (C, C) float32 of a block's raw features. Raises `ValueError` for a block that is not there."""
    with h5py.File(path, "r") as file:
        blocks = file["blocks"]
        rows = np.flatnonzero((blocks["session"][()] == session.encode()) & (blocks["block"][()] == block))
        if len(rows) == 0:
            raise ValueError(f"{path} holds no block {block} of session {session!r}")
        covariance: np.ndarray = blocks["covariance"][rows[0]]
        return covariance
