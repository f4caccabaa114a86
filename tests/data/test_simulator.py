import json
import subprocess
import sys
import time
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest

from mode_ssm.data import simulator
from mode_ssm.data.simulator import simulate
from mode_ssm.data.simulator_articulation import NUM_ARTICULATORS, VOICING
from mode_ssm.data.simulator_constants import SimulatorConstants
from mode_ssm.data.simulator_electrodes import Implant
from mode_ssm.data.simulator_layout import BlockLayout, Scale, SessionLayout
from mode_ssm.data.simulator_scale import SCALES
from mode_ssm.data.simulator_session import SentencePlan, plan_sentences, simulate_session
from mode_ssm.data.t15_format import session_file
from mode_ssm.data.truth import TruthRecord, read_truth
from mode_ssm.vocab import SIL, normalise_sentence, phonemes_to_ids

SEED = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simulator") / "tiny"
    simulate(path, "tiny", SEED, progress=False)
    return path


@pytest.fixture(scope="module")
def truth(root: Path) -> dict[str, TruthRecord]:
    return read_truth(root)


def arrays(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted(folder.rglob("*.hdf5")):
        with h5py.File(path) as file:
            for key, group in file.items():
                for name, dataset in group.items():
                    found[f"{path.relative_to(folder)}/{key}/{name}"] = dataset[:]
    return found


def spoken_words(record: TruthRecord) -> list[list[int]]:
    words: list[list[int]] = [[]]
    for phoneme in record.phonemes:
        if phoneme == SIL:
            words.append([])
        else:
            words[-1].append(phoneme)
    assert words.pop() == [], "SIL must close the last word"
    return words


# layout ---------------------------------------------------------------------------------------------------------------


def test_the_folder_holds_what_the_scale_asks_for(root: Path) -> None:
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert files == {
        "lexicon.txt",
        "simulation.json",
        "truth.jsonl",
        "t15.2023.08.11/data_train.hdf5",
        "t15.2023.08.27/data_train.hdf5",
        "t15.2023.08.27/data_val.hdf5",
        "t15.2023.08.27/data_test.hdf5",
    }
    description = json.loads((root / "simulation.json").read_text())
    assert (description["scale"], description["seed"]) == ("tiny", SEED)
    assert description["trials"] == {"train": 18, "val": 5, "test": 4}


def test_every_trial_has_the_official_names_types_shapes_and_padding(root: Path) -> None:
    for path in root.rglob("*.hdf5"):
        labelled = not path.name.endswith("test.hdf5")
        with h5py.File(path) as file:
            assert list(file) == [f"trial_{i:04d}" for i in range(len(file))]
            for group in file.values():
                datasets = {"input_features"} | ({"seq_class_ids", "transcription"} if labelled else set())
                attributes = {"n_time_steps", "session", "block_num", "trial_num"}
                assert set(group) == datasets
                assert set(group.attrs) == attributes | ({"seq_len", "sentence_label"} if labelled else set())
                features = group["input_features"]
                assert features.dtype == np.float32
                assert features.shape == (group.attrs["n_time_steps"], 512)
                assert group.attrs["session"] == path.parent.name
                assert isinstance(group.attrs["block_num"], np.integer)
                if labelled:
                    ids, length = group["seq_class_ids"][:], group.attrs["seq_len"]
                    assert ids.shape == (500,)
                    assert np.issubdtype(ids.dtype, np.integer)
                    assert np.all((ids[:length] >= 1) & (ids[:length] <= 40))
                    assert not ids[length:].any()
                    text, label = group["transcription"][:], group.attrs["sentence_label"]
                    assert text.shape == (500,)
                    assert bytes(text[: len(label)].astype(np.uint8)).decode("ascii") == label
                    assert not text[len(label) :].any()


def test_trials_stand_in_order_and_held_out_blocks_are_split_between_val_and_test(
    root: Path,
) -> None:
    numbers = defaultdict(list)
    for path in root.rglob("*.hdf5"):
        with h5py.File(path) as file:
            places = [(int(g.attrs["block_num"]), int(g.attrs["trial_num"])) for g in file.values()]
        assert places == sorted(places)
        for block, trial in places:
            numbers[path.parent.name, block].append(trial)
    assert all(sorted(trials) == list(range(len(trials))) for trials in numbers.values())


def test_the_mode_is_nowhere_in_the_hdf5_files(root: Path) -> None:
    for path in root.rglob("*.hdf5"):
        content = path.read_bytes().lower()
        assert not any(word in content for word in (b"silent", b"vocalised", b"mode", b"corpus"))


# truth ----------------------------------------------------------------------------------------------------------------


def test_truth_covers_every_trial_and_agrees_with_the_files(root: Path, truth: dict[str, TruthRecord]) -> None:
    names = set()
    for path in root.rglob("*.hdf5"):
        split = path.stem.removeprefix("data_")
        with h5py.File(path) as file:
            for key, group in file.items():
                record = truth[f"{path.parent.name}/{split}/{key}"]
                names.add(record.name)
                assert (record.session, record.split) == (path.parent.name, split)
                assert record.num_bins == group.attrs["n_time_steps"]
                if split != "test":
                    assert record.sentence == group.attrs["sentence_label"]
                    assert record.phonemes == group["seq_class_ids"][: group.attrs["seq_len"]].tolist()
    assert names == set(truth)


def test_modes_and_corpora_follow_the_blocks(truth: dict[str, TruthRecord]) -> None:
    expected = Counter(
        (session.name, block.mode, block.corpus, block.num_sentences)
        for session in SCALES["tiny"].sessions
        for block in session.blocks
    )
    counted = Counter((r.session, r.mode, r.corpus) for r in truth.values())
    total: Counter[tuple[str, str, str]] = Counter()
    for session, mode, corpus, number in expected:
        total[session, mode, corpus] += number * expected[session, mode, corpus, number]
    assert counted == total


def test_phonemes_are_pronunciations_of_the_sentence_by_the_written_lexicon(
    root: Path, truth: dict[str, TruthRecord]
) -> None:
    lexicon = defaultdict(list)
    for line in (root / "lexicon.txt").read_text().splitlines():
        word, *phonemes = line.split()
        lexicon[word].append(phonemes_to_ids(phonemes))
    for record in truth.values():
        words = normalise_sentence(record.sentence).split()
        spoken = spoken_words(record)
        assert len(spoken) == len(words)
        assert all(said in lexicon[word] for word, said in zip(words, spoken, strict=True))


def test_the_alignment_rises_and_stays_within_the_trial(truth: dict[str, TruthRecord]) -> None:
    for record in truth.values():
        assert record.phoneme_starts is not None
        assert len(record.phoneme_starts) == len(record.phonemes)
        assert record.phoneme_starts[0] >= 14
        assert all(later - earlier >= 3 for earlier, later in pairwise(record.phoneme_starts))
        assert record.phoneme_starts[-1] < record.num_bins


def test_no_sentence_stands_in_two_splits_or_twice(truth: dict[str, TruthRecord]) -> None:
    sentences = [normalise_sentence(record.sentence) for record in truth.values()]
    assert len(set(sentences)) == len(sentences) == 27


# determinism ----------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_data(root: Path, tmp_path: Path) -> None:
    simulate(tmp_path / "again", "tiny", SEED, progress=False)
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(root)).read_bytes(), path.name
    simulate(tmp_path / "other", "tiny", SEED + 1, progress=False)
    ours, others = arrays(root), arrays(tmp_path / "other")
    assert set(ours) == set(others)
    same = [name for name in ours if "input_features" in name and np.array_equal(ours[name], others[name])]
    assert same == []


