"""What every decoder of the comparison is given: lexicon, language model, and utterances to tune and to test on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from decoding_emissions import Utterance, speak

from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CORPORA = ("conversation", "read")
DIFFICULTIES = {"10 %": {"doubt": 0.14, "noise": 1.7}, "20 %": {"doubt": 0.24, "noise": 1.95}}  # by phoneme errors
ORDER = 3


@dataclass(frozen=True, slots=True)
class Models:
    """Files that every decoder can read, and the folder for those that a decoder makes of them."""

    lexicon: Path
    folder: Path

    @classmethod
    def of(cls, data: Path, folder: Path) -> "Models":
        return cls(data / "lexicon" / "cmudict.dict", folder)

    @property
    def mapped(self) -> Path:
        """Our n-gram model."""
        return self.folder / "lm.ngram"

    @property
    def arpa(self) -> Path:
        """The same one."""
        return self.folder / "lm.arpa"

    def write(self, data: Path) -> None:
        """Estimate the language model from the training sentences, unless it is there."""
        if self.mapped.exists() and self.arpa.exists():
            return
        lexicon = Lexicon.load(self.lexicon)
        lm = NGramLM.estimate(
            (s for corpus in CORPORA for s in _sentences(data, corpus, "train")), ORDER, lexicon.words
        )
        lm.write_arpa(self.arpa)
        lm.save(self.mapped)


def speak_valid(data: Path, counts: tuple[int, int]) -> tuple[dict[str, list[Utterance]], dict[str, list[Utterance]]]:
    """Utterances to tune on and to test on, by difficulty: `counts` of each corpus, and no sentence in both."""
    lexicon = Lexicon.load(data / "lexicon" / "cmudict.dict")
    rng = np.random.default_rng(0)
    chosen: list[list[tuple[str, ...]]] = [[], []]
    for corpus in CORPORA:
        spoken = dict.fromkeys(tuple(s.split()) for s in _sentences(data, corpus, "valid"))
        known = [words for words in spoken if len(words) > 2 and all(word in lexicon for word in words)]
        order = rng.permutation(len(known))[: sum(counts)].tolist()
        for place, index in enumerate(order):
            chosen[place >= counts[0]].append(known[index])
    tuning, testing = (
        {name: [speak(words, lexicon, rng, **options) for words in sentences] for name, options in DIFFICULTIES.items()}
        for sentences in chosen
    )
    return tuning, testing


def _sentences(data: Path, corpus: str, split: str) -> list[str]:
    return (data / "text" / f"{corpus}.{split}.txt").read_text(encoding="utf-8").splitlines()
