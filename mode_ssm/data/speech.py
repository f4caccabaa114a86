"""A folder of recorded words, `{word}_{speaker}_{index}.wav`, as a dataset in the T15 layout.

The naming is the Free Spoken Digit Dataset's. One session is one speaker; a sentence strings recordings together
exactly as they were recorded, their own silences being the pauses; features are log-mel (`log_mel.py`), z-scored in
blocks of sentences as the neural recordings are, which also takes out loudness and microphone. That is a whole-block
statistic: it looks ahead, uses no labels, and never crosses a split.

Splits follow the recording index: below `test_below` test, below `val_below` validation, the rest training. Every
validation and test recording is spoken once; training recordings appear once in each of `repeats` random orders.
A speaker held out of training goes to test altogether.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.io import wavfile

from mode_ssm.data.log_mel import FRAMES_PER_BIN, log_mel
from mode_ssm.data.t15_format import SPLITS, RecordedTrial, session_file, trial_key, write_session_file
from mode_ssm.data.truth import TRUTH_FILE, TruthRecord, write_truth
from mode_ssm.vocab import SIL

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS_PER_SENTENCE = (4, 7)
FEWEST_WORDS = 3  # of a last sentence that uses up what is left
SENTENCES_PER_BLOCK = 30

_FILE_NAME = re.compile(r"(?P<word>[^_]+)_(?P<speaker>[^_]+)_(?P<index>\d+)\.wav")
_FULL_SCALE = {"int16": 2.0**15, "int32": 2.0**31, "float32": 1.0, "float64": 1.0}

Pronunciations = Mapping[str, Sequence[Sequence[int]]]  # word -> its pronunciations, class ids without SIL


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """One spoken word. samples (N,) float32 in [-1, 1]."""

    word: str
    speaker: str
    index: int
    sample_rate: int
    samples: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class Sentence:
    """Recordings of one speaker in the order in which they are heard."""

    speaker: str
    split: str
    block: int
    trial: int
    recordings: tuple[Recording, ...]

    @property
    def text(self) -> str:
        return " ".join(recording.word for recording in self.recordings)

    @property
    def samples(self) -> np.ndarray:
        return np.concatenate([recording.samples for recording in self.recordings])


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechOptions:
    """How recordings become sentences and sentences features; an impossible value raises `ValueError`."""

    feature_dim: int = 80
    repeats: int = 6
    test_below: int = 5
    val_below: int = 10
    hold_out: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.feature_dim < FRAMES_PER_BIN or self.feature_dim % FRAMES_PER_BIN:
            raise ValueError(f"feature_dim={self.feature_dim}: a bin stacks {FRAMES_PER_BIN} frames; use a multiple")
        if self.repeats < 1:
            raise ValueError(f"repeats={self.repeats}: training must hear every recording at least once")
        if not 0 <= self.test_below <= self.val_below:
            raise ValueError(f"test_below={self.test_below}, val_below={self.val_below}: 0 <= test_below <= val_below")


def read_recordings(folder: Path) -> list[Recording]:
    """All recordings of a folder, sorted by speaker, word and index; a digit's word is its English name.

    Raises `ValueError` for a missing or empty folder, another file name, more than one channel, an unusual sample
    format, or sample rates that differ.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    paths = sorted(folder.glob("*.wav"))
    if not paths:
        raise ValueError(f"{folder} holds no .wav file")
    recordings = [_read_recording(path) for path in paths]
    first = recordings[0]
    for path, recording in zip(paths, recordings, strict=True):
        if recording.sample_rate != first.sample_rate:
            raise ValueError(
                f"sample rates differ: {paths[0].name} has {first.sample_rate} Hz, "
                f"{path.name} has {recording.sample_rate} Hz"
            )
    return sorted(recordings, key=lambda r: (r.speaker, r.word, r.index))


def _read_recording(path: Path) -> Recording:
    match = _FILE_NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path.name}: the name must read {{word}}_{{speaker}}_{{index}}.wav")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", wavfile.WavFileWarning)  # further chunks, such as titles, are no concern
        try:
            sample_rate, samples = wavfile.read(path)
        except ValueError as error:
            raise ValueError(f"{path.name}: not a WAV file that can be read ({error})") from error
    if samples.ndim != 1:
        raise ValueError(f"{path.name} has {samples.shape[1]} channels; one is expected")
    if samples.dtype.name not in _FULL_SCALE:
        raise ValueError(f"{path.name} has {samples.dtype.name} samples; known: {', '.join(_FULL_SCALE)}")
    if len(samples) == 0:
        raise ValueError(f"{path.name} is empty")
    word = match["word"].lower()
    return Recording(
        word=DIGITS[int(word)] if word in "0123456789" else word,
        speaker=match["speaker"],
        index=int(match["index"]),
        sample_rate=sample_rate,
        samples=(samples / _FULL_SCALE[samples.dtype.name]).astype(np.float32),
    )


