"""T15-format recordings whose truth is known: what is said, when, in which mode, on which drifting implant.

`simulate` writes a data folder, session by session, on as many processes as there are cores.
"""

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

from mode_ssm.data.processes import end_with_parent
from mode_ssm.data.simulator_constants import SimulatorConstants
from mode_ssm.data.simulator_layout import Scale, SessionLayout
from mode_ssm.data.simulator_scale import SCALES
from mode_ssm.data.simulator_session import SentencePlan, plan_sentences, simulate_session
from mode_ssm.data.simulator_text import pronunciations
from mode_ssm.data.t15_format import SPLITS, session_file, write_trial
from mode_ssm.data.truth import TRUTH_FILE, TruthRecord, read_truth, write_truth

GENERATOR_VERSION = 1
LEXICON_FILE = "lexicon.txt"
SIMULATION_FILE = "simulation.json"
SESSIONS_A_PROCESS = 4  # a process takes about a second to start: that many sessions of `small` have to repay it


def simulate(
    root: Path, scale: str = "small", seed: int = 0, progress: bool = True, workers: int | None = None
) -> None:
    """Write a simulated data folder: session files, `lexicon.txt`, `truth.jsonl` and `simulation.json`.

    The folder appears whole or not at all. Sessions are built in a hidden folder beside it; what an interrupted call
    leaves there is taken over by the next one that asks for the same. workers: processes, by default one a core and at
    most one for every four sessions; the bytes do not depend on them. Raises `FileExistsError` where `root` already
    holds something or is being written and `ValueError` for an unknown scale or a negative seed.
    """
    if scale not in SCALES:
        raise ValueError(f"data.simulate.scale={scale!r} is unknown; choose one of {', '.join(SCALES)}")
    if seed < 0:
        raise ValueError(f"data.simulate.seed={seed} is negative; choose 0 or more")
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"{root} already holds something; choose another folder or remove it")
    request = _request(scale, seed)
    digest = sha256(json.dumps(request).encode()).hexdigest()[:12]
    staging = root.parent / f".{root.name}.partial-{digest}"
    staging.mkdir(parents=True, exist_ok=True)
    with _sole_writer(staging, root):
        _write_sessions(staging, SCALES[scale], seed, workers, progress)
        _describe(staging, SCALES[scale], request)
        os.replace(staging / "data", root)
        shutil.rmtree(staging)


def _request(scale: str, seed: int) -> dict[str, Any]:
    """What decides the bytes, as far as they are not the code's."""
    return {
        "generator_version": GENERATOR_VERSION,
        "scale": scale,
        "seed": seed,
        "sessions": [session.name for session in SCALES[scale].sessions],
        "constants": asdict(SCALES[scale].constants),
    }


@contextmanager
def _sole_writer(staging: Path, root: Path) -> Iterator[None]:
    with (staging / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(f"{root} is being simulated by another process; wait for it") from None
        yield


def _write_sessions(staging: Path, scale: Scale, seed: int, workers: int | None, progress: bool) -> None:
    """Write the sessions that are missing in `staging`."""
    plan = plan_sentences(scale, seed)
    missing = [session for session in scale.sessions if not (staging / "data" / session.name).exists()]
    workers = min(workers or os.cpu_count() or 1, len(missing) // SESSIONS_A_PROCESS)
    write = partial(_write_session, staging, seed=seed, constants=scale.constants)
    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("simulating", total=len(scale.sessions), completed=len(scale.sessions) - len(missing))
        if workers < 2:
            for session in missing:
                write(session, plan)
                bar.advance(task)
            return
        # Fresh processes: the caller may hold threads or a GPU, which a fork would not survive.
        with ProcessPoolExecutor(workers, get_context("spawn"), initializer=end_with_parent) as pool:
            longest_first = sorted(missing, key=lambda s: -sum(block.num_sentences for block in s.blocks))
            futures = [pool.submit(write, session, _plan_of(session, plan)) for session in longest_first]
            try:
                for future in as_completed(futures):
                    future.result()
                    bar.advance(task)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _plan_of(session: SessionLayout, plan: SentencePlan) -> SentencePlan:
    return {(session.name, block.number): plan[session.name, block.number] for block in session.blocks}


def _write_session(
    staging: Path, session: SessionLayout, plan: SentencePlan, *, seed: int, constants: SimulatorConstants
) -> None:
    """Write `data/<session>/` and `truth/<session>.jsonl`; the session's folder appears last and whole."""
    building = staging / "building"
    shutil.rmtree(building / session.name, ignore_errors=True)
    (building / session.name).mkdir(parents=True)
    truth: list[TruthRecord] = []
    with ExitStack() as stack:
        files: dict[str, h5py.File] = {}
        for trial in simulate_session(session, plan, seed=seed, constants=constants):
            split = trial.truth.split
            if split not in files:
                files[split] = stack.enter_context(h5py.File(session_file(building, session.name, split), "w"))
            write_trial(files[split], trial.recording, with_labels=split != "test")
            truth.append(trial.truth)
    (staging / "truth").mkdir(exist_ok=True)
    write_truth(staging / "truth" / f"{session.name}.jsonl", truth)
    (staging / "data").mkdir(exist_ok=True)
    os.replace(building / session.name, staging / "data" / session.name)


def _describe(staging: Path, scale: Scale, request: dict[str, Any]) -> None:
    """Write what stands beside the sessions. Whatever an interrupted call wrote of it is written again."""
    data = staging / "data"
    parts = [staging / "truth" / f"{session.name}.jsonl" for session in scale.sessions]
    with (data / TRUTH_FILE).open("wb") as file:
        file.writelines(part.read_bytes() for part in parts)
    lines = [f"{word} {' '.join(spoken)}\n" for word, options in pronunciations().items() for spoken in options]
    (data / LEXICON_FILE).write_text("".join(lines), encoding="utf-8")
    records = read_truth(data).values()
    counts = Counter(record.split for record in records)
    description = {
        **request,
        "trials": {split: counts[split] for split in SPLITS},
        "bins": sum(record.num_bins for record in records),
        "words": len(pronunciations()),
    }
    (data / SIMULATION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
