"""Models in KenLM's formats behind the `Scorer` seam, with the `kenlm` extra; and which reader a file is for."""

import math
from importlib import import_module
from pathlib import Path
from typing import Any

from mode_ssm.lm.arpa import KENLM_MAGIC
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.lm.ngram_file import MAGIC
from mode_ssm.lm.scorer import Scorer

_LN10 = math.log(10.0)


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


def open_scorer(path: str | Path) -> NGramLM | KenLMScorer:
    """Open an n-gram model of any form: mapped (`NGramLM.save`), KenLM binary, or ARPA, plain or gzip."""
    with Path(path).open("rb") as file:
        start = file.read(max(len(MAGIC), len(KENLM_MAGIC)))
    if start.startswith(MAGIC):
        return NGramLM.load(path)
    if start.startswith(KENLM_MAGIC):
        return KenLMScorer(path)
    return NGramLM.read_arpa(path)
