"""One simulated session, trial by trial: what is said, how it moves the articulators, what the implant records."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from mode_ssm.data.simulator_articulation import SpokenTrial, time_phonemes, trajectories
from mode_ssm.data.simulator_constants import SimulatorConstants
from mode_ssm.data.simulator_electrodes import MAX_LEAD, Implant, SessionTuning, record, z_score
from mode_ssm.data.simulator_layout import BlockLayout, Scale, SessionLayout
from mode_ssm.data.simulator_text import SentenceSource, pronounce
from mode_ssm.data.t15_format import SPLITS, RecordedTrial, trial_key
from mode_ssm.data.truth import TruthRecord
from mode_ssm.vocab import words_to_ids

# Rest around each trial while a block is one long recording, so that neither smoothing nor the areas' leads reach the
# next trial.
_GAP = MAX_LEAD + 8

SentencePlan = dict[tuple[str, int], list[str]]  # (session, block) -> sentences in order


@dataclass(frozen=True, slots=True)
class SimulatedTrial:
    """What the session's file of split `truth.split` holds next, and what it does not tell."""

    recording: RecordedTrial
    truth: TruthRecord


def plan_sentences(scale: Scale, seed: int) -> SentencePlan:
    """What is said in each block. A held-out sentence is said nowhere else; a training sentence may be said again where
    the scale allows repeats and its corpus has little new to say."""
    source = SentenceSource(np.random.default_rng([seed, 0x7E]), scale.double_share)
    blocks = [(session.name, block) for session in scale.sessions for block in session.blocks]
    blocks.sort(key=lambda named: named[1].test == named[1].num_sentences)  # more of test alone changes no other block
    return {
        (session, block.number): [
            source.draw(block.corpus, repeatable=scale.repeats and block.train == block.num_sentences)
            for _ in range(block.num_sentences)
        ]
        for session, block in blocks
    }


def simulate_session(
    session: SessionLayout, plan: SentencePlan, *, seed: int, constants: SimulatorConstants
) -> Iterator[SimulatedTrial]:
    """Trials in order of block and trial, one block in memory at a time.

    A pure function of its arguments, whatever was simulated before; of `plan` it reads its own blocks only.
    """
    rng = np.random.default_rng([seed, crc32(session.name.encode())])
    session_pace = constants.slowness * float(rng.lognormal(0, constants.pace_spread))
    tuning = Implant(constants, seed).on(session.day)
    written = dict.fromkeys(SPLITS, 0)
    for block in session.blocks:
        rng = np.random.default_rng([seed, crc32(session.name.encode()), block.number])
        sentences = plan[session.name, block.number]
        spoken = [_speak(sentence, session_pace, constants, rng) for sentence in sentences]
        recorded = _record_block(block, spoken, tuning, constants, rng)
        for number, (split, sentence, trial, features) in enumerate(
            zip(_splits(block, rng), sentences, spoken, recorded, strict=True)
        ):
            truth = TruthRecord(
                name=f"{session.name}/{split}/{trial_key(written[split])}",
                session=session.name,
                split=split,
                sentence=sentence,
                phonemes=trial.phonemes.tolist(),
                corpus=block.corpus,
                mode=block.mode,
                phoneme_starts=trial.starts.tolist(),
                num_bins=trial.num_bins,
            )
            recording = RecordedTrial(
                session=session.name,
                block=block.number,
                trial=number,
                features=features,
                phonemes=trial.phonemes,
                sentence=sentence,
            )
            written[split] += 1
            yield SimulatedTrial(recording, truth)


def _speak(sentence: str, session_pace: float, constants: SimulatorConstants, rng: np.random.Generator) -> SpokenTrial:
    words = pronounce(sentence, constants.usual_pronunciation, rng)
    return time_phonemes(
        words_to_ids(words),
        pace=session_pace * float(rng.lognormal(0, constants.pace_spread)),
        pause=constants.pause,
        spread=constants.duration_spread,
        lead=int(rng.integers(constants.rest_before[0], constants.rest_before[1] + 1)),
        trail=int(rng.integers(constants.rest_after[0], constants.rest_after[1] + 1)),
        rng=rng,
    )


def _record_block(
    block: BlockLayout,
    spoken: Sequence[SpokenTrial],
    tuning: SessionTuning,
    constants: SimulatorConstants,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Features (T, 512) of each trial: the block is one recording, z-scored over what its trials keep of it."""
    positions = trajectories(
        spoken, gap=_GAP, token_spread=constants.token_spread, coarticulation=constants.coarticulation, rng=rng
    )
    raw = record(positions, tuning, block.mode, constants, rng)
    firsts = np.cumsum([_GAP] + [trial.num_bins + _GAP for trial in spoken[:-1]])
    lengths = [trial.num_bins for trial in spoken]
    kept = np.concatenate([np.arange(f, f + n) for f, n in zip(firsts, lengths, strict=True)])
    return np.split(z_score(raw[kept]), np.cumsum(lengths)[:-1])


def _splits(block: BlockLayout, rng: np.random.Generator) -> list[str]:
    splits = ["train"] * block.train + ["val"] * block.val + ["test"] * block.test
    return [splits[i] for i in rng.permutation(len(splits))]
