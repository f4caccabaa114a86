"""What users get wrong: every case ends in one line that names the thing, or in a result that makes sense."""

import gzip
import math
from pathlib import Path

import numpy as np
import pytest

from mode_ssm.decode.batch import decode_batch
from mode_ssm.decode.ctc_beam import CtcWordDecoder
from mode_ssm.lm.kenlm_scorer import open_scorer
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.vocab import NUM_CLASSES

LEXICON = Lexicon({"cat": [(20, 2, 31)], "dog": [(9, 1, 15)]})
LM = NGramLM.estimate(["cat dog", "dog"], 2, LEXICON.words)
UPPER = ["CAT DOG", "DOG CAT CAT"] * 3


def frames(value: float = -3.7, at: tuple[int, int] | None = None, bad: float = 0.0) -> np.ndarray:
    """Five frames of equal log-probabilities, but for one of them."""
    log_probs = np.full((5, NUM_CLASSES), value)
    if at is not None:
        log_probs[at] = bad
    return log_probs


def check_one_line(error: pytest.ExceptionInfo[ValueError]) -> None:
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat K AE T\ndog D XX G\n", r"line 2: unknown phoneme 'XX'; known: AA AE .* ZH SIL"),
        ("cat K AE T\ndog d aa g\n", r"line 2: unknown phoneme 'd'; known: AA"),
        ("cat K AE SIL T\n", r"line 1: pronunciation of 'cat' holds blank, SIL"),
        ("cat BLANK\n", r"line 1: pronunciation of 'cat' holds blank, SIL"),
        ("cat K AE T\ndog\n", r"line 2: word 'dog' has an empty pronunciation"),
        ("<unk> K AE T\n", r"line 1: '<unk>' cannot be a word of a lexicon"),
        ("", r"no pronunciations; expected lines such as 'cat K AE T'"),
        (";;; only a comment\n\n", r"no pronunciations; expected lines such as 'cat K AE T'"),
        ("<sil> SIL\n<noise> SPN\n", r"no pronunciations; 2 left out"),
        (b"cat K AE T\ncaf\xe9 K AE F EY\n", r"line 2: not UTF-8 text"),
        (b"\xff\xfec\0a\0t\0", r"line 1: not UTF-8 text"),
        (None, r"a folder, not a pronunciation dictionary"),
    ],
)
def test_a_lexicon_file_that_cannot_be_used(tmp_path: Path, text: str | bytes | None, message: str) -> None:
    path = tmp_path / "lexicon.txt"
    if text is None:
        path.mkdir()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for read in (Lexicon.read, Lexicon.load):
        with pytest.raises(ValueError, match=message) as error:
            read(path)
        assert str(error.value).startswith(str(path))
        check_one_line(error)


