from dataclasses import replace
from pathlib import Path

import pytest

from mode_ssm.data.truth import TruthRecord, read_truth, write_truth

RECORD = TruthRecord(
    name="t15.2023.08.11/val/trial_0003",
    session="t15.2023.08.11",
    split="val",
    sentence="We see.",
    phonemes=[36, 18, 40, 29, 18, 40],
    corpus="conversation",
    mode="silent",
    phoneme_starts=[12, 20, 31, 36, 45, 60],
    num_bins=80,
)


def test_written_records_read_back_equal_by_name(tmp_path: Path) -> None:
    unknown = replace(RECORD, name="s/train/trial_0000", corpus=None, mode=None, phoneme_starts=None)
    assert write_truth(tmp_path / "truth.jsonl", [RECORD, unknown]) == 2
    assert read_truth(tmp_path) == {RECORD.name: RECORD, unknown.name: unknown}


def test_a_folder_without_truth_reads_as_empty(tmp_path: Path) -> None:
    assert read_truth(tmp_path) == {}


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "truth.jsonl"
    write_truth(path, [RECORD])

    def interrupted():
        yield replace(RECORD, name="s/train/trial_0000")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_truth(path, interrupted())
    assert read_truth(tmp_path) == {RECORD.name: RECORD}
    assert [p.name for p in tmp_path.iterdir()] == ["truth.jsonl"]


def test_a_name_that_stands_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    write_truth(tmp_path / "truth.jsonl", [RECORD, RECORD])
    with pytest.raises(ValueError, match=r"truth\.jsonl:2: t15\.2023\.08\.11/val/trial_0003 stands twice"):
        read_truth(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"), [("{", "not JSON"), ("[1]", "expected an object"), ('{"name": "x"}', "keys")]
)
def test_a_line_that_is_no_record_is_refused_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    write_truth(tmp_path / "truth.jsonl", [RECORD])
    with (tmp_path / "truth.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=rf"truth\.jsonl:2: .*{message}"):
        read_truth(tmp_path)
