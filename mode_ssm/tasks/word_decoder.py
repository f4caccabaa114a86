"""The word decoder that a configuration asks for: lexicon, language model, search."""

import logging
import math
from pathlib import Path
from typing import Any

from torch import nn

from mode_ssm.config import CorpusEvidence, CorpusPass, DecodeConfig, LmConfig, TrainConfig, WordSearch
from mode_ssm.decode.corpus_decoding import CorpusDecoder
from mode_ssm.decode.ctc_beam import CtcWordDecoder
from mode_ssm.decode.delayed_fusion import DelayedFusion
from mode_ssm.decode.transducer_tables import joiner_tables
from mode_ssm.decode.transducer_words import TransducerWordDecoder
from mode_ssm.decode.word_search import WordDecoder
from mode_ssm.lm.corpora import CorpusModels, load_models
from mode_ssm.lm.g2p import GraphemeToPhoneme
from mode_ssm.lm.g2p_guesses import guess_missing, with_guesses
from mode_ssm.lm.kenlm_scorer import open_scorer
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.lm.scorer import BatchScorer, Scorer
from mode_ssm.lm.text_file import read_sentences
from mode_ssm.models.mode_ssm import MODE_SSM
from mode_ssm.tasks.transcription_data import TranscriptionData
from mode_ssm.tasks.word_decoding import WordDecoding

logger = logging.getLogger(__name__)

FIRST_PASS = "first-pass"


def build_word_decoder(
    config: TrainConfig,
    data: TranscriptionData,
    neural: BatchScorer | None = None,
    model: nn.Module | None = None,
    *,
    rank: int = 0,
) -> WordDecoder | None:
    """Lexicon and language models in one decoder; None, with a warning, where there is no lexicon.

    The first language model is `lm.model`, or estimated from the training sentences and `lm.texts`; `neural` is
    `lm.neural`, loaded; `model` the network whose transducer `decode.search=rnnt` searches. Every rank builds the same
    decoder; rank 0 writes down the pronunciations that `lm.guess_missing` has guessed. Raises `ValueError` for files
    that are missing or damaged, for a language model that lacks words of the lexicon, and for a network without a
    transducer where one is needed.
    """
    beside = Path(config.data.root) / "lexicon.txt"
    if config.lm.lexicon is None and not beside.exists():
        logger.warning("no lexicon.txt beside the data and no lm.lexicon=...: phonemes are decoded, words are not")
        return None
    lexicon = Lexicon.load(config.lm.lexicon or beside)
    sentences = _sentences(config.lm, data)
    if config.lm.guess_missing:
        lexicon = _with_guesses(lexicon, sentences, Path(config.run_dir) if rank == 0 else None)
    delayed = None
    if neural is not None:
        delayed = DelayedFusion(neural, config.lm.neural_weight, config.decode.fusion_every)
    scorer = _scorer(config.lm, sentences, lexicon)
    options = search_options(config.decode)
    if config.decode.search is WordSearch.ctc:
        return CtcWordDecoder(lexicon, scorer, delayed=delayed, **options)
    if not isinstance(model, MODE_SSM):
        raise ValueError("decode.search=rnnt needs a model with a transducer head, such as model=mode_ssm")
    return TransducerWordDecoder(
        lexicon,
        scorer,
        joiner_tables(model.predictor, model.joiner),
        delayed=delayed,
        max_symbols=config.decode.rnnt_max_symbols,
        ilm_scale=config.decode.ilm_scale,
        **options,
    )


def build_word_decoding(
    config: TrainConfig, data: TranscriptionData, neural: BatchScorer | None, model: nn.Module, *, rank: int = 0
) -> WordDecoding | None:
    """`build_word_decoder`, and the second pass where `lm.corpora` asks for one."""
    first = build_word_decoder(config, data, neural, model, rank=rank)
    if first is None:
        return None
    by_block = config.lm.corpus_evidence is not CorpusEvidence.sentence
    return WordDecoding(first=first, corpora=build_corpus_decoder(config.lm, first), by_block=by_block)


def build_corpus_decoder(config: LmConfig, first: WordDecoder) -> CorpusDecoder | None:
    """The second pass by the corpora of `lm.corpora`; None where there are none.

    A sentence that is of none of them is best explained by the first pass' own language model, which stands beside
    them. Raises `ValueError` for files that are missing, damaged or do not fit the lexicon.
    """
    if not config.corpora:
        return None
    models = load_models(config.corpora, first.words, config.order)
    if FIRST_PASS in models:
        raise ValueError(f"lm.corpora: {FIRST_PASS!r} is the name of the first pass' own model; rename that file")
    again = config.corpus_pass is CorpusPass.search
    return CorpusDecoder(
        first,
        CorpusModels({FIRST_PASS: first.fusion.scorer, **models}),
        {name: first.with_options(scorer=model) for name, model in models.items()} if again else None,
        purity=config.corpus_purity,
        causal=config.corpus_evidence is CorpusEvidence.past,
    )


def search_options(decode: DecodeConfig) -> dict[str, Any]:
    """The options of a word search that a configuration sets."""
    return {
        "beam_size": decode.beam_size,
        "nbest": decode.nbest,
        "acoustic_scale": decode.acoustic_scale,
        "lm_scale": decode.lm_scale,
        "word_bonus": decode.word_bonus,
        "blank_penalty": decode.blank_penalty,
        "silence_score": decode.silence_score,
        "beam_threshold": math.inf if decode.beam_threshold is None else decode.beam_threshold,
    }


def _sentences(config: LmConfig, data: TranscriptionData) -> list[str]:
    sentences = data.training_sentences()
    for path in config.texts:
        sentences += read_sentences(path)
    return sentences


def _scorer(config: LmConfig, sentences: list[str], lexicon: Lexicon) -> Scorer:
    if config.model is None:
        return NGramLM.estimate(sentences, config.order, lexicon.words)
    if not Path(config.model).is_file():
        raise ValueError(f"lm.model={config.model}: no such file; scripts/train_lm.py writes one")
    return open_scorer(config.model, lexicon.words)


def _with_guesses(lexicon: Lexicon, sentences: list[str], folder: Path | None) -> Lexicon:
    """`lexicon` and guesses for the words of `sentences` that it lacks, which are also written to `folder` if given."""
    missing = [word for word in dict.fromkeys(" ".join(sentences).split()) if word not in lexicon]
    if not missing:
        return lexicon
    report = guess_missing(lexicon, missing, GraphemeToPhoneme.load(lexicon))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "guessed_pronunciations.txt"
        report.write(path)
        guessed = len({guess.word for guess in report.guesses})
        logger.warning("%d of %d missing words have guessed pronunciations: %s", guessed, len(missing), path)
    return with_guesses(lexicon, report)
