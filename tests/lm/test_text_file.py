import gzip

import pytest

from mode_ssm.lm.text_file import read_sentences


@pytest.mark.parametrize("compressed", [False, True])
def test_sentences_are_normalised_and_empty_lines_skipped(tmp_path, compressed):
    path = tmp_path / ("text.txt.gz" if compressed else "text.txt")
    data = "Thank you.\n\n  \n12345\nI’m fine – really\r\nno newline".encode()
    path.write_bytes(gzip.compress(data) if compressed else data)
    assert list(read_sentences(path)) == ["thank you", "i'm fine really", "no newline"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.txt", b"", "no sentences; expected one a line"),
        ("text.txt", b"\n 12 \n\n", "no sentences; expected one a line"),
        ("text.txt", b"fine\ncaf\xe9\n", r"not UTF-8 text \(invalid continuation byte\); convert it"),
        ("text.txt.gz", b"plain text", "not a whole gzip file"),
        ("text.txt.gz", gzip.compress(b"fine\n" * 1000)[:-12], "not a whole gzip file"),
        ("text.txt", None, "a folder, not a text file"),
    ],
)
def test_what_is_no_text_is_named_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        list(read_sentences(path))
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
