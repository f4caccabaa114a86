"""The word decoder that a configuration asks for, on simulated sentences."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mode_ssm.compose import load_train_config
from mode_ssm.config import TrainConfig
from mode_ssm.data.simulator import simulate
from mode_ssm.decode.transducer_words import TransducerWordDecoder
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.lm.scorer import BatchScorer
from mode_ssm.models.mode_ssm import MODE_SSM
from mode_ssm.tasks.transcription_data import TranscriptionData
from mode_ssm.tasks.word_decoder import build_word_decoder, build_word_decoding
from mode_ssm.vocab import BLANK, NUM_CLASSES


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoder") / "tiny"
    simulate(path, "tiny", 0, progress=False)
    return path


@pytest.fixture(scope="module")
def data(root: Path) -> TranscriptionData:
    return TranscriptionData.open(configured(root).data, 0, progress=False)


def configured(root: Path, *overrides: str) -> TrainConfig:
    return load_train_config([f"data.root={root}", *overrides])


def spell(word: str, lexicon: Lexicon) -> np.ndarray:
    """Log-probabilities (T, V) that say a word's first pronunciation and nothing else."""
    frames = []
    for phone in lexicon[word][0]:
        for label in (phone, BLANK):
            frame = np.full(NUM_CLASSES, -20.0)
            frame[label] = 0.0
            frames.append(frame)
    return np.array(frames)


def test_words_of_the_training_sentences_are_decoded(root: Path, data: TranscriptionData) -> None:
    decoder = build_word_decoder(configured(root), data)
    lexicon = Lexicon.read(root / "lexicon.txt")
    word = data.training_sentences()[0].split()[0]
    assert decoder is not None
    assert decoder.decode(spell(word, lexicon))[0].words[0] in lexicon


class Uniform(BatchScorer):
    """All words are equally probable."""

    def start(self) -> None:
        return None

    def advance(self, states: Sequence[None], words: Sequence[str]) -> tuple[np.ndarray, list[None]]:
        return np.full(len(words), -5.0), [None] * len(words)

    def end(self, states: Sequence[None]) -> np.ndarray:
        return np.zeros(len(states))

    def sentence_log_probs(self, sentences: Sequence[Sequence[str]]) -> np.ndarray:
        return np.array([-5.0 * len(words) for words in sentences])


def test_settings_of_the_configuration_reach_the_search(root: Path, data: TranscriptionData) -> None:
    overrides = (
        "decode.beam_size=7", "decode.nbest=3", "decode.silence_score=-1.5", "decode.beam_threshold=20",
        "decode.fusion_every=4", "lm.neural_weight=0.3",
    )  # fmt: skip
    decoder = build_word_decoder(configured(root, *overrides), data, Uniform())
    assert decoder is not None
    assert (decoder.options.beam_size, decoder.options.nbest) == (7, 3)
    assert (decoder.options.silence_score, decoder.options.beam_threshold) == (-1.5, 20)
    assert decoder.delayed is not None
    assert (decoder.delayed.weight, decoder.delayed.every) == (0.3, 4)
    best = decoder.decode(spell(data.training_sentences()[0].split()[0], Lexicon.read(root / "lexicon.txt")))[0]
    assert best.late_lm_score == -5.0 * len(best.words)


def test_every_corpus_has_a_search_of_its_own(
    root: Path, data: TranscriptionData, model: MODE_SSM, tmp_path: Path
) -> None:
    files = [tmp_path / "long.txt", tmp_path / "short.txt"]
    for file, sentences in zip(files, (data.training_sentences()[::2], data.training_sentences()[1::2]), strict=True):
        file.write_text("\n".join(sentences))
    listed = f"lm.corpora=[{files[0]},{files[1]}]"
    words = build_word_decoding(configured(root, listed), data, None, model)
    assert words is not None
    assert words.corpora is not None
    assert set(words.corpora.second) == {"long", "short"}
    assert words.corpora.corpora.names == ("first-pass", "long", "short")
    assert words.by_block
    alone = ["lm.corpus_evidence=sentence", "lm.corpus_pass=rescore"]
    words = build_word_decoding(configured(root, listed, *alone), data, None, model)
    assert words is not None
    assert words.corpora is not None
    assert (words.corpora.second, words.by_block) == ({}, False)


def test_the_transducer_is_searched_where_there_is_one(root: Path, data: TranscriptionData, model: MODE_SSM) -> None:
    config = configured(root, "decode.search=rnnt", "decode.ilm_scale=0.4", "decode.rnnt_max_symbols=2")
    words = build_word_decoding(config, data, None, model)
    assert words is not None
    assert words.needs_projected
    assert isinstance(words.first, TransducerWordDecoder)
    assert (words.first.options.ilm_scale, words.first.options.max_symbols) == (0.4, 2)
    with pytest.raises(ValueError, match=r"decode\.search=rnnt needs a model with a transducer head"):
        build_word_decoding(config, data, None, torch.nn.Linear(1, 1))


def test_a_model_of_another_run_replaces_the_estimate(root: Path, data: TranscriptionData, tmp_path: Path) -> None:
    lexicon = Lexicon.read(root / "lexicon.txt")
    estimated = NGramLM.estimate(data.training_sentences(), 3, lexicon.words)
    decoders = [build_word_decoder(configured(root), data)]
    for name, write in (("lm.ngram", estimated.save), ("lm.arpa.gz", estimated.write_arpa)):
        write(tmp_path / name)
        decoders.append(build_word_decoder(configured(root, f"lm.model={tmp_path / name}"), data))
    frames = spell(data.training_sentences()[0].split()[0], lexicon)
    best = [decoder.decode(frames)[0] for decoder in decoders if decoder is not None]
    assert len(best) == 3
    assert {hypothesis.words for hypothesis in best} == {best[0].words}
    assert [hypothesis.lm_score for hypothesis in best] == pytest.approx([best[0].lm_score] * 3, abs=1e-4)


def test_a_model_that_is_not_there_ends_in_one_line(root: Path, data: TranscriptionData) -> None:
    with pytest.raises(ValueError, match=r"lm\.model=nowhere\.arpa: no such file"):
        build_word_decoder(configured(root, "lm.model=nowhere.arpa"), data)


def test_missing_words_are_guessed_on_every_rank_and_written_down_by_the_first(
    root: Path, data: TranscriptionData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lexicon = Lexicon.read(root / "lexicon.txt")
    missing = max(data.training_sentences()[0].split(), key=len)
    shorter = tmp_path / "shorter.txt"
    lexicon.subset([word for word in lexicon.words if word != missing]).write(shorter)
    config = configured(root, f"lm.lexicon={shorter}", f"run_dir={tmp_path / 'run'}", "lm.guess_missing=true")
    written = tmp_path / "run" / "guessed_pronunciations.txt"
    for rank in (1, 0):
        assert not written.exists()
        with caplog.at_level(logging.WARNING):
            decoder = build_word_decoder(config, data, rank=rank)
        assert decoder is not None
        assert missing in decoder.words
    assert written.read_text().startswith(missing)
    assert "1 of 1 missing words have guessed pronunciations" in caplog.text


def test_without_a_lexicon_there_is_no_decoder(data: TranscriptionData, tmp_path: Path) -> None:
    assert build_word_decoder(configured(tmp_path), data) is None