def test_a_lexicon_that_never_uses_some_phoneme_is_fine() -> None:
    lexicon = Lexicon({"a": [(3,)]})
    decoder = CtcWordDecoder(lexicon, NGramLM.estimate(["a"], 1, lexicon.words))
    assert decoder.decode(frames(at=(2, 3)))[0].words == ("a",)


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        (["cat dog bird fish"], r"2 of 4 training words .* \(wrong case or wrong lexicon\?\): bird, fish"),
        (UPPER, r"15 of 15 training words are not in the vocabulary of 2 \(wrong case: lower it\): CAT, DOG"),
        ([], "cannot estimate a language model from no sentences"),
        (["cat <s> dog"], "a training sentence holds <s> or </s> as a word: 'cat <s> dog'"),
    ],
)
def test_a_corpus_that_misses_the_lexicon(sentences: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        NGramLM.estimate(sentences, 2, LEXICON.words)
    check_one_line(error)


def test_a_fifth_of_unknown_words_is_no_error() -> None:
    assert "cat" in NGramLM.estimate(["cat dog cat dog bird"], 2, LEXICON.words)


@pytest.mark.parametrize("form", ["arpa", "mapped"])
def test_a_model_of_other_words_is_not_taken_for_one_of_unknown_words(tmp_path: Path, form: str) -> None:
    def message(sentences: list[str]) -> str:
        lm, path = NGramLM.estimate(sentences, 2, like_lmplz=True), tmp_path / form
        lm.write_arpa(path) if form == "arpa" else lm.save(path)
        with pytest.raises(ValueError, match=rf"{form}: 2 of 2 lexicon words are not in this language") as error:
            open_scorer(path, LEXICON.words)
        check_one_line(error)
        return str(error.value)

    assert "(wrong case: lower it): cat, dog" in message(UPPER)
    assert "(wrong case or wrong lexicon?): cat, dog" in message(["bird fish", "fish"])


@pytest.mark.parametrize("in_lexicon", [60, 9])
def test_a_model_of_fewer_or_of_more_words_is_taken(tmp_path: Path, in_lexicon: int) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "lm.arpa"
    known = [f"w{i}" for i in range(20)]
    lexicon = Lexicon({f"w{i}": [(1 + i % 39, 1 + i // 39)] for i in range(in_lexicon)})
    NGramLM.estimate([" ".join(rng.choice(known, 6)) for _ in range(99)], 2, like_lmplz=True).write_arpa(path)
    assert CtcWordDecoder(lexicon, open_scorer(path, lexicon.words)).words == lexicon.words


def test_a_model_that_cannot_produce_a_lexicon_word() -> None:
    with pytest.raises(ValueError, match=r"1 of 2 lexicon words have no probability .*: dog") as error:
        CtcWordDecoder(LEXICON, NGramLM.estimate(["cat"], 1))
    check_one_line(error)


def mapped() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        LM.save(Path(folder) / "lm")
        return (Path(folder) / "lm").read_bytes()


MAPPED = mapped()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"no \\data\\ line; not an ARPA file"),
        (b"cat dog\n", r"no \\data\\ line; not an ARPA file"),
        (b"PK\x03\x04 some archive", r"no \\data\\ line; not an ARPA file"),
        (b"\\data\\\nngram 1=2\n\n\\1-grams:\n-1\t<s>\n", r"line 5: ends before \\end\\; not a whole ARPA file"),
        (gzip.compress(b"no model\n" * 99)[:-20], "not a whole gzip file"),
        (MAPPED[:-9], "bytes where the header announces .*; not a whole file"),
        (MAPPED[:18], "not a mapped n-gram model"),
        (MAPPED[:60] + b"?" + MAPPED[61:], "the header does not match its checksum; the file is damaged"),
        (MAPPED[:-200] + b"?" * 100 + MAPPED[-100:], "does not match its checksum; the file is damaged"),
        (None, "a folder, not a language model"),
    ],
)
def test_a_language_model_file_that_cannot_be_used(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "lm"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        open_scorer(path, LEXICON.words)
    assert str(error.value).startswith(str(path))
    check_one_line(error)


@pytest.mark.parametrize(
    ("log_probs", "message"),
    [
        (np.zeros((5, 40)), r"log_probs must be \(frames, 41\), not \(5, 40\)"),
        (np.zeros((5, 0)), r"log_probs must be \(frames, 41\), not \(5, 0\)"),
        (np.zeros(NUM_CLASSES), r"log_probs must be \(frames, 41\), not \(41,\)"),
        (np.zeros((1, 5, NUM_CLASSES)), r"log_probs must be \(frames, 41\), not \(1, 5, 41\)"),
        (frames(at=(3, 7), bad=math.nan), "NaN or plus infinity at frame 3 of 5"),
        (frames(at=(0, 40), bad=math.inf), "NaN or plus infinity at frame 0 of 5"),
    ],
)
def test_bad_log_probs_in_one_utterance_of_a_batch(log_probs: np.ndarray, message: str) -> None:
    decoder = CtcWordDecoder(LEXICON, LM)
    with pytest.raises(ValueError, match=message) as error:
        decoder.decode(log_probs)
    check_one_line(error)
    with pytest.raises(ValueError, match=message):
        decode_batch(decoder, [frames(), log_probs, frames()])


def test_an_utterance_without_frames_has_no_words() -> None:
    decoder, nothing = CtcWordDecoder(LEXICON, LM), np.zeros((0, NUM_CLASSES), np.float32)
    (hypothesis,) = decoder.decode(nothing)
    assert hypothesis.words == ()
    assert hypothesis.score == hypothesis.lm_score == pytest.approx(LM.end(LM.start()))
    assert hypothesis.acoustic_score == 0.0
    assert decode_batch(decoder, []) == []
    nbests = decode_batch(decoder, [frames(), nothing, frames()])
    assert nbests == [decoder.decode(frames()), [hypothesis], decoder.decode(frames())]
    state = decoder.start()
    decoder.step(state, nothing)
    assert (state.num_frames, decoder.partial(state), decoder.stable_prefix(state)) == (0, (), ())


def test_frames_in_which_nothing_is_possible_have_no_words() -> None:
    (hypothesis,) = CtcWordDecoder(LEXICON, LM).decode(frames(-math.inf))
    assert (hypothesis.words, hypothesis.score) == ((), -math.inf)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("beam_size", 0, "beam_size must be at least 1, not 0"),
        ("beam_size", -3, "beam_size must be at least 1, not -3"),
        ("nbest", 0, "nbest must be at least 1, not 0"),
        ("beam_threshold", 0.0, "beam_threshold must be positive, not 0.0"),
        ("beam_threshold", math.nan, "beam_threshold must be positive, not nan"),
        ("acoustic_scale", 0.0, "acoustic_scale must be positive and finite, not 0.0"),
        ("acoustic_scale", -1.0, "acoustic_scale must be positive and finite, not -1.0"),
        ("acoustic_scale", math.nan, "acoustic_scale must be positive and finite, not nan"),
        ("acoustic_scale", math.inf, "acoustic_scale must be positive and finite, not inf"),
        ("lm_scale", -1.0, "lm_scale must not be negative, not -1.0"),
        ("lm_scale", math.inf, "lm_scale must be a finite number, not inf"),
        ("word_bonus", math.nan, "word_bonus must be a finite number, not nan"),
        ("blank_penalty", math.inf, "blank_penalty must be a finite number, not inf"),
        ("silence_score", math.inf, "silence_score must be a number or minus infinity, not inf"),
    ],
)
def test_options_out_of_range(option: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        CtcWordDecoder(LEXICON, LM, **{option: value})
    check_one_line(error)


def test_a_lexicon_without_words_cannot_be_decoded_with() -> None:
    with pytest.raises(ValueError, match="the lexicon has no words") as error:
        CtcWordDecoder(Lexicon({}), LM)
    check_one_line(error)