def test_a_session_does_not_depend_on_the_sessions_before_it(root: Path) -> None:
    scale = SCALES["tiny"]
    constants = SimulatorConstants()
    plan = plan_sentences(scale, SEED)
    last = scale.sessions[-1]
    only_its_own = {key: sentences for key, sentences in plan.items() if key[0] == last.name}
    alone = list(simulate_session(last, only_its_own, seed=SEED, constants=constants))
    assert len(alone) == sum(block.num_sentences for block in last.blocks)
    for trial in alone:
        with h5py.File(session_file(root, last.name, trial.truth.split)) as file:
            group = file[trial.truth.name.rsplit("/", 1)[1]]
            np.testing.assert_array_equal(group["input_features"][:], trial.recording.features)


# signal ---------------------------------------------------------------------------------------------------------------


def test_every_feature_of_a_block_has_mean_zero_and_standard_deviation_one(root: Path) -> None:
    blocks = defaultdict(list)
    for path in root.rglob("*.hdf5"):
        with h5py.File(path) as file:
            for group in file.values():
                blocks[path.parent.name, int(group.attrs["block_num"])].append(group["input_features"][:])
    assert len(blocks) == 6
    for trials in blocks.values():
        features = np.concatenate(trials).astype(np.float64)
        np.testing.assert_allclose(features.mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(features.std(0), 1, atol=1e-4)


def one_mode_session(day: str, mode: str) -> tuple[SessionLayout, SentencePlan]:
    block = BlockLayout(number=1, mode=mode, corpus="conversation", train=25)  # type: ignore[arg-type]
    layout = SessionLayout(name=day, blocks=(block,))
    return layout, plan_sentences(Scale(sessions=(layout,)), SEED)


def tuning_to_speech(day: str, mode: str) -> np.ndarray:
    """(512,) mean of each feature while speaking, the block's mean being zero."""
    layout, plan = one_mode_session(day, mode)
    constants = SimulatorConstants()
    total = [
        trial.recording.features[trial.truth.phoneme_starts[0] : trial.truth.phoneme_starts[-1]].mean(0)  # type: ignore[index]
        for trial in simulate_session(layout, plan, seed=SEED, constants=constants)
    ]
    return np.mean(total, axis=0)


def test_tuning_of_near_days_is_more_alike_than_of_far_days() -> None:
    first, near, far = (
        tuning_to_speech(day, "vocalised") for day in ("t15.2023.08.11", "t15.2023.08.18", "t15.2024.12.03")
    )
    assert np.corrcoef(first, near)[0, 1] > np.corrcoef(first, far)[0, 1] + 0.15


def test_silent_speech_shares_the_tuning_of_vocalised_speech_in_part() -> None:
    vocalised, silent = (tuning_to_speech("t15.2023.08.11", mode) for mode in ("vocalised", "silent"))
    assert 0.2 < np.corrcoef(vocalised, silent)[0, 1] < 0.98


def test_silent_blocks_have_no_voicing_drive_and_a_smaller_gain() -> None:
    tuning = Implant(SimulatorConstants(), SEED).on(25)
    assert not tuning.weights["silent"][[VOICING, VOICING + NUM_ARTICULATORS]].any()
    assert tuning.weights["vocalised"][VOICING].any()
    spread = {mode: float(np.std(np.delete(w, VOICING, axis=0))) for mode, w in tuning.weights.items()}
    assert spread["silent"] == pytest.approx(SimulatorConstants().silent_gain * spread["vocalised"], rel=0.05)


def test_electrodes_die_and_stay_dead() -> None:
    implant = Implant(SimulatorConstants(), SEED)
    alive = [implant.on(day).alive for day in (25, 200, 900, 3000)]
    assert all(np.all(earlier | ~later) for earlier, later in pairwise(alive))
    assert alive[0].mean() > 0.95
    assert alive[-1].mean() < 0.6


# refusals and atomicity -----------------------------------------------------------------------------------------------


def test_a_folder_that_holds_something_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="already holds something"):
        simulate(tmp_path, "tiny", 0, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_an_unknown_scale_is_named_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"scale='smal' is unknown; choose one of tiny, small, medium, full"):
        simulate(tmp_path / "data", "smal", 0, progress=False)
    with pytest.raises(ValueError, match="seed=-1 is negative"):
        simulate(tmp_path / "data", "tiny", -1, progress=False)


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    simulate(tmp_path, "tiny", 0, progress=False)
    assert (tmp_path / "truth.jsonl").exists()


