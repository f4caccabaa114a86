"""Which trials go into which shard."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mode_ssm.data.checks import FileScan
from mode_ssm.data.shards import SHARD_SUFFIX, SessionPart


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """A shard to write. fingerprint: of the settings and of everything that goes in."""

    path: Path
    split: str
    parts: tuple[SessionPart, ...]
    fingerprint: str

    @property
    def num_bins(self) -> int:
        return sum(trial.num_bins for part in self.parts for trial in part.trials)


def plan_shards(
    folder: Path, split: str, files: Sequence[tuple[Path, str, FileScan, str]], number: int, settings: str
) -> list[PlannedShard]:
    """At most `number` shards of about the same size; a block of a session is never divided.

    files: (path, session, scan, checksum of the source) in the order of sessions. There are fewer shards where there
    are fewer blocks.
    """
    total = sum(trial.num_bins for _, _, scan, _ in files for trial in scan.trials)
    blocks: dict[tuple[int, int], int] = {}  # (file, block) -> bins
    for index, (_, _, scan, _) in enumerate(files):
        for trial in scan.trials:
            blocks[index, trial.block] = blocks.get((index, trial.block), 0) + trial.num_bins
    shard_of: dict[tuple[int, int], int] = {}
    before = 0
    for block, bins in blocks.items():
        shard_of[block] = number * (2 * before + bins) // (2 * total)  # by the middle of the block
        before += bins
    shards: list[PlannedShard] = []
    for place in sorted(set(shard_of.values())):
        parts = []
        digest = hashlib.sha256(f"{settings} {split}".encode())
        for index, (path, session, scan, source) in enumerate(files):
            trials = tuple(trial for trial in scan.trials if shard_of[index, trial.block] == place)
            if trials:
                parts.append(SessionPart(path, session, trials))
                digest.update(f"\n{session} {source} {[trial.key for trial in trials]}".encode())
        path = folder / f"{split}_{len(shards):02d}{SHARD_SUFFIX}"
        shards.append(PlannedShard(path, split, tuple(parts), digest.hexdigest()))
    return shards
