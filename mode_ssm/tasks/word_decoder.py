"""The word decoder that a configuration asks for: lexicon, language model, search."""

import logging
from pathlib import Path

from mode_ssm.config import LmConfig, TrainConfig
from mode_ssm.decode.ctc_beam import CtcWordDecoder
from mode_ssm.lm.g2p import GraphemeToPhoneme
from mode_ssm.lm.g2p_guesses import guess_missing, with_guesses
from mode_ssm.lm.kenlm_scorer import open_scorer
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.lm.scorer import Scorer
from mode_ssm.tasks.transcription_data import TranscriptionData
from mode_ssm.vocab import normalise_sentence

logger = logging.getLogger(__name__)


def build_word_decoder(config: TrainConfig, data: TranscriptionData) -> CtcWordDecoder | None:
    """Lexicon and n-gram model in one decoder; None, with a warning, where there is no lexicon.

    The model is `lm.model`, or estimated from the training sentences and `lm.texts`. Raises `ValueError` for files that
    are missing or damaged, and for a model that lacks words of the lexicon.
    """
    beside = Path(config.data.root) / "lexicon.txt"
    if config.lm.lexicon is None and not beside.exists():
        logger.warning("no lexicon.txt beside the data and no lm.lexicon=...: phonemes are decoded, words are not")
        return None
    lexicon = Lexicon.load(config.lm.lexicon or beside)
    sentences = _sentences(config.lm, data)
    if config.lm.guess_missing:
        lexicon = _with_guesses(lexicon, sentences, Path(config.run_dir))
    decode = config.decode
    return CtcWordDecoder(
        lexicon,
        _scorer(config.lm, sentences, lexicon),
        beam_size=decode.beam_size,
        nbest=decode.nbest,
        acoustic_scale=decode.acoustic_scale,
        lm_scale=decode.lm_scale,
        word_bonus=decode.word_bonus,
        blank_penalty=decode.blank_penalty,
    )


def _sentences(config: LmConfig, data: TranscriptionData) -> list[str]:
    sentences = data.training_sentences()
    for path in config.texts:
        with open(path, encoding="utf-8") as file:
            sentences += [normalise_sentence(line) for line in file if line.strip()]
    return sentences


def _scorer(config: LmConfig, sentences: list[str], lexicon: Lexicon) -> Scorer:
    if config.model is None:
        return NGramLM.estimate(sentences, config.order, lexicon.words)
    if not Path(config.model).is_file():
        raise ValueError(f"lm.model={config.model}: no such file; scripts/train_lm.py writes one")
    return open_scorer(config.model)


def _with_guesses(lexicon: Lexicon, sentences: list[str], folder: Path) -> Lexicon:
    """`lexicon` and guesses for the words of `sentences` that it lacks, which are also written to `folder`."""
    missing = [word for word in dict.fromkeys(" ".join(sentences).split()) if word not in lexicon]
    if not missing:
        return lexicon
    report = guess_missing(lexicon, missing, GraphemeToPhoneme.load(lexicon))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "guessed_pronunciations.txt"
    report.write(path)
    guessed = len({guess.word for guess in report.guesses})
    logger.warning("%d of %d missing words have guessed pronunciations: %s", guessed, len(missing), path)
    return with_guesses(lexicon, report)