def compose_sentences(recordings: Sequence[Recording], options: SpeechOptions) -> list[Sentence]:
    """Deal recordings out to sentences, blocks and splits: a pure function of the recordings and the options.

    Raises `ValueError` for an unknown speaker in `hold_out` and for a training split without recordings.
    """
    speakers = sorted({recording.speaker for recording in recordings})
    for name in options.hold_out:
        if name not in speakers:
            raise ValueError(f"hold_out={name}: no such speaker; there are {', '.join(speakers)}")
    sentences: list[Sentence] = []
    for number, speaker in enumerate(speakers):
        block = 0
        for split_number, split in enumerate(SPLITS):
            own = [r for r in recordings if r.speaker == speaker and _split_of(r, options) == split]
            rng = np.random.default_rng([options.seed, number, split_number])
            passes = options.repeats if split == "train" else 1
            dealt = [words for _ in range(passes) for words in _deal(own, rng)]
            for block_sentences in _blocks(dealt):
                block += 1
                sentences += [
                    Sentence(speaker=speaker, split=split, block=block, trial=trial, recordings=tuple(words))
                    for trial, words in enumerate(block_sentences)
                ]
    if not any(sentence.split == "train" for sentence in sentences):
        raise ValueError(
            f"no recording is left for training: indices from {options.val_below} of speakers that are not held out"
        )
    return sentences


def _split_of(recording: Recording, options: SpeechOptions) -> str:
    if recording.speaker in options.hold_out or recording.index < options.test_below:
        return "test"
    return "val" if recording.index < options.val_below else "train"


def _deal(recordings: Sequence[Recording], rng: np.random.Generator) -> Iterator[list[Recording]]:
    """All recordings in a random order, cut into sentences; none is left over and none is repeated."""
    order = [recordings[i] for i in rng.permutation(len(recordings))]
    shortest, longest = WORDS_PER_SENTENCE
    while len(order) > longest:
        sizes = [size for size in range(shortest, longest + 1) if len(order) - size >= FEWEST_WORDS]
        size = int(rng.choice(sizes))
        yield order[:size]
        order = order[size:]
    if order:
        yield order


def _blocks(sentences: list[list[Recording]]) -> Iterator[list[list[Recording]]]:
    """Blocks of nearly equal size, none larger than `SENTENCES_PER_BLOCK`."""
    count = -(-len(sentences) // SENTENCES_PER_BLOCK)
    for number in range(count):
        yield sentences[number * len(sentences) // count : (number + 1) * len(sentences) // count]


def write_dataset(
    root: Path,
    corpus: str,
    sentences: Sequence[Sentence],
    pronunciations: Pronunciations,
    options: SpeechOptions,
    on_sentence: Callable[[], None] = lambda: None,
) -> None:
    """Write session files `<root>/<corpus>.<speaker>/data_<split>.hdf5` and the truth of every split beside them.

    A word is written with its first pronunciation, SIL after every word. In the truth, speakers held out of training
    have the corpus name `<corpus>-held-out`, so that reports count them apart. `on_sentence` is called after each.
    Raises `ValueError` for a word without pronunciation.
    """
    missing = sorted({r.word for s in sentences for r in s.recordings} - set(pronunciations))
    if missing:
        raise ValueError(f"the lexicon has no pronunciation for: {', '.join(missing)}")
    truth: list[TruthRecord] = []
    for speaker in sorted({sentence.speaker for sentence in sentences}):
        session = f"{corpus}.{speaker}"
        for split in SPLITS:
            own = [s for s in sentences if (s.speaker, s.split) == (speaker, split)]
            if not own:
                continue
            trials = _recorded(session, own, pronunciations, options.feature_dim, on_sentence)
            write_session_file(session_file(root, session, split), trials, with_labels=split != "test")
            truth += [
                TruthRecord(
                    name=f"{session}/{split}/{trial_key(index)}",
                    session=session,
                    split=split,
                    sentence=trial.sentence,
                    phonemes=trial.phonemes.tolist(),
                    corpus=f"{corpus}-held-out" if speaker in options.hold_out else corpus,
                    mode=None,
                    phoneme_starts=None,
                    num_bins=len(trial.features),
                )
                for index, trial in enumerate(trials)
            ]
    write_truth(root / TRUTH_FILE, truth)


def _recorded(
    session: str,
    sentences: Sequence[Sentence],
    pronunciations: Pronunciations,
    feature_dim: int,
    on_sentence: Callable[[], None],
) -> list[RecordedTrial]:
    """Trials of one session and split, features z-scored block by block."""
    features: list[np.ndarray] = []
    for sentence in sentences:
        features.append(log_mel(sentence.samples, sentence.recordings[0].sample_rate, feature_dim))
        on_sentence()
    by_block: dict[int, list[np.ndarray]] = {}
    for sentence, array in zip(sentences, features, strict=True):
        by_block.setdefault(sentence.block, []).append(array)
    statistics = {block: _mean_and_std(np.concatenate(arrays)) for block, arrays in by_block.items()}
    trials = []
    for sentence, array in zip(sentences, features, strict=True):
        mean, std = statistics[sentence.block]
        phonemes = [symbol for r in sentence.recordings for symbol in (*pronunciations[r.word][0], SIL)]
        trials.append(
            RecordedTrial(
                session=session,
                block=sentence.block,
                trial=sentence.trial,
                features=(array - mean) / std,
                phonemes=np.array(phonemes, np.int64),
                sentence=sentence.text,
            )
        )
    return trials


def _mean_and_std(bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per feature, of (T, C); a feature that never moves has spread one, so that it becomes zero."""
    std = bins.std(axis=0)
    return bins.mean(axis=0), np.where(std > 0, std, 1.0)
