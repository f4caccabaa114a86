"""Brain-to-Text '25 recordings: an index that is built and checked once, and trials that are read when needed.

Layout: `<root>/<session>/data_{train,val,test}.hdf5`; see `t15_format` for what a file holds. Session folders of the
benchmark are named `t15.YYYY.MM.DD`; any other name works, and sessions are ordered by name. A folder that
`prepare` made of such a one gives the same index and the same trials.
"""

import difflib
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import h5py
import numpy as np
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from mode_ssm.config import OnBadTrial
from mode_ssm.data.batch import Trial, TrialInfo
from mode_ssm.data.checks import FileScan, scan_file, trial_order
from mode_ssm.data.layout_checks import check_entries, check_session_names
from mode_ssm.data.manifest import MANIFEST_FILE, is_prepared, read_manifest
from mode_ssm.data.scan_cache import ScanCache
from mode_ssm.data.shards import SHARD_SUFFIX, Shard
from mode_ssm.data.statistics import FeatureStatistics, merge_blocks
from mode_ssm.data.t15_format import SPLITS, session_file

logger = logging.getLogger(__name__)

LISTED_PROBLEMS = 20
MAX_OPEN_FILES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """Everything known about a dataset but its arrays.

    `trials` by split, in the order of session, then file; `sessions` the sorted names over all splits; `skipped`
    (name, reason) of every bad trial or file left out; `statistics[split][session]` of the raw features.
    """

    trials: dict[str, list[TrialInfo]]
    sessions: list[str]
    skipped: list[tuple[str, str]]
    statistics: dict[str, dict[str, FeatureStatistics]]


