"""scripts/prepare_data.py as a user calls it."""

import importlib.util
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from mode_ssm.compose import run_main
from mode_ssm.data.brain2text import close_files, load_phonemes
from mode_ssm.data.index import build_index
from mode_ssm.data.t15_format import RecordedTrial, session_file, write_session_file
from mode_ssm.vocab import SIL, phonemes_to_ids

ROOT = Path(__file__).resolve().parent.parent
_spec = importlib.util.spec_from_file_location("prepare_data", ROOT / "scripts/prepare_data.py")
assert _spec is not None
assert _spec.loader is not None
prepare_data = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(prepare_data)

SESSION = "t15.2023.08.11"


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "t15"
    for split, count in (("train", 4), ("val", 2)):
        rng = np.random.default_rng(count)
        trials = [
            RecordedTrial(
                session=SESSION,
                block=1 + index // 2,
                trial=index,
                features=rng.standard_normal((20, 4)).astype(np.float32),
                phonemes=np.array([3, 4, SIL]),
                sentence="add",
            )
            for index in range(count)
        ]
        write_session_file(session_file(root, SESSION, split), trials, with_labels=True)
    return root


def test_by_default_the_prepared_folder_lies_beside_the_recordings(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--root", str(root), "--feature-dim", "4", "--processes", "1"]
    prepare_data.main(arguments)
    assert "prepared" in capsys.readouterr().out
    assert len(build_index(tmp_path / "processed", feature_dim=4).trials["train"]) == 4
    prepare_data.main(arguments)
    assert "nothing to do" in capsys.readouterr().out
    close_files()


def test_faults_end_in_lines_that_name_file_and_trial(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--root", str(root), "--feature-dim", "4", "--processes", "1", "--output", str(tmp_path / "out")]
    with h5py.File(root / SESSION / "data_val.hdf5", "r+") as file:
        file["trial_0001/input_features"][3] = np.inf
    with pytest.raises(SystemExit) as stop:
        run_main(lambda: prepare_data.main(arguments))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert f"  {SESSION}/data_val.hdf5 trial_0001: values of input_features that are not finite: 4" in error
    assert "--on-bad-trial skip" in error
    prepare_data.main([*arguments, "--on-bad-trial", "skip"])
    assert "1 broken recordings left out" in capsys.readouterr().out
    with pytest.raises(ValueError, match=rf"^data.root={tmp_path / 'none'} is not a folder"):
        prepare_data.main(["--root", str(tmp_path / "none"), "--processes", "1"])


def test_sentences_of_matlab_files_get_the_pronunciations_of_the_lexicon(tmp_path: Path) -> None:
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("cat K AE T\nadd AE D\nadd AH D\ndog D AO G\n")
    for folder in ("train", "test"):
        cells = np.empty((1, 2), object)
        cells[:] = [[np.random.default_rng(0).standard_normal((12, 256)) for _ in range(2)]]
        (tmp_path / "t12" / folder).mkdir(parents=True)
        savemat(
            tmp_path / "t12" / folder / "t12.2022.05.05.mat",
            {
                "sentenceText": np.array(["Add cat.", "Dog"]),
                "blockIdx": np.ones((2, 1)),
                "tx1": cells,
                "spikePow": cells,
            },
        )
    output = tmp_path / "out"
    arguments = ["--root", str(tmp_path / "t12"), "--output", str(output), "--processes", "1"]
    prepare_data.main([*arguments, "--lexicon", str(lexicon)])
    first = build_index(output, feature_dim=256).trials["train"][0]
    phonemes = load_phonemes(first)
    assert phonemes is not None
    assert phonemes.tolist() == [*phonemes_to_ids(["AE", "D"]), SIL, *phonemes_to_ids(["K", "AE", "T"]), SIL]
    close_files()
