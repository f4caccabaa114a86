"""Brain-to-Text recordings: trials that are read when needed, and the dataset of them.

`index` says which trials there are. A trial lies in a session's HDF5 file (`t15_format`) or in a shard that `prepare`
made of such files (`shards`); both give the same arrays.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import h5py
import numpy as np

from mode_ssm.data.batch import Trial, TrialInfo
from mode_ssm.data.shards import SHARD_SUFFIX, Shard

MAX_OPEN_FILES = 64


class _OpenFiles:
    """Read handles of this process. One lock: HDF5 is serial anyway, and a handle must not close under a reader."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.files: dict[str, h5py.File] = {}

    def get(self, path: str) -> h5py.File:
        file = self.files.pop(path, None)
        if file is None:
            if len(self.files) >= MAX_OPEN_FILES:
                self.files.pop(next(iter(self.files))).close()
            file = h5py.File(path, "r")
        self.files[path] = file  # last used goes to the end
        return file

    def close(self) -> None:
        with self.lock:
            while self.files:
                self.files.popitem()[1].close()


_open_files = _OpenFiles()
_inherited: list[_OpenFiles] = []


def _start_afresh_after_fork() -> None:
    """A child opens its own handles. The parent's are kept untouched: closing them here would act on shared state."""
    global _open_files
    _inherited.append(_open_files)
    _open_files = _OpenFiles()


os.register_at_fork(after_in_child=_start_afresh_after_fork)


def close_files() -> None:
    """Close the handles that this process keeps open for `load_trial`."""
    _open_files.close()
    while _shards:
        _shards.popitem()[1].close()


_shards: dict[str, Shard] = {}  # never closed under a reader: they are few, and a fork may share them


def open_shard(path: Path) -> Shard:
    """Open a shard as it is now, for all later reads of its trials."""
    shard = _shards[str(path.absolute())] = Shard(path.absolute())
    return shard


def _shard_of(info: TrialInfo) -> Shard | None:
    """None for a trial of a session file."""
    if not info.path.endswith(SHARD_SUFFIX):
        return None
    return _shards.get(info.path) or open_shard(Path(info.path))


def feature_dim(info: TrialInfo) -> int:
    shard = _shard_of(info)
    if shard is not None:
        return shard.feature_dim
    with _open_files.lock:
        return int(_open_files.get(info.path)[info.key]["input_features"].shape[1])


def load_features(info: TrialInfo, memory: np.ndarray | None = None) -> np.ndarray:
    """Raw features (T, C) float32; read into `memory` (T, C), contiguous, where it is given."""
    shard = _shard_of(info)
    if shard is not None:
        features = np.empty((info.num_bins, shard.feature_dim), np.float32) if memory is None else memory
        shard.read_into(info, features)
        return features
    with _open_files.lock:
        dataset = _open_files.get(info.path)[info.key]["input_features"]
        if memory is None:
            return dataset[()]
        dataset.read_direct(memory)
        return memory


def load_phonemes(info: TrialInfo) -> np.ndarray | None:
    """Class ids (U,) int64, or None where the file withholds them."""
    if info.num_phonemes is None:
        return None
    shard = _shard_of(info)
    if shard is not None:
        return shard.phonemes(info)
    with _open_files.lock:
        ids = _open_files.get(info.path)[info.key]["seq_class_ids"][: info.num_phonemes]
    return ids.astype(np.int64)


def load_trial(info: TrialInfo) -> Trial:
    """Read one trial. Handles stay open for the next call, a set for every process."""
    return Trial(info=info, features=load_features(info), phonemes=load_phonemes(info))


class Transform(Protocol):
    def __call__(self, trial: Trial, epoch: int) -> np.ndarray: ...


class FeatureCache:
    """Raw features of trials, kept after the first read. One cache may serve many datasets of a process."""

    def __init__(self) -> None:
        self._features: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._features)

    def load(self, info: TrialInfo) -> np.ndarray:
        """Features (T, C); not to be changed in place."""
        features = self._features.get(info.name)
        if features is None:
            features = self._features[info.name] = load_features(info)
        return features


class Brain2TextDataset:
    """Map-style: index -> transformed trial.

    label_sources: the trial whose phonemes and sentence trial i shows instead of its own (a control).
    """

    def __init__(
        self,
        trials: Sequence[TrialInfo],
        transform: Transform,
        *,
        cache: FeatureCache | None = None,
        label_sources: Sequence[TrialInfo] | None = None,
    ) -> None:
        self.trials = list(trials)
        self.transform = transform
        self.cache = cache
        self.label_sources = list(label_sources) if label_sources is not None else self.trials
        if len(self.label_sources) != len(self.trials):
            raise ValueError(f"{len(self.label_sources)} label sources for {len(self.trials)} trials")

    def __len__(self) -> int:
        return len(self.trials)

    def __getitem__(self, index: int) -> Trial:
        return self.at(index, epoch=0)

    @property
    def feature_dim(self) -> int:
        return feature_dim(self.trials[0])

    def at(self, index: int, epoch: int, memory: np.ndarray | None = None) -> Trial:
        """Trial `index` as epoch `epoch` shows it. memory (T, C): where to read the raw features to, if anywhere."""
        info, source = self.trials[index], self.label_sources[index]
        features = self.cache.load(info) if self.cache is not None else load_features(info, memory)
        shown = replace(info, num_phonemes=source.num_phonemes, sentence=source.sentence)
        raw = Trial(info=shown, features=features, phonemes=load_phonemes(source))
        return replace(raw, features=self.transform(raw, epoch))

    def fill_cache(self) -> None:
        """Read every trial now, so that worker processes started later share the memory instead of each reading."""
        if self.cache is not None:
            for info in self.trials:
                self.cache.load(info)