# processes and interruptions ------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_interrupted_simulation_shows_nothing_and_the_next_call_finishes_it_without_repeating_a_session(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, begun = simulator.write_truth, []

    def interrupt(path: Path, records: list[TruthRecord]) -> int:
        begun.append(path.stem)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return real(path, records)

    monkeypatch.setattr(simulator, "write_truth", interrupt)
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "data", "tiny", SEED, progress=False)
    assert not (tmp_path / "data").exists()
    simulate(tmp_path / "data", "tiny", SEED, progress=False)
    assert begun == ["t15.2023.08.11", "t15.2023.08.27", "t15.2023.08.27"]
    assert content(tmp_path / "data") == content(root)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_what_another_seed_left_behind_is_not_taken_over(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(simulator, "_describe", interrupt)
        with pytest.raises(KeyboardInterrupt):
            simulate(tmp_path / "data", "tiny", SEED + 1, progress=False)
    simulate(tmp_path / "data", "tiny", SEED, progress=False)
    assert content(tmp_path / "data") == content(root)


def test_a_folder_that_another_process_is_simulating_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second_call(*_: object) -> None:
        simulate(tmp_path / "data", "tiny", 0, progress=False)

    monkeypatch.setattr(simulator, "_describe", second_call)
    with pytest.raises(FileExistsError, match="is being simulated by another process"):
        simulate(tmp_path / "data", "tiny", 0, progress=False)


def test_two_processes_write_the_bytes_of_one_and_a_killed_call_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from mode_ssm.data.simulator import simulate\n"
        "from mode_ssm.data.simulator_layout import BlockLayout, Scale, SessionLayout\n"
        "from mode_ssm.data.simulator_scale import SCALES\n"
        "block = BlockLayout(number=1, mode='silent', corpus='harvard', train=8, val=2)\n"
        "days = [SessionLayout(name=f't15.2024.01.{i + 1:02d}', blocks=(block,)) for i in range(8)]\n"
        "SCALES['eight'] = Scale(sessions=tuple(days))\n"
        "if __name__ == '__main__':\n"
        "    simulate(Path(sys.argv[1]), 'eight', 3, progress=False, workers=2)\n"
    )
    killed = subprocess.Popen([sys.executable, str(program), str(tmp_path / "data")])
    while not list(tmp_path.glob(".data.partial-*/data/*")):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "data").exists()
    subprocess.run([sys.executable, str(program), str(tmp_path / "data")], check=True)

    block = BlockLayout(number=1, mode="silent", corpus="harvard", train=8, val=2)
    days = (SessionLayout(name=f"t15.2024.01.{i + 1:02d}", blocks=(block,)) for i in range(8))
    monkeypatch.setitem(SCALES, "eight", Scale(sessions=tuple(days)))
    simulate(tmp_path / "alone", "eight", 3, progress=False, workers=1)
    alone = content(tmp_path / "alone")
    assert len(alone) == 8 * 2 + 3
    assert content(tmp_path / "data") == alone
    assert not list(tmp_path.glob(".*.partial-*"))
