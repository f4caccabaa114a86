"""The submission file: what is written is accepted, and every way to break it is named with its line."""

from pathlib import Path

import pytest

from mode_ssm.submission import validate_submission, write_submission


def test_written_file_is_byte_exact_and_accepted(tmp_path: Path) -> None:
    path = tmp_path / "made" / "submission.csv"
    write_submission(path, ["I don’t know.", "well-known, men", ""])
    assert path.read_bytes() == b"id,text\n0,i don't know\n1,well-known men\n2,\n"
    assert validate_submission(path, 3, empty_ids={2}) == ["i don't know", "well-known men", ""]
    assert [p.name for p in path.parent.iterdir()] == ["submission.csv"]


def test_a_failed_write_leaves_the_former_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    write_submission(path, ["first"])
    with pytest.raises(AttributeError):
        write_submission(path, ["second", None])  # type: ignore[list-item]
    assert path.read_text() == "id,text\n0,first\n"
    assert list(tmp_path.iterdir()) == [path]


def test_every_problem_is_listed_with_its_line_in_one_error(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    path.write_text('Id,Text\n0,fine\n2,Not Fine\n1,wrong order\n3,"a, b!"\n4,\n5\n')
    with pytest.raises(ValueError, match="not a valid submission") as caught:
        validate_submission(path, 9)
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert lines == [
        "line 1: the header must be id,text, found Id,Text",
        "line 3: id '2', expected 1",
        "line 3: characters that are not allowed: 'F' 'N'; only a-z, apostrophe, hyphen and space",
        "line 4: id '1', expected 2",
        "line 5: characters that are not allowed: '!' ','; only a-z, apostrophe, hyphen and space",
        "line 6: no text, though the decoder gave words",
        "line 7: 1 columns, expected 2",
        "6 rows, expected 9",
    ]


def test_empty_text_is_accepted_only_where_the_decoder_was_empty(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    write_submission(path, ["", "a", ""])
    with pytest.raises(ValueError, match="line 4: no text") as caught:
        validate_submission(path, 3, empty_ids={0})
    assert "line 2" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "id,text\n"])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "submission.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match="0 rows, expected 2"):
        validate_submission(path, 2)
    write_submission(path, [])
    assert validate_submission(path, 0) == []