def build_index(
    root: Path | str,
    splits: Sequence[str] = SPLITS,
    sessions: Sequence[str] | None = None,
    feature_dim: int = 512,
    on_bad_trial: OnBadTrial = OnBadTrial.stop,
    *,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> Index:
    """Find, check and list all trials under `root`. Files that did not change since the last time are not opened.

    sessions: None takes all. cache_dir: where scans are kept; None is the user's cache folder. Raises `ValueError`
    for a missing folder, an unknown split or session, and, with `OnBadTrial.stop`, for bad trials: all of them
    together, one line each, naming file and trial. With `OnBadTrial.skip` they are left out, counted and logged.
    """
    root = Path(root)
    _check_splits(splits)
    if is_prepared(root):
        return _prepared_index(root, splits, sessions, feature_dim)
    found = find_files(root, splits, sessions)
    scans = _scan(found, feature_dim, ScanCache(cache_dir), progress)
    index = Index(trials={split: [] for split in splits}, sessions=[], skipped=[], statistics={s: {} for s in splits})
    for (session, split), path in found.items():
        scan = scans[session, split]
        for problem in scan.problems:
            name = f"{session}/{path.name}" + (f" {problem.key}" if problem.key else "")
            index.skipped.append((name, problem.reason))
        if scan.statistics is not None:
            index.statistics[split][session] = scan.statistics
        for trial in scan.trials:
            index.trials[split].append(
                TrialInfo(
                    session=session,
                    split=split,
                    block=trial.block,
                    trial=trial.trial,
                    path=str(path),
                    key=trial.key,
                    num_bins=trial.num_bins,
                    num_phonemes=trial.num_phonemes,
                    sentence=trial.sentence,
                )
            )
    if index.skipped:
        listing = list_problems(root, index.skipped)
        if on_bad_trial is OnBadTrial.stop:
            raise ValueError(f"{listing}\nrepair them, or leave them out with data.on_bad_trial=skip")
        logger.warning("left out %s", listing)
    index.sessions.extend(sorted({trial.session for trials in index.trials.values() for trial in trials}))
    return index


def find_files(root: Path, splits: Sequence[str], sessions: Sequence[str] | None) -> dict[tuple[str, str], Path]:
    """(session, split) -> file, sorted by session. Raises `ValueError` as `build_index` does."""
    if not root.is_dir():
        raise ValueError(f"data.root={root} is not a folder; it should hold one folder a session")
    check_entries(root)
    available = sorted({path.parent.name for split in SPLITS for path in root.glob(f"*/data_{split}.hdf5")})
    if not available:
        raise ValueError(f"data.root={root} holds no <session>/data_{{{','.join(SPLITS)}}}.hdf5")
    check_session_names(root, available)
    chosen = _chosen_sessions(root, sessions, available)
    files = {(session, split): session_file(root, session, split).absolute() for session in chosen for split in splits}
    return {key: path for key, path in files.items() if path.is_file()}


def _check_splits(splits: Sequence[str]) -> None:
    for split in splits:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")


def _chosen_sessions(root: Path, sessions: Sequence[str] | None, available: list[str]) -> list[str]:
    for session in sessions if sessions is not None else ():
        if session not in available:
            nearest = difflib.get_close_matches(session, available, n=1, cutoff=0.0)[0]
            raise ValueError(f"no session {session!r} under data.root={root}; the nearest name is {nearest!r}")
    return available if sessions is None else sorted(set(sessions))


def _prepared_index(root: Path, splits: Sequence[str], sessions: Sequence[str] | None, feature_dim: int) -> Index:
    """The same as of the folder that `root` was prepared from, but for the paths; no recording is read."""
    manifest = read_manifest(root)
    if manifest is None:
        raise ValueError(f"{root / MANIFEST_FILE} cannot be read; run scripts/prepare_data.py again")
    if manifest["settings"]["feature_dim"] != feature_dim:
        prepared_dim = manifest["settings"]["feature_dim"]
        raise ValueError(f"data.root={root} holds {prepared_dim} features a bin, but data.feature_dim={feature_dim}")
    available = sorted({session for split in SPLITS for session in manifest["blocks"][split]})
    chosen = set(_chosen_sessions(root, sessions, available))
    index = Index(trials={split: [] for split in splits}, sessions=[], skipped=[], statistics={s: {} for s in splits})
    blocks: dict[tuple[str, str], list[tuple[int, FeatureStatistics]]] = {}
    for entry in manifest["shards"]:
        shard = open_shard(root / entry["file"])
        if shard.split in splits:
            index.trials[shard.split] += [trial for trial in shard.trials if trial.session in chosen]
            for (session, block), statistics in shard.statistics.items():
                if session in chosen:
                    blocks.setdefault((shard.split, session), []).append((block, statistics))
    for split in splits:
        index.trials[split].sort(key=lambda trial: (trial.session, trial_order(trial.key)))
    for (split, session), found in sorted(blocks.items()):
        index.statistics[split][session] = merge_blocks(found)
    index.skipped.extend((name, reason) for name, reason in manifest["skipped"])
    if index.skipped:
        logger.warning("left out when the data were prepared: %s", list_problems(root, index.skipped))
    index.sessions.extend(sorted({trial.session for trials in index.trials.values() for trial in trials}))
    return index


def _scan(
    files: dict[tuple[str, str], Path], feature_dim: int, cache: ScanCache, progress: bool
) -> dict[tuple[str, str], FileScan]:
    scans: dict[tuple[str, str], FileScan] = {}
    fresh: list[tuple[str, str]] = []
    for key, path in files.items():
        stored = cache.load(path, feature_dim)
        if stored is None:
            fresh.append(key)
        else:
            scans[key] = stored
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not progress or not fresh) as bar:
        task = bar.add_task("checking recordings", total=sum(files[key].stat().st_size for key in fresh))
        for session, split in fresh:
            path = files[session, split]
            scan = scan_file(path, session, with_labels=split != "test", feature_dim=feature_dim)
            cache.store(path, feature_dim, scan)
            scans[session, split] = scan
            bar.advance(task, path.stat().st_size)
    return scans


def list_problems(root: Path, problems: list[tuple[str, str]]) -> str:
    """One line for each (name, reason), the first LISTED_PROBLEMS of them."""
    lines = [f"{len(problems)} bad recording{'s' if len(problems) > 1 else ''} under {root}:"]
    lines += [f"  {name}: {reason}" for name, reason in problems[:LISTED_PROBLEMS]]
    if len(problems) > LISTED_PROBLEMS:
        lines.append(f"  ... and {len(problems) - LISTED_PROBLEMS} more")
    return "\n".join(lines)


def submission_order(trials: Sequence[TrialInfo]) -> list[TrialInfo]:
    """Trials in the order of submission ids: session date (names sort as dates), block, trial number."""
    return sorted(trials, key=lambda trial: (trial.session, trial.block, trial.trial))


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
