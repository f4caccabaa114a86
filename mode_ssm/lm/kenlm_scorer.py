"""Models in KenLM's formats behind the `Scorer` seam, with the `kenlm` extra; and which reader a file is for."""

import math
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mode_ssm.lm.arpa import KENLM_MAGIC
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.lm.ngram_file import MAGIC
from mode_ssm.lm.scorer import Scorer

_LN10 = math.log(10.0)
_MAX_UNKNOWN, _MIN_SHARE = 0.2, 0.5


class KenLMScorer(Scorer):
    """A KenLM binary or ARPA file, queried by KenLM. States are its own; natural logarithms."""

    def __init__(self, path: str | Path) -> None:
        """Raises `ValueError` without the `kenlm` package or for a file that KenLM cannot open."""
        try:
            self._kenlm: Any = import_module("kenlm")
        except ImportError:
            raise ValueError(f"{path}: reading KenLM binaries needs the kenlm extra: uv sync --extra kenlm") from None
        self._path = Path(path)
        try:
            self._model = self._kenlm.LanguageModel(str(path))
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{path}: KenLM cannot open it: {' '.join(str(error).split())}") from None
        self._null = self._kenlm.State()
        self._model.NullContextWrite(self._null)

    @property
    def order(self) -> int:
        return int(self._model.order)

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and word in self._model

    def __reduce__(self) -> tuple[Any, ...]:
        return KenLMScorer, (self._path,)

    def start(self) -> Any:
        state = self._kenlm.State()
        self._model.BeginSentenceWrite(state)
        return state

    def score(self, state: Any, word: str) -> tuple[float, Any]:
        """A word outside the vocabulary scores as `<unk>`."""
        following = self._kenlm.State()
        return _LN10 * self._model.BaseScore(state, word, following), following

    def end(self, state: Any) -> float:
        return self.score(state, "</s>")[0]

    def unigram(self, word: str) -> float:
        return self.score(self._null, word)[0]


def open_scorer(path: str | Path, words: Sequence[str] = ()) -> NGramLM | KenLMScorer:
    """Open an n-gram model of any form: mapped (`NGramLM.save`), KenLM binary, or ARPA, plain or gzip.

    `words`: those that it will have to score. Raises `ValueError` if it is a model of other words: over a fifth of them
    would score as `<unk>`, and the rest have less than half of its probability. A model of fewer words passes, and so
    does one of more.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path}: a folder, not a language model; scripts/train_lm.py writes one")
    with Path(path).open("rb") as file:
        start = file.read(max(len(MAGIC), len(KENLM_MAGIC)))
    scorer: NGramLM | KenLMScorer
    if start.startswith(MAGIC):
        scorer = NGramLM.load(path)
    elif start.startswith(KENLM_MAGIC):
        scorer = KenLMScorer(path)
    else:
        scorer = NGramLM.read_arpa(path)
    unknown = [word for word in words if word not in scorer]
    if len(unknown) > _MAX_UNKNOWN * len(words):
        share = _share(scorer, words)
        if share < _MIN_SHARE:
            cased = _share(scorer, {form for word in unknown for form in (word.upper(), word.capitalize())})
            reason = "wrong case: lower it" if cased > share else "wrong case or wrong lexicon?"
            raise ValueError(
                f"{path}: {len(unknown)} of {len(words)} lexicon words are not in this language model, and the others "
                f"have {share:.0%} of its probability ({reason}): {', '.join(unknown[:5])}"
            )
    return scorer


def _share(scorer: NGramLM | KenLMScorer, words: Iterable[str]) -> float:
    """How much of the model's probability those of `words` have that it knows."""
    return sum(math.exp(scorer.unigram(word)) for word in words if word in scorer)
