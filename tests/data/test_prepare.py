import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mode_ssm.config import OnBadTrial, Smoothing
from mode_ssm.data import prepare as prepare_module
from mode_ssm.data.brain2text import close_files, load_trial
from mode_ssm.data.index import build_index
from mode_ssm.data.loader import TrialLoader
from mode_ssm.data.manifest import MANIFEST_FILE, checksum, read_manifest
from mode_ssm.data.prepare import Settings, prepare
from mode_ssm.data.sampler import BucketSampler
from mode_ssm.data.shards import block_covariance
from mode_ssm.data.transforms import SignalTransform

EARLY, LATE = "t15.2023.08.11", "t15.2023.08.13"
SETTINGS = Settings(feature_dim=4, train_shards=3)


@pytest.fixture
def root(tmp_path: Path, write_dataset: Callable[..., Path]) -> Path:
    root = write_dataset(tmp_path / "t15", {EARLY: {"train": 9, "val": 3}, LATE: {"train": 7, "val": 2, "test": 4}})
    (root / "lexicon.txt").write_text("add AE D\n")
    return root


@pytest.fixture(autouse=True)
def no_handles_left() -> Iterator[None]:
    yield
    close_files()


def prepared(root: Path, output: Path, **options: object) -> Path:
    prepare(root, output, **{"settings": SETTINGS, "progress": False, **options})  # type: ignore[arg-type]
    return output


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def manifest_of(folder: Path) -> dict[str, object]:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest


