"""The manifest of a prepared folder: what was made of what. It is written last; without it nothing is prepared."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mode_ssm.data.shards import SHARD_SUFFIX, replace_durably

MANIFEST_FILE = "manifest.json"
_KEYS = {"settings", "sources", "beside", "skipped", "trials", "blocks", "shards"}
_CHUNK_BYTES = 1 << 22

Manifest = dict[str, Any]


def is_prepared(root: Path | str) -> bool:
    """Is this a prepared folder? Raises `ValueError` in one line for one that was begun and not finished."""
    root = Path(root)
    if (root / MANIFEST_FILE).is_file():
        return True
    if any(root.glob(f"*_[0-9][0-9]{SHARD_SUFFIX}")) or any(root.glob(f".*{SHARD_SUFFIX}.*.partial")):
        raise ValueError(f"{root} is not prepared to the end (no {MANIFEST_FILE}); run scripts/prepare_data.py again")
    return False


def read_manifest(root: Path | str) -> Manifest | None:
    """The manifest of `root`; None where there is none that can be read."""
    try:
        manifest = json.loads((Path(root) / MANIFEST_FILE).read_text(encoding="utf-8"))
        return manifest if isinstance(manifest, dict) and manifest.keys() >= _KEYS else None
    except (OSError, ValueError):
        return None


def write_manifest(root: Path, manifest: Manifest) -> None:
    write_whole(root / MANIFEST_FILE, (json.dumps(manifest, indent=1) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file that appears whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        replace_durably(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def describe_source(path: Path, root: Path) -> dict[str, Any]:
    """What tells at a glance that a source did not change: `root`-relative name, size and time."""
    status = path.stat()
    return {
        "file": path.relative_to(root.absolute()).as_posix(),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
    }


def is_current(manifest: Manifest, output: Path, made_of: Manifest) -> bool:
    """Was `output` prepared from exactly this, by settings and by names, sizes and times, and not touched since?"""
    before = {key: manifest[key] for key in made_of}
    before["sources"] = [{k: v for k, v in source.items() if k != "sha256"} for source in manifest["sources"]]
    if before != made_of:
        return False
    written = (output / MANIFEST_FILE).stat().st_mtime_ns
    files = [(shard["file"], shard["size"]) for shard in manifest["shards"]]
    files += [(name, None) for name in manifest["beside"]]
    for name, size in files:
        path = output / name
        if not path.is_file() or size not in (None, path.stat().st_size) or path.stat().st_mtime_ns > written:
            return False
    return True


def compare_sources(manifest: Manifest, sources: Sequence[dict[str, Any]]) -> None:
    """Raises `ValueError` for a source that differs from what was prepared though size and time are the same."""
    known = {source["file"]: source for source in manifest["sources"]}
    for source in sources:
        before = known.get(source["file"])
        if before is None or (before["size"], before["mtime_ns"]) != (source["size"], source["mtime_ns"]):
            continue
        if before["sha256"] != source["sha256"]:
            raise ValueError(
                f"{source['file']} is damaged: not the bytes that were prepared, of the same size and time"
            )
