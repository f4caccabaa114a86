"""From a trained model to words: language models, search, test-time adaptation."""

from dataclasses import dataclass, field
from enum import Enum


class WordSearch(Enum):
    """The head whose output words are searched in."""

    ctc = "ctc"
    rnnt = "rnnt"


class CorpusEvidence(Enum):
    """Which sentences tell the corpus of one; it is always among them."""

    sentence = "sentence"  # it alone
    block = "block"  # all of its block
    past = "past"  # those of its block up to it, as in live use


class CorpusPass(Enum):
    """What the language models of `lm.corpora` do after the first pass."""

    search = "search"  # that of the most probable corpus searches again
    rescore = "rescore"  # their mixture ranks what the first pass found


@dataclass(kw_only=True, slots=True)
class LmConfig:
    lexicon: str | None = None  # null: lexicon.txt beside the data; without one only phonemes are decoded
    guess_missing: bool = False  # guess pronunciations of words of the sentences that the lexicon lacks
    model: str | None = None  # of scripts/train_lm.py, ARPA or KenLM; null: estimated from the sentences and `texts`
    texts: list[str] = field(
        default_factory=list
    )  # further text files, one sentence a line, beside the training sentences
    order: int = 3
    neural: str | None = None  # a second language model: a checkpoint of task=language_model, or hf:<name or folder>
    neural_weight: float = 0.5  # its part of the language model score
    corpora: list[str] = field(
        default_factory=list
    )  # a text (.txt) or model for each corpus that sentences may be of: words are decoded in two passes
    corpus_evidence: CorpusEvidence = CorpusEvidence.block
    corpus_purity: float = 0.95  # part of a block's sentences that are of the block's corpus
    corpus_pass: CorpusPass = CorpusPass.search


@dataclass(kw_only=True, slots=True)
class DecodeConfig:
    search: WordSearch = WordSearch.ctc
    beam_size: int = 100
    nbest: int = 10
    acoustic_scale: float = 1.0
    lm_scale: float = 1.0
    word_bonus: float = 0.0  # natural-log units added for each word
    blank_penalty: float = 0.0  # taken off the blank's log-probability
    silence_score: float = 0.0  # added to the log-probability of every silence between words
    beam_threshold: float | None = None  # drop hypotheses this far below the best; null: keep beam_size of them
    fusion_every: int = 15  # frames between turns of lm.neural in the search; 0: at the end of a sentence only
    ctc_weight: float = 0.5  # of CTC in the joint decision on phonemes; the transducer has the rest
    rnnt_beam_size: int = 4
    rnnt_max_symbols: int = 4  # symbols that one frame may emit
    ilm_scale: float = 0.0  # of the transducer's internal language model, taken off its labels in the word search


@dataclass(kw_only=True, slots=True)
class AdaptConfig:
    """Test-time adaptation of one session at a time, without labels."""

    statistics: bool = True  # map the session's feature statistics onto those of training first
    steps: int = 5
    lr: float = 1e-4
    batch_size: int = 16
    ctc_weight: float = 1.0
    rnnt_weight: float = 0.3