def test_both_forms_give_the_same_index_the_same_trials_and_the_same_batches(root: Path, tmp_path: Path) -> None:
    official = build_index(root, feature_dim=4, progress=False)
    other = build_index(prepared(root, tmp_path / "processed"), feature_dim=4, progress=False)
    assert (other.sessions, other.skipped) == (official.sessions, [])
    for split in ("train", "val", "test"):
        assert [replace(t, path="") for t in other.trials[split]] == [
            replace(t, path="") for t in official.trials[split]
        ]
        assert list(other.statistics[split]) == list(official.statistics[split])
        for session, statistics in official.statistics[split].items():
            np.testing.assert_array_equal(other.statistics[split][session].mean, statistics.mean)
            np.testing.assert_array_equal(other.statistics[split][session].std, statistics.std)
            assert other.statistics[split][session].count == statistics.count
        for ours, theirs in zip(other.trials[split], official.trials[split], strict=True):
            one, two = load_trial(ours), load_trial(theirs)
            np.testing.assert_array_equal(one.features, two.features)
            np.testing.assert_array_equal(one.phonemes, two.phonemes)  # type: ignore[arg-type]
    batches = [
        list(TrialLoader(trials, transform, {EARLY: 0, LATE: 1}, BucketSampler(trials, 4, 2, seed=3)).epoch(1))
        for trials in (official.trials["train"], other.trials["train"])
        for transform in (SignalTransform(Smoothing.symmetric, 2.0),)
    ]
    for ours, theirs in zip(*batches, strict=True):
        for name in ("features", "feature_lengths", "targets", "target_lengths", "session_ids"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_sessions_and_splits_can_be_chosen_and_what_is_missing_is_named(root: Path, tmp_path: Path) -> None:
    output = prepared(root, tmp_path / "processed")
    index = build_index(output, splits=("val",), sessions=[LATE], feature_dim=4)
    assert set(index.trials) == {"val"}
    assert [t.name for t in index.trials["val"]] == [f"{LATE}/val/trial_0000", f"{LATE}/val/trial_0001"]
    with pytest.raises(ValueError, match=r"no session 't15.2023.08.14' .* nearest name is 't15.2023.08.1[13]'"):
        build_index(output, sessions=["t15.2023.08.14"], feature_dim=4)
    with pytest.raises(ValueError, match=r"holds 4 features a bin, but data.feature_dim=512"):
        build_index(output)


def test_shards_keep_blocks_whole_and_their_statistics_are_those_of_the_features(root: Path, tmp_path: Path) -> None:
    output = prepared(root, tmp_path / "processed")
    assert sorted(p.name for p in output.glob("*.h5")) == [
        "test_00.h5", "train_00.h5", "train_01.h5", "train_02.h5", "val_00.h5",
    ]  # fmt: skip
    index = build_index(output, feature_dim=4)
    blocks: dict[tuple[str, str, int], list[np.ndarray]] = {}
    for trials in index.trials.values():
        for info in trials:
            blocks.setdefault((info.path, info.session, info.block), []).append(load_trial(info).features)
    assert len({block[1:] for block in blocks}) == len(blocks)
    for (path, session, block), features in blocks.items():
        whole = np.concatenate(features).astype(np.float64)
        np.testing.assert_allclose(
            block_covariance(path, session, block), np.cov(whole, rowvar=False, bias=True), rtol=1e-4, atol=1e-6
        )
        with h5py.File(path) as file:
            row = list(zip(file["blocks/session"].asstr()[()], file["blocks/block"][()], strict=True)).index(
                (session, block)
            )
            np.testing.assert_allclose(file["blocks/mean"][row], whole.mean(axis=0), atol=1e-12)
            np.testing.assert_allclose(file["blocks/std"][row], whole.std(axis=0), rtol=1e-10)
    with pytest.raises(ValueError, match="holds no block 99 of session"):
        block_covariance(output / "val_00.h5", EARLY, 99)


def test_the_manifest_counts_and_has_a_checksum_of_every_file(root: Path, tmp_path: Path) -> None:
    output = prepared(root, tmp_path / "processed")
    manifest = read_manifest(output)
    assert manifest is not None
    assert manifest["trials"] == {"train": 16, "val": 5, "test": 4}
    assert manifest["blocks"]["train"] == {EARLY: {"10": 4, "11": 4, "12": 1}, LATE: {"10": 4, "11": 3}} or manifest[
        "blocks"
    ]["train"] == {EARLY: {"0": 4, "1": 4, "2": 1}, LATE: {"10": 4, "11": 3}}
    assert {s["file"]: s["sha256"] for s in manifest["sources"]} == {
        str(p.relative_to(root)): checksum(p) for p in root.rglob("*.hdf5")
    }
    assert {s["file"]: s["sha256"] for s in manifest["shards"]} == {p.name: checksum(p) for p in output.glob("*.h5")}
    assert sum(s["bins"] for s in manifest["shards"]) == sum(
        t.num_bins for trials in build_index(root, feature_dim=4, progress=False).trials.values() for t in trials
    )
    assert (output / "lexicon.txt").read_text() == "add AE D\n"


def test_a_second_call_does_nothing_and_opens_no_recording(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "processed"
    assert prepare(root, output, SETTINGS, progress=False)
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    for name in ("checksum", "scan_file", "write_shard"):
        monkeypatch.setattr(prepare_module, name, None)
    assert not prepare(root, output, SETTINGS, progress=False)
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == before


def test_only_what_a_changed_recording_goes_into_is_written_again(root: Path, tmp_path: Path) -> None:
    output = prepared(root, tmp_path / "processed")
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("*.h5")}
    with h5py.File(root / LATE / "data_val.hdf5", "r+") as file:
        file["trial_0001/input_features"][0, 0] = 7.0
    assert prepare(root, output, SETTINGS, progress=False)
    after = {path.name: path.stat().st_mtime_ns for path in output.glob("*.h5")}
    assert {name for name in after if after[name] != before[name]} == {"val_00.h5"}
    trial = build_index(output, feature_dim=4).trials["val"][-1]
    assert load_trial(trial).features[0, 0] == 7.0
    assert contents(output) == contents(prepared(root, tmp_path / "again"))


def test_other_settings_or_a_touched_shard_prepare_again(root: Path, tmp_path: Path) -> None:
    output = prepared(root, tmp_path / "processed")
    wanted = contents(output)
    assert prepare(root, output, replace(SETTINGS, train_shards=2), progress=False)
    assert sorted(p.name for p in output.glob("train*")) == ["train_00.h5", "train_01.h5"]
    prepared(root, output)
    assert contents(output) == wanted
    (output / "train_01.h5").write_bytes(b"cut")
    assert prepare(root, output, SETTINGS, progress=False)
    assert contents(output) == wanted


def test_verify_finds_a_damaged_shard_and_a_damaged_source(root: Path, tmp_path: Path) -> None:
    output = prepared(root, tmp_path / "processed")
    wanted = contents(output)
    assert not prepare(root, output, SETTINGS, verify=True, progress=False)
    shard = output / "train_00.h5"
    flip_last_byte(shard)
    assert not prepare(root, output, SETTINGS, progress=False)
    assert prepare(root, output, SETTINGS, verify=True, progress=False)
    assert contents(output) == wanted
    flip_last_byte(root / EARLY / "data_val.hdf5")
    with pytest.raises(ValueError, match=rf"^{EARLY}/data_val.hdf5 is damaged: not the bytes that were prepared"):
        prepare(root, output, SETTINGS, verify=True, progress=False)


def flip_last_byte(path: Path) -> None:
    """Size and time stay."""
    status, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_killed_at_any_moment_and_called_again_ends_in_the_same_bytes(root: Path, tmp_path: Path) -> None:
    wanted = contents(prepared(root, tmp_path / "whole"))
    output, moments = tmp_path / "processed", 0
    while kill_at(moments, root, output):
        moments += 1
        if (output / MANIFEST_FILE).exists():
            assert contents(output) == wanted
        elif output.is_dir() and any(output.glob("*.h5")):
            with pytest.raises(ValueError, match="is not prepared to the end"):
                build_index(output, feature_dim=4)
        if moments % 4 == 0:  # else the next one goes on from what this one left
            prepared(root, output)
            assert contents(output) == wanted
            for path in output.iterdir():
                path.unlink()
    assert moments > 50
    assert contents(output) == wanted


def kill_at(moment: int, root: Path, output: Path) -> bool:
    """Prepare in a child that is killed at its n-th system call of interest; False if it came to the end."""
    child = os.fork()
    if child == 0:
        count = 0

        def deadly(function: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **options: object) -> object:
                nonlocal count
                if count == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                return function(*arguments, **options)

            return call

        os.replace, os.fsync = deadly(os.replace), deadly(os.fsync)  # type: ignore[assignment]
        h5py.Group.create_dataset = deadly(h5py.Group.create_dataset)
        h5py.Dataset.__setitem__ = deadly(h5py.Dataset.__setitem__)
        try:
            prepared(root, output)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_the_number_of_processes_does_not_change_a_byte(root: Path, tmp_path: Path) -> None:
    alone = contents(prepared(root, tmp_path / "alone"))
    assert contents(prepared(root, tmp_path / "together", processes=2)) == alone


def test_bad_trials_stop_with_a_line_each_and_leave_nothing_or_are_left_out(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with h5py.File(root / EARLY / "data_train.hdf5", "r+") as file:
        file["trial_0003/input_features"][5, 2] = np.nan
        del file["trial_0007"].attrs["block_num"]
    output = tmp_path / "processed"
    with pytest.raises(ValueError, match="2 bad recordings") as error:
        prepared(root, output)
    assert f"{EARLY}/data_train.hdf5 trial_0003: values of input_features that are not finite: 1" in str(error.value)
    assert f"{EARLY}/data_train.hdf5 trial_0007: attribute block_num is missing" in str(error.value)
    assert not list(output.glob("*"))
    skipping = replace(SETTINGS, on_bad_trial=OnBadTrial.skip)
    prepared(root, output, settings=skipping)
    with caplog.at_level(logging.WARNING):
        index = build_index(output, feature_dim=4)
    assert len(index.trials["train"]) == 14
    assert [name for name, _ in index.skipped] == [f"{EARLY}/data_train.hdf5 trial_000{i}" for i in (3, 7)]
    assert "left out when the data were prepared" in caplog.text


def test_simulated_data_must_have_the_trials_that_they_say(root: Path, tmp_path: Path) -> None:
    (root / "simulation.json").write_text(json.dumps({"trials": {"train": 16, "val": 5, "test": 4}}))
    prepared(root, tmp_path / "processed")
    (root / LATE / "data_test.hdf5").unlink()
    with pytest.raises(ValueError, match=r"holds 0 test trials, but simulation.json says 4; is a file missing\?"):
        prepared(root, tmp_path / "processed")
    (root / "simulation.json").write_text('{"trials": ')
    with pytest.raises(ValueError, match=r"simulation\.json: no counts of trials in it; simulate the recordings again"):
        prepared(root, tmp_path / "other")


def test_45_sessions_of_t15_must_have_the_official_counts(
    tmp_path: Path, write_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "T15_SESSIONS", 2)
    root = write_dataset(tmp_path / "t15", {EARLY: {"train": 3}, LATE: {"train": 2, "val": 1}})
    with pytest.raises(ValueError, match="holds 5 train trials, but Brain-to-Text '25 has 8072"):
        prepared(root, tmp_path / "processed")
    assert not list((tmp_path / "processed").glob("*"))
    monkeypatch.setattr(prepare_module, "T15_TRIALS", {"train": 5, "val": 1, "test": 0})
    prepared(root, tmp_path / "processed")


def test_a_disk_without_room_is_named_before_anything_is_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mode_ssm.data.disk_room.shutil.disk_usage", lambda path: type("", (), {"free": 100})())
    with pytest.raises(ValueError, match=r"processed needs 0\.\d\d GB, but the disk has 0.00 GB free"):
        prepared(root, tmp_path / "processed")
    assert not list((tmp_path / "processed").glob("*.h5"))


def test_a_disk_that_fills_up_leaves_nothing_half_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mode_ssm.data.shards.os.fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        prepared(root, tmp_path / "processed")
    assert not list((tmp_path / "processed").iterdir())
