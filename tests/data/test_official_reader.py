"""The benchmark's own dataset class and evaluation helper on simulated files.

Their code is not part of this project: MODE_SSM_OFFICIAL_REPO names a checkout of the official repository. It needs
pandas.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mode_ssm.data.simulator import simulate
from mode_ssm.data.t15_format import session_file
from mode_ssm.data.truth import TruthRecord, read_truth
from mode_ssm.vocab import CLASSES

REPOSITORY = os.environ.get("MODE_SSM_OFFICIAL_REPO")
pytestmark = pytest.mark.skipif(REPOSITORY is None, reason="MODE_SSM_OFFICIAL_REPO names no official repository")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("official") / "tiny"
    simulate(path, "tiny", 0, progress=False)
    return path


@pytest.fixture(scope="module")
def truth(root: Path) -> dict[str, TruthRecord]:
    return read_truth(root)


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the repository's modules importable under their own names for one test."""
    monkeypatch.syspath_prepend(str(Path(str(REPOSITORY)) / "model_training"))
    yield
    for name in ("dataset", "evaluate_model_helpers", "data_augmentations"):
        sys.modules.pop(name, None)


def of_split(truth: dict[str, TruthRecord], split: str) -> list[TruthRecord]:
    return [record for record in truth.values() if record.split == split]


@pytest.mark.parametrize(("split", "role"), [("train", "train"), ("val", "test")])
def test_the_official_dataset_yields_our_trials(
    root: Path, truth: dict[str, TruthRecord], official: None, split: str, role: str
) -> None:
    from dataset import BrainToTextDataset, train_test_split_indicies

    sessions = sorted({record.session for record in of_split(truth, split)})
    paths = [str(session_file(root, session, split)) for session in sessions]
    train, test = train_test_split_indicies(paths, test_percentage=0 if role == "train" else 1, seed=0)
    chosen = train if role == "train" else test
    assert sum(len(day["trials"]) for day in chosen.values()) == len(of_split(truth, split))
    dataset = BrainToTextDataset(
        chosen, n_batches=6, split=role, batch_size=4, days_per_batch=min(2, len(sessions)), random_seed=0
    )
    by_sentence = {record.sentence: record for record in of_split(truth, split)}
    seen = set()
    for number in range(len(dataset)):
        batch = dataset[number]
        assert batch["input_features"].shape[2] == 512
        for row in range(len(batch["n_time_steps"])):
            characters = batch["transcriptions"][row].tolist()
            record = by_sentence[bytes(characters[: characters.index(0)]).decode()]
            length = int(batch["phone_seq_lens"][row])
            assert batch["seq_class_ids"][row, :length].tolist() == record.phonemes
            assert int(batch["n_time_steps"][row]) == record.num_bins
            assert sessions[batch["day_indicies"][row]] == record.session
            seen.add(record.name)
    if role == "test":
        assert seen == {record.name for record in of_split(truth, split)}
    else:
        assert len(seen) > 6


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_official_evaluation_helper_loads_our_trials(
    root: Path, truth: dict[str, TruthRecord], official: None, split: str
) -> None:
    pandas = pytest.importorskip("pandas")
    from evaluate_model_helpers import LOGIT_TO_PHONEME, _extract_transcription, load_h5py_file

    assert [*LOGIT_TO_PHONEME[:-1], "SIL"] == list(CLASSES)
    blocks = pandas.DataFrame(
        {"Date": ["2023-08-27"] * 2, "Block number": [3, 4], "Corpus": ["Switchboard", "50-Word"]}
    )
    data = load_h5py_file(session_file(root, "t15.2023.08.27", split), blocks)
    records = of_split(truth, split)
    assert data["n_time_steps"] == [record.num_bins for record in records]
    assert data["corpus"] == ["Switchboard" if r.corpus == "conversation" else "50-Word" for r in records]
    assert all(x.dtype == np.float32 and x.shape[1] == 512 for x in data["neural_features"])
    if split == "val":
        assert data["sentence_label"] == [record.sentence for record in records]
        assert [_extract_transcription(text) for text in data["transcriptions"]] == data["sentence_label"]
        labels = [ids[:n].tolist() for ids, n in zip(data["seq_class_ids"], data["seq_len"], strict=True)]
        assert labels == [record.phonemes for record in records]
    else:
        assert data["sentence_label"] == [None] * len(records)
