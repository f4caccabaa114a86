"""From a folder of recordings to a prepared one: all checked once, features in shards, a manifest with checksums.

Session files are checked, then every shard is written by one process, under a name of its own that becomes the final
one when the file is whole and on disk; the manifest comes last. A shard carries a fingerprint of what it is made from:
a run that was stopped, or whose recordings changed in part, writes what is missing and nothing else. The bytes depend
neither on that nor on the number of processes.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mode_ssm
from mode_ssm.config import OnBadTrial
from mode_ssm.data.checks import CHECKS_VERSION, FileScan, scan_file
from mode_ssm.data.disk_room import check_room
from mode_ssm.data.index import find_files, list_problems, named_problems
from mode_ssm.data.manifest import (
    MANIFEST_FILE,
    Manifest,
    checksum,
    compare_sources,
    describe_source,
    is_current,
    read_manifest,
    write_manifest,
    write_whole,
)
from mode_ssm.data.matlab import convert_session, find_matlab_files
from mode_ssm.data.processes import Workers
from mode_ssm.data.scan_cache import ScanCache
from mode_ssm.data.shard_plan import PlannedShard, plan_shards
from mode_ssm.data.shards import SHARD_FORMAT, SHARD_SUFFIX, read_fingerprint, write_shard
from mode_ssm.data.t15_format import SPLITS, session_file

BESIDE = ("truth.jsonl", "lexicon.txt", "simulation.json")  # copied where they are there
CONVERTED = ".converted"  # T12 in the layout of T15, while it is prepared
T15_TRIALS = {"train": 8072, "val": 1426, "test": 1450}
T15_SESSIONS = 45

Pronounce = Callable[[str], Sequence[int]]  # sentence -> class ids


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What decides about the content of a prepared folder, beside the recordings.

    labels: what T12's phonemes are made with, in words or as a checksum; a change prepares again.
    """

    feature_dim: int = 512
    train_shards: int = 8
    on_bad_trial: OnBadTrial = OnBadTrial.stop
    labels: str | None = None

    def described(self) -> dict[str, str | int | None]:
        return {
            "shard_format": SHARD_FORMAT,
            "checks_version": CHECKS_VERSION,
            "feature_dim": self.feature_dim,
            "train_shards": self.train_shards,
            "on_bad_trial": self.on_bad_trial.value,
            "labels": self.labels,
        }


@dataclass(frozen=True, slots=True)
class Recording:
    """A split of a session: its HDF5 file, and the file that came from the archive, which is the same but for T12."""

    session: str
    split: str
    path: Path
    source: Path


def prepare(
    root: Path | str,
    output: Path | str,
    settings: Settings | None = None,
    *,
    pronounce: Pronounce | None = None,
    processes: int = 1,
    verify: bool = False,
    progress: bool = True,
    cache_dir: Path | None = None,
) -> bool:
    """Prepare the recordings under `root` into the folder `output`; False if there was nothing to do.

    `root` has T15's layout, or T12's (`{train,test,competitionHoldOut}/*.mat`), for which `pronounce` gives the
    phonemes. verify: compare checksums of all files too, not only sizes and times. Raises `ValueError` for bad
    recordings (all of them, a line each), for counts that are not those expected and for damaged sources; `OSError`
    where the disk is full or cannot be written.
    """
    root, output, settings = Path(root), Path(output), settings or Settings()
    recordings = _find_recordings(root, output)
    sources = [describe_source(recording.source, root) for recording in recordings]
    beside = {name: (root / name).read_bytes() for name in BESIDE if (root / name).is_file()}
    made_of = {
        "settings": settings.described(),
        "sources": sources,
        "beside": {name: hashlib.sha256(content).hexdigest() for name, content in beside.items()},
    }
    old = read_manifest(output)
    current = old is not None and is_current(old, output, made_of)
    if current and not verify:
        return False
    with Workers(processes, progress=progress) as workers:
        sizes = [source["size"] for source in sources]
        sums = workers.map("checksums", checksum, [(recording.source,) for recording in recordings], sizes)
        for source, found in zip(sources, sums, strict=True):
            source["sha256"] = found
        if old is not None and verify:
            compare_sources(old, sources)
            if not _remove_damaged(old, output, workers) and current:
                return False
        output.mkdir(parents=True, exist_ok=True)
        for path in output.glob(".*.partial"):
            path.unlink()
        if any(recording.path != recording.source for recording in recordings):
            _convert(recordings, pronounce, workers)
        scans = _scan(recordings, settings, ScanCache(cache_dir), workers)
        skipped = _refuse_problems(root, recordings, scans, settings.on_bad_trial)
        _compare_counts(root, recordings, scans)
        shards = _plan(output, recordings, scans, sums, settings)
        _make_room(output, shards, settings)
        _write_missing(shards, settings, workers)
        for name, content in beside.items():
            write_whole(output / name, content)
        described = _describe(shards, workers)
    manifest = {"prepared_by": f"mode_ssm {mode_ssm.__version__}", **made_of, "skipped": skipped, **described}
    write_manifest(output, manifest)
    shutil.rmtree(output / CONVERTED, ignore_errors=True)
    return True


