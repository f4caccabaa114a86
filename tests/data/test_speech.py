"""Recorded words as a T15 dataset: splits, features, format, and one-line errors."""

import importlib.util
import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import wavfile

from mode_ssm.compose import run_main
from mode_ssm.data.log_mel import log_mel
from mode_ssm.data.speech import (
    Sentence,
    SpeechOptions,
    compose_sentences,
    read_recordings,
    write_dataset,
)
from mode_ssm.data.truth import read_truth
from mode_ssm.vocab import SIL, phonemes_to_ids

REPOSITORY = Path(__file__).parents[2]
REAL_RECORDINGS = REPOSITORY.parent / "shared" / "data" / "speech" / "fsdd"
REAL_LEXICON = REPOSITORY.parent / "shared" / "data" / "lexicon" / "cmudict.dict"
RATE = 8000
PRONUNCIATIONS = {
    "zero": [phonemes_to_ids(["Z", "IH", "R", "OW"]), phonemes_to_ids(["Z", "IY", "R", "OW"])],
    "one": [phonemes_to_ids(["W", "AH", "N"])],
    "yes": [phonemes_to_ids(["Y", "EH", "S"])],
}


def write_recordings(folder: Path, words: tuple[str, ...] = ("0", "1", "yes"), indices: int = 14) -> Path:
    """Noise of 0.2-0.4 s; every recording is different, and quieter for the second speaker."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for speaker, gain in (("ann", 8000.0), ("bob", 500.0)):
        for word, index in itertools.product(words, range(indices)):
            samples = rng.normal(0, gain, rng.integers(1600, 3200)).clip(-32000, 32000).astype(np.int16)
            wavfile.write(folder / f"{word}_{speaker}_{index}.wav", RATE, samples)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recordings(tmp_path_factory.mktemp("recordings") / "words")


@pytest.fixture(scope="module")
def lexicon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lexicon") / "small.dict"
    path.write_text("one W AH1 N\nother AH1 DH ER0\nyes Y EH1 S\nzero Z IH1 R OW0\nzero(2) Z IY1 R OW0 # alternate\n")
    return path


def run_script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts" / "import_speech.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def heard(sentences: list[Sentence], split: str) -> Counter[tuple[str, str, int]]:
    return Counter((r.speaker, r.word, r.index) for s in sentences if s.split == split for r in s.recordings)


# Features


def test_a_tone_excites_its_band_and_its_half_of_the_bin() -> None:
    bands, silence = 40, 1e-5 * np.random.default_rng(0).normal(size=RATE // 2)
    time = np.arange(80) / RATE
    samples = silence.copy()
    samples[10 * 160 + 80 : 11 * 160] += 0.5 * np.sin(2 * np.pi * 1000 * time)  # second half of bin 10
    features = log_mel(samples, RATE, 2 * bands).reshape(-1, 2, bands)
    assert features.shape == (25, 2, 40)
    loudest = np.unravel_index(features.argmax(), features.shape)
    assert loudest[:2] == (10, 1)
    mel = 2595 * np.log10(1 + np.array([1000, RATE / 2]) / 700)
    assert loudest[2] == pytest.approx(mel[0] / mel[1] * (bands + 1) - 1, abs=1)


def test_every_sample_reaches_a_frame_and_power_of_white_noise_is_its_variance() -> None:
    impulse = np.zeros(1600)
    for position in range(0, 1600, 7):
        impulse[:] = 0
        impulse[position] = 1
        assert log_mel(impulse, RATE, 80).max() > np.log(1e-4)
    noise = np.random.default_rng(0).normal(0, 0.1, RATE * 20)
    assert np.exp(log_mel(noise, RATE, 80)).mean(axis=0) == pytest.approx(np.full(80, 0.01), rel=0.1)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_bins_are_20_ms_at_any_sample_rate(rate: int) -> None:
    sound = np.random.default_rng(0).normal(size=rate)
    assert log_mel(sound, rate, 64).shape == (50, 64)
    assert log_mel(sound[: rate // 50], rate, 64).shape == (1, 64)


@pytest.mark.parametrize(
    ("samples", "rate", "width", "message"),
    [
        (8000, 8000, 81, "feature_dim=81"),
        (8000, 11025, 80, "11025 Hz has no whole number"),
        (100, 8000, 80, "less than one bin"),
        (8000, 8000, 800, "400 mel bands are too many"),
    ],
)
def test_impossible_features_are_refused(samples: int, rate: int, width: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_mel(np.ones(samples), rate, width)


# Sentences


def test_every_recording_is_in_one_split_and_as_often_as_promised(folder: Path) -> None:
    sentences = compose_sentences(read_recordings(folder), SpeechOptions(repeats=3))
    train, val, test = (heard(sentences, split) for split in ("train", "val", "test"))
    assert {index for _, _, index in test} == set(range(5))
    assert {index for _, _, index in val} == set(range(5, 10))
    assert {index for _, _, index in train} == set(range(10, 14))
    assert set(test.values()) == set(val.values()) == {1}
    assert set(train.values()) == {3}
    assert len(test) + len(val) + len(train) == 2 * 3 * 14
    assert {len(s.recordings) for s in sentences} <= set(range(3, 8))
    assert all(
        len({r.index for r in s.recordings} | {0}) > 0 and s.recordings[0].speaker == s.speaker for s in sentences
    )


def test_no_sentence_repeats_a_recording_and_orders_differ(folder: Path) -> None:
    sentences = compose_sentences(read_recordings(folder), SpeechOptions(repeats=8))
    for sentence in sentences:
        assert len({(r.word, r.index) for r in sentence.recordings}) == len(sentence.recordings)
    train = [tuple((r.word, r.index) for r in s.recordings) for s in sentences if s.split == "train"]
    assert len(set(train)) == len(train)


def test_sentences_are_deterministic_from_the_seed(folder: Path) -> None:
    recordings = read_recordings(folder)
    texts = [[s.text for s in compose_sentences(recordings, SpeechOptions(seed=seed))] for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_a_held_out_speaker_is_test_only_and_leaves_the_others_as_they_were(folder: Path) -> None:
    recordings = read_recordings(folder)
    sentences = compose_sentences(recordings, SpeechOptions(hold_out=("ann",)))
    assert {s.split for s in sentences if s.speaker == "ann"} == {"test"}
    assert len({key for key in heard(sentences, "test") if key[0] == "ann"}) == 3 * 14
    others = [s.text for s in compose_sentences(recordings, SpeechOptions()) if s.speaker == "bob"]
    assert [s.text for s in sentences if s.speaker == "bob"] == others


def test_blocks_do_not_cross_splits(folder: Path) -> None:
    sentences = compose_sentences(read_recordings(folder), SpeechOptions(repeats=40))
    splits: dict[tuple[str, int], set[str]] = {}
    for sentence in sentences:
        splits.setdefault((sentence.speaker, sentence.block), set()).add(sentence.split)
    assert all(len(found) == 1 for found in splits.values())
    sizes = Counter((s.speaker, s.block) for s in sentences if s.split == "train").values()
    assert max(sizes) <= 30
    assert max(sizes) - min(sizes) <= 1 + len(sizes) % 2


def test_digits_are_spelled_and_other_words_kept(folder: Path) -> None:
    assert {r.word for r in read_recordings(folder)} == {"zero", "one", "yes"}


# Files


def test_dataset_has_the_official_layout_and_its_truth(folder: Path, tmp_path: Path) -> None:
    options = SpeechOptions(feature_dim=32, hold_out=("bob",))
    sentences = compose_sentences(read_recordings(folder), options)
    write_dataset(tmp_path, "words", sentences, PRONUNCIATIONS, options)
    truth = read_truth(tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("*/*")) == [
        "words.ann/data_test.hdf5",
        "words.ann/data_train.hdf5",
        "words.ann/data_val.hdf5",
        "words.bob/data_test.hdf5",
    ]
    assert len(truth) == len(sentences)
    assert {(t.session, t.corpus) for t in truth.values()} == {("words.ann", "words"), ("words.bob", "words-held-out")}
    with h5py.File(tmp_path / "words.ann" / "data_val.hdf5") as file:
        spoken = [s for s in sentences if (s.speaker, s.split) == ("ann", "val")]
        assert list(file) == [f"trial_{i:04d}" for i in range(len(spoken))]
        for key, sentence in zip(file, spoken, strict=True):
            group, record = file[key], truth[f"words.ann/val/{key}"]
            length = int(group.attrs["seq_len"])
            expected = [i for r in sentence.recordings for i in (*PRONUNCIATIONS[r.word][0], SIL)]
            assert group["seq_class_ids"][:length].tolist() == expected == record.phonemes
            assert not group["seq_class_ids"][length:].any()
            assert group.attrs["sentence_label"] == sentence.text == record.sentence
            assert group["input_features"].dtype == np.float32
            bins = sum(len(r.samples) for r in sentence.recordings) // 160
            assert group["input_features"].shape == (bins, 32)
            assert group.attrs["n_time_steps"] == record.num_bins == bins
    with h5py.File(tmp_path / "words.ann" / "data_test.hdf5") as file:
        assert set(file["trial_0000"]) == {"input_features"}
        assert set(file["trial_0000"].attrs) == {"n_time_steps", "session", "block_num", "trial_num"}


def test_features_are_z_scored_block_by_block_so_that_loudness_is_gone(folder: Path, tmp_path: Path) -> None:
    options = SpeechOptions(feature_dim=16)
    write_dataset(tmp_path, "words", compose_sentences(read_recordings(folder), options), PRONUNCIATIONS, options)
    blocks: dict[tuple[str, int], list[np.ndarray]] = {}
    for path in tmp_path.glob("*/*.hdf5"):
        with h5py.File(path) as file:
            for group in file.values():
                key = (path.parent.name, int(group.attrs["block_num"]))
                blocks.setdefault(key, []).append(group["input_features"][:])
    for arrays in blocks.values():
        bins = np.concatenate(arrays)
        assert bins.mean(axis=0) == pytest.approx(np.zeros(16), abs=1e-3)
        assert bins.std(axis=0) == pytest.approx(np.ones(16), abs=1e-3)


def test_sentences_are_the_recordings_joined_without_a_gap(folder: Path) -> None:
    sentence = compose_sentences(read_recordings(folder), SpeechOptions())[0]
    files = [folder / f"{_file_word(r.word)}_{r.speaker}_{r.index}.wav" for r in sentence.recordings]
    joined = np.concatenate([wavfile.read(path)[1] for path in files])
    assert np.array_equal(np.round(sentence.samples * 2**15).astype(np.int16), joined)


def _file_word(word: str) -> str:
    return {"zero": "0", "one": "1"}.get(word, word)


# The script


def test_script_writes_the_whole_dataset_and_refuses_to_overwrite_it(
    folder: Path, lexicon: Path, tmp_path: Path
) -> None:
    root = tmp_path / "made" / "dataset"
    done = run_script(folder, "--lexicon", lexicon, "--root", root, "--feature-dim", 16, "--name", "small")
    assert done.returncode == 0, done.stderr
    assert "small.ann" in done.stdout
    assert (root / "lexicon.txt").read_text() == "one W AH N\nyes Y EH S\nzero Z IH R OW\nzero Z IY R OW\n"
    first = json.loads((root / "truth.jsonl").read_text().splitlines()[0])
    assert first["name"] == "small.ann/train/trial_0000"
    again = run_script(folder, "--lexicon", lexicon, "--root", root)
    assert again.returncode == 2
    assert again.stderr == f"error: {root} exists already; choose another --root or remove it\n"
    assert [path.name for path in root.parent.iterdir()] == ["dataset"]


def _rate_mix(folder: Path) -> None:
    wavfile.write(folder / "yes_bob_99.wav", 16000, np.ones(400, np.int16))


def _stereo(folder: Path) -> None:
    wavfile.write(folder / "yes_bob_99.wav", RATE, np.ones((400, 2), np.int16))


def _strange_name(folder: Path) -> None:
    wavfile.write(folder / "hello.wav", RATE, np.ones(400, np.int16))


def _unknown_word(folder: Path) -> None:
    wavfile.write(folder / "qwxz_bob_3.wav", RATE, np.ones(400, np.int16))


def _no_sound_file(folder: Path) -> None:
    (folder / "yes_bob_99.wav").write_bytes(b"RIFX not a wave")


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_rate_mix, "sample rates differ: 0_ann_0.wav has 8000 Hz, yes_bob_99.wav has 16000 Hz"),
        (_stereo, "yes_bob_99.wav has 2 channels; one is expected"),
        (_strange_name, "hello.wav: the name must read {word}_{speaker}_{index}.wav"),
        (_unknown_word, "qwxz"),
        (_no_sound_file, "yes_bob_99.wav: not a WAV file that can be read"),
        (_empty, "holds no .wav file"),
    ],
)
def test_a_broken_folder_ends_in_one_line_and_leaves_nothing(
    damage: Callable[[Path], None], message: str, lexicon: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_recordings(tmp_path / "recordings", indices=12)
    damage(folder)
    root = tmp_path / "out" / "dataset"
    with pytest.raises(SystemExit) as stop:
        run_main(lambda: _main([str(folder), "--lexicon", str(lexicon), "--root", str(root)]))
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error
    assert not root.parent.exists() or not list(root.parent.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hold-out", "carl"], "hold_out=carl: no such speaker; there are ann, bob"),
        (["--hold-out", "ann", "--hold-out", "bob"], "no recording is left for training"),
        (["--val-below", "3"], "test_below=5, val_below=3"),
        (["--feature-dim", "7"], "feature_dim=7"),
        (["--repeats", "0"], "repeats=0"),
        (["--lexicon", "nowhere.dict"], "no such file or directory: nowhere.dict"),
    ],
)
def test_an_impossible_option_ends_in_one_line(
    arguments: list[str], message: str, folder: Path, lexicon: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(folder), "--lexicon", str(lexicon), "--root", str(tmp_path / "dataset"), *arguments]
    with pytest.raises(SystemExit) as stop:
        run_main(lambda: _main(command))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def _main(arguments: list[str]) -> None:
    spec = importlib.util.spec_from_file_location("import_speech", REPOSITORY / "scripts" / "import_speech.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(arguments)


@pytest.mark.skipif(not (REAL_RECORDINGS.is_dir() and REAL_LEXICON.is_file()), reason="the recordings are not here")
def test_spoken_digits_import_with_a_speaker_held_out(tmp_path: Path) -> None:
    root = tmp_path / "spoken_digits"
    options = ["--lexicon", str(REAL_LEXICON), "--root", str(root), "--repeats", "1", "--hold-out", "theo"]
    _main([str(REAL_RECORDINGS), *options])
    truth = read_truth(root).values()
    words = Counter()
    for record in truth:
        words[record.session, record.split] += len(record.sentence.split())
    assert words["fsdd.theo", "test"] == 500
    assert words["fsdd.george", "train"] == 400
    assert words["fsdd.george", "val"] == words["fsdd.george", "test"] == 50
    assert {record.corpus for record in truth if record.session == "fsdd.theo"} == {"fsdd-held-out"}
    assert "zero Z IY R OW\n" in (root / "lexicon.txt").read_text()
    with h5py.File(root / "fsdd.george" / "data_val.hdf5") as file:
        assert file["trial_0000/input_features"].shape[1] == 80
