"""T15-format recordings whose truth is known: what is said, when, in which mode, on which drifting implant.

`simulate` writes a data folder; `plan_sentences` and `simulate_session` are its two halves.
"""

import json
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
from rich.console import Console
from rich.progress import Progress

from mode_ssm.data.simulator_articulation import SpokenTrial, time_phonemes, trajectories
from mode_ssm.data.simulator_constants import SimulatorConstants
from mode_ssm.data.simulator_electrodes import MAX_LEAD, Implant, record, z_score
from mode_ssm.data.simulator_scale import SCALES, BlockLayout, Scale, SessionLayout
from mode_ssm.data.simulator_text import SentenceSource, pronounce, pronunciations
from mode_ssm.data.t15_format import SPLITS, RecordedTrial, session_file, trial_key, write_session_file
from mode_ssm.data.truth import TRUTH_FILE, TruthRecord, write_truth
from mode_ssm.vocab import words_to_ids

GENERATOR_VERSION = 1
LEXICON_FILE = "lexicon.txt"
SIMULATION_FILE = "simulation.json"

# Rest around each trial while a block is one long recording, so that neither smoothing nor the areas' leads reach the
# next trial.
_GAP = MAX_LEAD + 8

SentencePlan = dict[tuple[str, int], list[str]]  # (session, block) -> sentences in order


@dataclass(frozen=True, slots=True)
class SimulatedSession:
    """Trials and truth of a session, by split, in file order."""

    trials: dict[str, list[RecordedTrial]]
    truth: list[TruthRecord]


def plan_sentences(scale: Scale, seed: int) -> SentencePlan:
    """What is said in each block; no sentence is said twice anywhere, so that no split sees another's."""
    source = SentenceSource(np.random.default_rng([seed, 0x7E]))
    return {
        (session.name, block.number): [source.draw(block.corpus) for _ in range(block.num_sentences)]
        for session in scale.sessions
        for block in session.blocks
    }


def simulate_session(
    session: SessionLayout, plan: SentencePlan, *, seed: int, constants: SimulatorConstants, implant: Implant
) -> SimulatedSession:
    """One session: a pure function of its arguments, whatever was simulated before."""
    rng = np.random.default_rng([seed, crc32(session.name.encode())])
    session_pace = float(rng.lognormal(0, constants.pace_spread))
    tuning = implant.on(session.day)
    trials: dict[str, list[RecordedTrial]] = {split: [] for split in SPLITS}
    truth: list[TruthRecord] = []
    for block in session.blocks:
        rng = np.random.default_rng([seed, crc32(session.name.encode()), block.number])
        sentences = plan[session.name, block.number]
        spoken = [_speak(sentence, session_pace, constants, rng) for sentence in sentences]
        positions = trajectories(
            spoken,
            gap=_GAP,
            token_spread=constants.token_spread,
            coarticulation=constants.coarticulation,
            rng=rng,
        )
        raw = record(positions, tuning, block.mode, constants, rng)
        firsts = np.cumsum([_GAP] + [trial.num_bins + _GAP for trial in spoken[:-1]])
        lengths = [trial.num_bins for trial in spoken]
        kept = np.concatenate([np.arange(f, f + n) for f, n in zip(firsts, lengths, strict=True)])
        pieces = np.split(z_score(raw[kept]), np.cumsum(lengths)[:-1])
        for number, (split, sentence, trial, features) in enumerate(
            zip(_splits(block, rng), sentences, spoken, pieces, strict=True)
        ):
            truth.append(
                TruthRecord(
                    name=f"{session.name}/{split}/{trial_key(len(trials[split]))}",
                    session=session.name,
                    split=split,
                    sentence=sentence,
                    phonemes=trial.phonemes.tolist(),
                    corpus=block.corpus,
                    mode=block.mode,
                    phoneme_starts=trial.starts.tolist(),
                    num_bins=trial.num_bins,
                )
            )
            trials[split].append(
                RecordedTrial(
                    session=session.name,
                    block=block.number,
                    trial=number,
                    features=features,
                    phonemes=trial.phonemes,
                    sentence=sentence,
                )
            )
    return SimulatedSession(trials, truth)


def _speak(sentence: str, session_pace: float, constants: SimulatorConstants, rng: np.random.Generator) -> SpokenTrial:
    words = pronounce(sentence, constants.usual_pronunciation, rng)
    return time_phonemes(
        words_to_ids(words),
        pace=session_pace * float(rng.lognormal(0, constants.pace_spread)),
        spread=constants.duration_spread,
        lead=int(rng.integers(constants.rest_before[0], constants.rest_before[1] + 1)),
        trail=int(rng.integers(constants.rest_after[0], constants.rest_after[1] + 1)),
        rng=rng,
    )


def _splits(block: BlockLayout, rng: np.random.Generator) -> list[str]:
    splits = ["train"] * block.train + ["val"] * block.val + ["test"] * block.test
    return [splits[i] for i in rng.permutation(len(splits))]


def simulate(root: Path, scale: str = "small", seed: int = 0, progress: bool = True) -> None:
    """Write a simulated data folder: session files, `lexicon.txt`, `truth.jsonl` and `simulation.json`.

    The folder appears whole or not at all. Raises `FileExistsError` where `root` already holds something and
    `ValueError` for an unknown scale or a negative seed.
    """
    if scale not in SCALES:
        raise ValueError(f"data.simulate.scale={scale!r} is unknown; choose one of {', '.join(SCALES)}")
    if seed < 0:
        raise ValueError(f"data.simulate.seed={seed} is negative; choose 0 or more")
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"{root} already holds something; choose another folder or remove it")
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}.partial-", dir=root.parent))
    try:
        _write_folder(partial, scale, seed, progress)
        partial.chmod(0o755)
        os.replace(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_folder(folder: Path, scale_name: str, seed: int, progress: bool) -> None:
    scale = SCALES[scale_name]
    constants = SimulatorConstants()
    implant = Implant(constants, seed)
    plan = plan_sentences(scale, seed)
    truth: list[TruthRecord] = []
    with Progress(console=Console(stderr=True), disable=not progress) as bar:
        for session in bar.track(scale.sessions, description=f"simulating {scale_name}"):
            simulated = simulate_session(session, plan, seed=seed, constants=constants, implant=implant)
            truth += simulated.truth
            for split, trials in simulated.trials.items():
                if trials:
                    path = session_file(folder, session.name, split)
                    write_session_file(path, trials, with_labels=split != "test")
    write_truth(folder / TRUTH_FILE, truth)
    lines = [f"{word} {' '.join(spoken)}\n" for word, options in pronunciations().items() for spoken in options]
    (folder / LEXICON_FILE).write_text("".join(lines), encoding="utf-8")
    counts = Counter(record.split for record in truth)
    description = {
        "generator_version": GENERATOR_VERSION,
        "scale": scale_name,
        "seed": seed,
        "sessions": [session.name for session in scale.sessions],
        "trials": {split: counts[split] for split in SPLITS},
        "bins": sum(record.num_bins for record in truth),
        "words": len(pronunciations()),
        "constants": asdict(constants),
    }
    (folder / SIMULATION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
