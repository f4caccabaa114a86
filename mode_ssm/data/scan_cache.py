"""Stored scans of session files: one small JSON a file, in the user's cache folder.

The data folder may be read-only and is never written to. A stored scan is used only while the file's size,
modification time, the expected feature width and the version of the checks are the same; anything else, a corrupt
entry included, is scanned again.
"""

import hashlib
import json
import logging
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mode_ssm.data.checks import CHECKS_VERSION, FileScan, Problem, ScannedTrial
from mode_ssm.data.statistics import FeatureStatistics

logger = logging.getLogger(__name__)


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/mode_ssm`, else `~/.cache/mode_ssm`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mode_ssm" / "scans"


class ScanCache:
    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else default_folder()

    def load(self, path: Path, feature_dim: int) -> FileScan | None:
        """The stored scan of `path`, or None if there is none that still holds."""
        entry = self._entry(path)
        try:
            record = json.loads(entry.read_text(encoding="utf-8"))
            return _decode(record["scan"]) if record["made_for"] == _made_for(path, feature_dim) else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("the stored scan %s is unusable and is made again: %r", entry, error)
            return None

    def store(self, path: Path, feature_dim: int, scan: FileScan) -> None:
        """Keep `scan`; where the folder cannot be written the next run scans again, and a warning says so.

        A file that could not be read at all is not stored: the cause may lie outside the file and pass.
        """
        if any(problem.key is None for problem in scan.problems):
            return
        record = {"made_for": _made_for(path, feature_dim), "scan": _encode(scan)}
        entry = self._entry(path)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.folder, delete=False, encoding="utf-8") as partial:
                json.dump(record, partial)
            os.replace(partial.name, entry)
        except OSError as error:
            logger.warning("cannot store the scan of %s in %s: %s", path, self.folder, error)

    def _entry(self, path: Path) -> Path:
        digest = hashlib.blake2b(str(path.resolve()).encode(), digest_size=16).hexdigest()
        return self.folder / f"{digest}.json"


def _made_for(path: Path, feature_dim: int) -> dict[str, int]:
    status = path.stat()
    return {
        "version": CHECKS_VERSION,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "feature_dim": feature_dim,
    }


def _encode(scan: FileScan) -> dict[str, Any]:
    statistics = scan.statistics
    return {
        "trials": [asdict(trial) for trial in scan.trials],
        "problems": [asdict(problem) for problem in scan.problems],
        "statistics": None
        if statistics is None
        else {"count": statistics.count, "mean": statistics.mean.tolist(), "std": statistics.std.tolist()},
    }


def _decode(record: dict[str, Any]) -> FileScan:
    statistics = record["statistics"]
    return FileScan(
        trials=[ScannedTrial(**trial) for trial in record["trials"]],
        problems=[Problem(**problem) for problem in record["problems"]],
        statistics=None
        if statistics is None
        else FeatureStatistics(
            count=statistics["count"], mean=np.array(statistics["mean"]), std=np.array(statistics["std"])
        ),
    )
