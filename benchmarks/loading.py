"""Training batches from disk: trials a second and memory, ours against the way of the benchmark's own training.

    uv run scripts/simulate_data.py --root data/simulated_medium --scale medium
    OMP_NUM_THREADS=1 uv run benchmarks/loading.py --root data/simulated_medium [--official CHECKOUT] [--json FILE]
    OMP_NUM_THREADS=1 uv run benchmarks/loading.py --full [--root processed]     # memory at full size

Batches of 64 trials from four sessions, on the same files, after all of them were read once. The official way opens
the sessions' files and reads trial by trial in a DataLoader that returns whole batches; it runs with 0, 2 and 4 workers
(4 is the official setting) and its best counts. Each way runs in a process of its own, in turns. `augmented` adds white
noise, a constant offset, a random cut and smoothing. Memory is what the process and its workers hold beyond the start
(proportional set size). `cpu` is processor time, which busy neighbours do not change: where they are busy compare that.

`--full` streams one epoch of the prepared folder in --root. If that is none, 8,072 trials of about 900 bins come from
shards whose features are holes in a file: the sizes of the real ones without the disk space. Memory is real, speed not.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from loading_official import official_batches
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mode_ssm.config import AugmentConfig, Smoothing
from mode_ssm.data.augmentation import BatchAugmentation
from mode_ssm.data.checks import ScannedTrial
from mode_ssm.data.index import build_index
from mode_ssm.data.loader import TrialLoader
from mode_ssm.data.manifest import is_prepared, write_manifest
from mode_ssm.data.prepare import prepare
from mode_ssm.data.sampler import BucketSampler
from mode_ssm.data.shards import create_features, write_block_table, write_header, write_trial_table
from mode_ssm.data.statistics import FeatureStatistics
from mode_ssm.data.transforms import SignalTransform
from mode_ssm.tasks.augmented_loader import AugmentedLoader

BATCH, SESSIONS = 64, 4
AUGMENT = AugmentConfig(white_noise_std=1.0, constant_offset_std=0.2, random_cut_bins=3)
WAYS = ("official, 0 workers", "official, 2 workers", "official, 4 workers", "ours, session files", "ours, shards")
FULL_TRIALS, FULL_SESSIONS, FULL_SHARDS, FULL_BINS, FULL_FEATURES = 8072, 45, 8, 900, 512
CONSOLE = Console(width=120, stderr=True)


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.way is not None:
        print(json.dumps(_measure(arguments)))
        return 0
    with tempfile.TemporaryDirectory(prefix="mode_ssm-loading-", dir=arguments.scratch) as temporary:
        arguments.prepared = Path(temporary) / "processed"
        if arguments.full:
            if is_prepared(arguments.root):
                arguments.prepared = arguments.root
            else:
                _write_holes(arguments.prepared)
            results = {
                "loading": {"ours, shards": _in_turns(arguments, ["ours, shards"], augmented=False)["ours, shards"]}
            }
        else:
            prepare(arguments.root, arguments.prepared, processes=os.cpu_count() or 1)
            results = {
                name: _in_turns(arguments, WAYS, augmented=name == "augmented") for name in ("loading", "augmented")
            }
    for name, rows in results.items():
        Console(width=120).print(_table(name, rows))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/simulated_small"), help="recordings in T15's layout")
    parser.add_argument("--official", type=Path, help="checkout of the official repository, to run its own code")
    parser.add_argument("--batches", type=int, default=24, help="batches a run (default 24)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way; medians count (default 3)")
    parser.add_argument("--full", action="store_true", help="one epoch of full size, for its memory")
    parser.add_argument("--scratch", type=Path, help="where shards are written for the time of the run")
    parser.add_argument("--json", type=Path, help="write the figures here")
    for hidden in ("--way", "--prepared"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--augmented", action="store_true", help=argparse.SUPPRESS)
    return parser


def _write_holes(folder: Path) -> None:
    """A prepared folder of full size: tables as they should be, features that were never written."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    shards, sessions = [], [f"t15.{number:02d}" for number in range(FULL_SESSIONS)]
    for place, members in enumerate(np.array_split(np.arange(FULL_TRIALS), FULL_SHARDS)):
        trials = []
        for number in members.tolist():
            bins = int(np.clip(rng.normal(FULL_BINS, FULL_BINS / 3), 200, 2500))
            trial = ScannedTrial(
                key=f"trial_{number:04d}", block=1, trial=number, num_bins=bins, num_phonemes=30, sentence="a sentence"
            )
            trials.append((sessions[number * FULL_SESSIONS // FULL_TRIALS], trial))
        name, total = f"train_{place:02d}.h5", sum(trial.num_bins for _, trial in trials)
        spread = FeatureStatistics(count=total, mean=np.zeros(FULL_FEATURES), std=np.ones(FULL_FEATURES))
        with h5py.File(folder / name, "w") as file:
            write_header(file, "train", FULL_FEATURES, "holes")
            create_features(file, total, FULL_FEATURES)[-1] = 0.0  # the file becomes long enough by its last row
            write_trial_table(file, trials, [np.ones(30, np.int32)] * len(trials))
            write_block_table(file, {(session, 1): spread for session, _ in trials})
        shards.append({"file": name})
    blocks = {"train": {session: {} for session in sessions}, "val": {}, "test": {}}
    made_of = {"settings": {"feature_dim": FULL_FEATURES}, "sources": [], "beside": {}, "skipped": [], "trials": {}}
    write_manifest(folder, {**made_of, "blocks": blocks, "shards": shards})


def _in_turns(
    arguments: argparse.Namespace, ways: tuple[str, ...] | list[str], augmented: bool
) -> dict[str, dict[str, float]]:
    """Medians of every way. A first, uncounted round brings all files into the page cache."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    rounds = 1 if arguments.full else arguments.rounds + 1
    for number in track(range(rounds), "augmented" if augmented else "loading", console=CONSOLE):
        for way in ways:
            command = [sys.executable, __file__, "--way", way, "--root", str(arguments.root)]
            command += ["--prepared", str(arguments.prepared), "--batches", str(arguments.batches)]
            command += ["--official", str(arguments.official)] if arguments.official else []
            command += [flag for flag, wanted in (("--augmented", augmented), ("--full", arguments.full)) if wanted]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            if number > 0 or rounds == 1:
                runs[way].append(found)
    return {
        way: {name: statistics.median(run[name] for run in found) for name in found[0]} for way, found in runs.items()
    }


def _measure(arguments: argparse.Namespace) -> dict[str, float]:
    """One way, in this process: from the second batch on, when workers run and memory is warm."""
    peak = _PeakMemory()
    trials = bins = 0
    stream = _stream(arguments)
    next(stream)
    begin, cpu = time.perf_counter(), _cpu_seconds()
    for count, length in stream:
        trials, bins = trials + count, bins + length
    wall, cpu = time.perf_counter() - begin, _cpu_seconds() - cpu
    return {
        "trials_per_s": trials / wall,
        "trials_per_cpu_s": trials / cpu,
        "peak_mb": peak.stop(),
        "trials": trials,
        "gb": bins * 4 * 512 / 1e9,
    }


def _stream(arguments: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """(trials, bins) of every batch."""
    if arguments.way.startswith("official"):
        workers = int(arguments.way.split()[1])
        checkout = arguments.official
        for batch in official_batches(arguments.root, arguments.batches, workers, arguments.augmented, checkout):
            yield len(batch["n_time_steps"]), int(batch["n_time_steps"].sum())
        return
    root = arguments.prepared if arguments.way.endswith("shards") else arguments.root
    index = build_index(root, splits=("train",), progress=False)
    trials = index.trials["train"]
    loader = TrialLoader(
        trials,
        SignalTransform(Smoothing.none, 0.0),
        {name: row for row, name in enumerate(index.sessions)},
        BucketSampler(trials, BATCH, SESSIONS, seed=0),
    )
    batches = (
        AugmentedLoader(loader, BatchAugmentation(AUGMENT, Smoothing.symmetric, 2.0, seed=0))
        if arguments.augmented
        else loader
    )
    wanted = loader.steps_per_epoch if arguments.full else arguments.batches
    done = 0
    for epoch in range(wanted):
        for batch in batches.epoch(epoch):
            yield len(batch), int(batch.feature_lengths.sum())
            done += 1
            if done == wanted:
                return


class _PeakMemory:
    """Largest proportional set size, of this process and its children together, beyond that at the start, in MB."""

    def __init__(self) -> None:
        self.start = self.peak = _resident_mb()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(0.05):
            self.peak = max(self.peak, _resident_mb())

    def stop(self) -> float:
        self._stopped.set()
        self._thread.join()
        return self.peak - self.start


def _resident_mb() -> float:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    total = 0
    for process in ("self", *children):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:  # ended meanwhile
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1e3


def _cpu_seconds() -> float:
    """Of this process and its children. Living children count from /proc: waited-for ones alone would be too late."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    total = own.ru_utime + own.ru_stime
    tick = os.sysconf("SC_CLK_TCK")
    for process in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / tick
    waited = resource.getrusage(resource.RUSAGE_CHILDREN)
    return total + waited.ru_utime + waited.ru_stime


def _table(name: str, rows: dict[str, dict[str, float]]) -> Table:
    table = Table(title=f"{name}: batches of {BATCH} trials")
    for column in ("", "trials/s", "trials/cpu s", "ratio", "ratio (cpu)", "peak MB"):
        table.add_column(column, justify="right" if column else "left")
    official = [row for way, row in rows.items() if way.startswith("official")]
    for way, row in rows.items():
        ratios = [
            f"{row[key] / max(peer[key] for peer in official):.1f}" if official else ""
            for key in ("trials_per_s", "trials_per_cpu_s")
        ]
        table.add_row(
            way, f"{row['trials_per_s']:.0f}", f"{row['trials_per_cpu_s']:.0f}", *ratios, f"{row['peak_mb']:.0f}"
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
