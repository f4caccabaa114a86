import pytest

from mode_ssm.lm.lexicon_file import read_lexicon_file
from mode_ssm.vocab import phonemes_to_ids


def ids(text):
    return tuple(phonemes_to_ids(text.split()))


def write(tmp_path, text):
    path = tmp_path / "lexicon.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_repeated_lines_and_numbered_words_are_alternates(tmp_path):
    path = write(
        tmp_path,
        ";;; a comment\n# another\nREAD  R EH1 D\nread(2) R IY1 D\n\nread(3) R IY0 D\n"
        "red R EH1 D # a colour\nyou Y UW\nyou\tY AH\n'tis T IH1 Z\r\n",
    )
    found = read_lexicon_file(path)
    assert found.entries == {
        "read": [ids("R EH D"), ids("R IY D")],
        "red": [ids("R EH D")],
        "you": [ids("Y UW"), ids("Y AH")],
        "'tis": [ids("T IH Z")],
    }
    assert list(found.entries) == ["read", "red", "you", "'tis"]
    assert found.summary() == ""


def test_a_byte_order_mark_is_not_part_of_the_first_word(tmp_path):
    assert list(read_lexicon_file(write(tmp_path, "\ufeffcat K AE T\n")).entries) == ["cat"]


def test_kaldi_probabilities_order_the_alternates(tmp_path):
    found = read_lexicon_file(write(tmp_path, "the 0.3 DH IY\na 1.0 AH\nthe 1e-2 DH AA\nthe 0.9 DH AH\n"))
    assert found.entries == {"the": [ids("DH AH"), ids("DH IY"), ids("DH AA")], "a": [ids("AH")]}
    with_silence = read_lexicon_file(write(tmp_path, "the 0.3 0.2 1.1 0.9 DH IY\nthe 0.9 0.4 1.3 0.8 DH AH\n"))
    assert with_silence.entries == {"the": [ids("DH AH"), ids("DH IY")]}


def test_kaldi_entries_of_silence_and_noise_are_left_out(tmp_path):
    found = read_lexicon_file(write(tmp_path, "!SIL SIL\n<SPOKEN_NOISE> SPN\n<UNK> 1.0 SPN\n<noise> NSN\ncat K AE T\n"))
    assert found.entries == {"cat": [ids("K AE T")]}
    assert set(found.left_out) == {"!sil", "<spoken_noise>", "<unk>", "<noise>"}


def test_words_are_spelled_as_text_is(tmp_path):
    text = "U.S. Y UW EH S\nus AH S\nus AH Z\nDon’t D OW N T\ndon't D OW N\ne.g. IY JH IY\n?question-mark K W EH S\n"
    found = read_lexicon_file(write(tmp_path, text))
    assert found.entries == {
        "us": [ids("AH S"), ids("AH Z"), ids("Y UW EH S")],  # its own first
        "don't": [ids("D OW N T"), ids("D OW N")],
        "eg": [ids("IY JH IY")],
        "question-mark": [ids("K W EH S")],
    }
    assert found.respelled == {"u.s.": "us", "e.g.": "eg", "?question-mark": "question-mark"}
    assert found.summary() == (
        "3 spelling(s) read as the normalised word (u.s. as us, e.g. as eg, ?question-mark as question-mark ...)"
    )


def test_an_abbreviation_does_not_take_another_words_sound(tmp_path):
    text = "in. IH N\nin.(2) IH N CH\ninch IH N CH\nin IH N\nb.c. B IY S IY\nco. K AH M\ncom K AH M\n"
    found = read_lexicon_file(write(tmp_path, text))
    assert found.entries["in"] == [ids("IH N")]
    assert found.respelled == {"in.": "in", "b.c.": "bc", "co.": "co"}  # "co" has no entry of its own
    assert found.left_out == {"in.": "a pronunciation that is 'inch', not 'in'"}
    assert found.entries["co"] == [ids("K AH M")]


def test_words_that_text_cannot_hold_are_left_out(tmp_path):
    found = read_lexicon_file(write(tmp_path, "cat K AE T\n4th F AO R TH\ncafé K AE F EY\n... D AA T\n"))
    assert list(found.entries) == ["cat"]
    assert found.left_out == {
        "4th": "cannot be written without '4'",
        "café": "cannot be written without 'é'",
        "...": "cannot be written without '...'",
    }
    assert found.summary().startswith("3 left out (4th: cannot be written without '4'")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat K AE T\ndog D XX G\n", "lexicon.txt, line 2: unknown phoneme 'XX'"),
        ("cat K AE T\n\ndog D AO3 BLANK\n", "lexicon.txt, line 3: pronunciation of 'dog' holds blank"),
        ("cat\n", "lexicon.txt, line 1: word 'cat' has an empty pronunciation"),
        ("cat # K AE T\n", "lexicon.txt, line 1: word 'cat' has an empty pronunciation"),
        ("cat 0.5\n", "lexicon.txt, line 1: word 'cat' has an empty pronunciation"),
        ("cat 1.5 K AE T\n", r"lexicon.txt, line 1: probability 1.5 of a pronunciation is not in \(0, 1\]"),
        ("cat 0.0 K AE T\n", "lexicon.txt, line 1: probability 0.0"),
        ("cat K AE T SIL\n", "lexicon.txt, line 1: .* holds blank, SIL"),
        ("# nothing\n", "lexicon.txt: no pronunciations"),
        ("a K\n<s> K\n", "lexicon.txt, line 2: '<s>' cannot be a word"),
        ("4th F AO R TH\n", "lexicon.txt: no pronunciations; 1 left out .4th: cannot be written without '4'"),
    ],
)
def test_errors_name_file_and_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_lexicon_file(write(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"cat K AE T\ncaf\xe9 K AE F EY\n", r"lexicon.txt, line 2: not UTF-8 text \(invalid .* at byte 14\)"),
        ("cat K AE T\n".encode("utf-16"), "lexicon.txt, line 1: not UTF-8 text"),
        ("cat K AE T\n".encode("utf-16-le"), "lexicon.txt, line 1: not UTF-8 text .*UTF-16"),
    ],
)
def test_a_file_in_another_encoding_is_named(tmp_path, data, message):
    path = tmp_path / "lexicon.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_lexicon_file(path)