def _find_recordings(root: Path, output: Path) -> list[Recording]:
    matlab = find_matlab_files(root)
    if matlab:
        converted = output / CONVERTED
        return [Recording(s, split, session_file(converted, s, split), path) for (s, split), path in matlab.items()]
    found = find_files(root, SPLITS, None)
    return [Recording(session, split, path, path) for (session, split), path in found.items()]


def _remove_damaged(old: Manifest, output: Path, workers: Workers) -> bool:
    """Delete shards that are not what the manifest says; True if there were any."""
    shards = [shard for shard in old["shards"] if (output / shard["file"]).is_file()]
    sums = workers.map(
        "checksums of shards", checksum, [(output / s["file"],) for s in shards], [s["size"] for s in shards]
    )
    damaged = [s["file"] for s, found in zip(shards, sums, strict=True) if s["sha256"] != found]
    for name in damaged:
        (output / name).unlink()
    return bool(damaged)


def _convert(recordings: Sequence[Recording], pronounce: Pronounce | None, workers: Workers) -> None:
    """Serial: the pronouncer is the caller's and may be large."""
    for recording in recordings:
        status = recording.source.stat()
        # A converted file has the time of what it was made from, once it is whole.
        if not recording.path.is_file() or recording.path.stat().st_mtime_ns != status.st_mtime_ns:
            convert_session(recording.source, recording.path, recording.session, recording.split, pronounce)


def _scan(recordings: Sequence[Recording], settings: Settings, cache: ScanCache, workers: Workers) -> list[FileScan]:
    calls = [(r.path, r.session, r.split, settings.feature_dim, cache) for r in recordings]
    return workers.map("checking recordings", _scan_one, calls, [r.path.stat().st_size for r in recordings])


def _scan_one(path: Path, session: str, split: str, feature_dim: int, cache: ScanCache) -> FileScan:
    scan = cache.load(path, feature_dim)
    if scan is None:
        scan = scan_file(path, session, with_labels=split != "test", feature_dim=feature_dim)
        cache.store(path, feature_dim, scan)
    return scan


def _refuse_problems(
    root: Path, recordings: Sequence[Recording], scans: Sequence[FileScan], on_bad_trial: OnBadTrial
) -> list[tuple[str, str]]:
    problems = [
        problem
        for recording, scan in zip(recordings, scans, strict=True)
        for problem in named_problems(recording.session, recording.path, scan)
    ]
    if problems and on_bad_trial is OnBadTrial.stop:
        raise ValueError(f"{list_problems(root, problems)}\nrepair them, or leave them out with --on-bad-trial skip")
    return problems


