"""The index of a dataset, built and checked once: which trials there are, and in which order.

Layout: `<root>/<session>/data_{train,val,test}.hdf5`; see `t15_format` for what a file holds. Session folders of the
benchmark are named `t15.YYYY.MM.DD`; any other name works, and sessions are ordered by name. A folder that
`prepare` made of such a one gives the same index and the same trials.
"""

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from mode_ssm.config import OnBadTrial
from mode_ssm.data.batch import TrialInfo
from mode_ssm.data.brain2text import open_shard
from mode_ssm.data.checks import FileScan, scan_file, trial_order
from mode_ssm.data.layout_checks import check_entries, check_session_names
from mode_ssm.data.manifest import MANIFEST_FILE, is_prepared, read_manifest
from mode_ssm.data.scan_cache import ScanCache
from mode_ssm.data.statistics import FeatureStatistics, merge_blocks
from mode_ssm.data.t15_format import SPLITS, session_file

logger = logging.getLogger(__name__)

LISTED_PROBLEMS = 20


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
        index.skipped.extend(named_problems(session, path, scan))
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


def named_problems(session: str, path: Path, scan: FileScan) -> list[tuple[str, str]]:
    """(name, reason) of all that is wrong in a file; names are of the file, and of the trial where there is one."""
    return [
        (f"{session}/{path.name}" + (f" {problem.key}" if problem.key else ""), problem.reason)
        for problem in scan.problems
    ]


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
