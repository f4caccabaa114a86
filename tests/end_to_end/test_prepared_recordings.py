"""Training, evaluation, submission from a prepared folder, the recordings gone: as from the recordings, to the bit."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import call, tiny_run

from mode_ssm.config import Normalisation
from mode_ssm.data.brain2text import close_files
from mode_ssm.inference import LoadedModel, load
from mode_ssm.tasks.decoding import decode_trials
from mode_ssm.train.checkpoint import load_checkpoint
from mode_ssm.train.distributed import Distributed

SINGLE = Distributed(rank=0, world_size=1, device=torch.device("cpu"))


@dataclass(frozen=True)
class PreparedRun:
    """A run of train.py that never saw anything but the folder `root`."""

    root: Path
    run_dir: Path
    cache: Path


@pytest.fixture(scope="module")
def prepared(tiny, tmp_path_factory: pytest.TempPathFactory) -> PreparedRun:
    folder = tmp_path_factory.mktemp("prepared")
    recordings, root, cache = folder / "recordings", folder / "processed", folder / "cache"
    shutil.copytree(tiny.root, recordings)
    arguments = ["--root", str(recordings), "--output", str(root), "--shards", "2", "--processes", "1"]
    call("scripts/prepare_data.py", *arguments, cache=cache)
    shutil.rmtree(recordings)
    shutil.rmtree(cache)  # and what it remembers of them
    call("train.py", *tiny_run(root, folder / "run"), cache=cache)
    return PreparedRun(root, folder / "run", cache)


def opened(prepared: PreparedRun, root: Path, normalisation: Normalisation) -> LoadedModel:
    """The run's checkpoint, asked about the data in `root`."""
    checkpoint = load_checkpoint(prepared.run_dir)
    data = replace(checkpoint.config.data, root=str(root), normalisation=normalisation, rolling_seconds=4.0)
    return load(checkpoint, replace(checkpoint.config, data=data), SINGLE)


def test_training_ends_with_the_weights_of_a_run_on_the_recordings(tiny, prepared: PreparedRun) -> None:
    found, expected = (load_checkpoint(run / "best").weights() for run in (prepared.run_dir, tiny.run_dir))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_report_is_that_of_the_recordings(tiny, prepared: PreparedRun, tmp_path: Path) -> None:
    """That of training, and that of evaluation later, which finds the prepared folder by itself."""
    arguments = [f"checkpoint={prepared.run_dir / 'best'}", f"output={tmp_path}"]
    call("evaluate_model.py", *arguments, cache=prepared.cache)
    expected = json.loads((tiny.run_dir / "report.json").read_text())
    assert expected["num_trials"] > 0
    for folder in (prepared.run_dir, tmp_path):
        assert json.loads((folder / "report.json").read_text()) == expected


def test_the_submission_is_that_of_the_recordings(tiny, prepared: PreparedRun, tmp_path: Path) -> None:
    contents = []
    for run in (prepared, tiny):
        output = tmp_path / f"{len(contents)}.csv"
        call("make_submission.py", f"checkpoint={run.run_dir / 'best'}", f"output={output}", cache=run.cache)
        contents.append(output.read_text())
    assert contents[0] == contents[1]
    assert contents[0].count("\n") > 2


@pytest.mark.parametrize("normalisation", Normalisation)
def test_statistics_training_batches_and_log_probabilities_are_those_of_the_recordings(
    tiny, prepared: PreparedRun, normalisation: Normalisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shards keep the statistics that session and rolling normalisation need."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(prepared.cache))
    ours, theirs = (opened(prepared, root, normalisation) for root in (prepared.root, tiny.root))
    (overall, by_session), (expected_overall, expected_by_session) = ours.data.statistics(), theirs.data.statistics()
    for found, expected in zip([overall, *by_session], [expected_overall, *expected_by_session], strict=True):
        np.testing.assert_array_equal(found.mean, expected.mean)
        np.testing.assert_array_equal(found.std, expected.std)
    for ours_batch, theirs_batch in zip(
        *(loaded.data.train_loader(0, 1).epoch(0) for loaded in (ours, theirs)), strict=True
    ):
        assert torch.equal(ours_batch.features, theirs_batch.features)
    for split in ("val", "test"):
        decoded, reference = (
            decode_trials(of.model, of.data, of.data.trials(split), of.config.decode, None, SINGLE, progress=False)[0]
            for of in (ours, theirs)
        )
        assert list(decoded) == list(reference)
        for name, trial in reference.items():
            np.testing.assert_array_equal(decoded[name].log_probs, trial.log_probs)
    close_files()