def _compare_counts(root: Path, recordings: Sequence[Recording], scans: Sequence[FileScan]) -> None:
    """Simulated data say how many trials they have; 45 sessions t15.* without that claim to be the benchmark's."""
    sessions = {recording.session for recording in recordings}
    simulation = root / "simulation.json"
    if simulation.is_file():
        try:
            counts = json.loads(simulation.read_text(encoding="utf-8"))["trials"]
            expected = {split: int(counts[split]) for split in SPLITS}
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{simulation}: no counts of trials in it; simulate the recordings again") from None
        claim = "simulation.json says"
    elif len(sessions) == T15_SESSIONS and all(re.fullmatch(r"t15\.[\d.]+", session) for session in sessions):
        expected, claim = T15_TRIALS, "Brain-to-Text '25 has"
    else:
        return
    for split in SPLITS:
        found = sum(
            len(scan.trials) + sum(problem.key is not None for problem in scan.problems)
            for recording, scan in zip(recordings, scans, strict=True)
            if recording.split == split
        )
        if found != expected[split]:
            raise ValueError(f"{root} holds {found} {split} trials, but {claim} {expected[split]}; is a file missing?")


def _plan(
    output: Path, recordings: Sequence[Recording], scans: Sequence[FileScan], sums: Sequence[str], settings: Settings
) -> list[PlannedShard]:
    shards: list[PlannedShard] = []
    for split in SPLITS:
        own = [
            (recording.path, recording.session, scan, found)
            for recording, scan, found in zip(recordings, scans, sums, strict=True)
            if recording.split == split and scan.trials
        ]
        number = settings.train_shards if split == "train" else 1
        shards += plan_shards(output, split, own, number, json.dumps(settings.described()))
    return shards


def _make_room(output: Path, shards: Sequence[PlannedShard], settings: Settings) -> None:
    """Remove the manifest and what the plan does not name; is there space for the rest?"""
    missing = [shard for shard in shards if read_fingerprint(shard.path) != shard.fingerprint]
    check_room({output: sum(4 * settings.feature_dim * shard.num_bins for shard in missing)})
    (output / MANIFEST_FILE).unlink(missing_ok=True)
    planned = {shard.path for shard in shards}
    for split in SPLITS:
        for path in output.glob(f"{split}_*{SHARD_SUFFIX}"):
            if path not in planned:
                path.unlink()


def _write_missing(shards: Sequence[PlannedShard], settings: Settings, workers: Workers) -> None:
    missing = [shard for shard in shards if read_fingerprint(shard.path) != shard.fingerprint]
    missing.sort(key=lambda shard: -shard.num_bins)  # the longest first, so that no process waits long at the end
    sizes = [4 * settings.feature_dim * shard.num_bins for shard in missing]
    calls = [(s.path, s.split, s.parts, settings.feature_dim, s.fingerprint) for s in missing]
    workers.map("writing shards", write_shard, calls, sizes)


def _describe(shards: Sequence[PlannedShard], workers: Workers) -> Manifest:
    """Counts, and what each shard holds."""
    sizes = [shard.path.stat().st_size for shard in shards]
    sums = workers.map("checksums of shards", checksum, [(shard.path,) for shard in shards], sizes)
    blocks: dict[str, dict[str, dict[str, int]]] = {split: {} for split in SPLITS}
    for shard in shards:
        for part in shard.parts:
            counts = blocks[shard.split].setdefault(part.session, {})
            for trial in part.trials:
                counts[str(trial.block)] = counts.get(str(trial.block), 0) + 1
    return {
        "trials": {split: sum(sum(counts.values()) for counts in blocks[split].values()) for split in SPLITS},
        "blocks": blocks,
        "shards": [
            {
                "file": shard.path.name,
                "size": size,
                "sha256": found,
                "trials": sum(len(part.trials) for part in shard.parts),
                "bins": shard.num_bins,
            }
            for shard, size, found in zip(shards, sizes, sums, strict=True)
        ],
    }
