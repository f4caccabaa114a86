"""Fill a lexicon's gaps with guessed pronunciations, and say what was guessed."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mode_ssm.lm.g2p import GraphemeToPhoneme, Guess
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.lexicon_file import RESERVED
from mode_ssm.vocab import ids_to_phonemes


@dataclass(frozen=True, slots=True)
class GuessReport:
    """guesses: alternates of a word stand together, the best first; failed: word -> why there is none."""

    guesses: list[Guess]
    failed: dict[str, str]

    def lines(self) -> list[str]:
        """Lines of a dictionary that `Lexicon.read` takes; the share behind each, and failures, as comments."""
        guessed = [f"{g.word} {' '.join(ids_to_phonemes(g.phones))} # {g.share:.3f}" for g in self.guesses]
        return guessed + [f"# no guess: {reason}" for reason in self.failed.values()]

    def write(self, path: str | Path) -> None:
        """`.json`: {"guesses": [{word, phonemes, share, log_prob}], "failed": {word: reason}}; else `lines`."""
        path = Path(path)
        if path.suffix == ".json":
            guesses = [
                {"word": g.word, "phonemes": ids_to_phonemes(g.phones), "share": g.share, "log_prob": g.log_prob}
                for g in self.guesses
            ]
            text = json.dumps({"guesses": guesses, "failed": self.failed}, indent=2)
        else:
            text = "\n".join(self.lines())
        path.write_text(f"{text}\n", encoding="utf-8")


def guess_missing(
    lexicon: Lexicon,
    words: Iterable[str],
    model: GraphemeToPhoneme,
    *,
    alternates: int = 1,
    min_share: float = 0.1,
) -> GuessReport:
    """Guess those of `words` that `lexicon` does not have, in their order; words as `normalise_sentence` leaves them.

    A word gets its best guess and up to `alternates` - 1 more, those with a share of at least `min_share`. A word that
    cannot be spelled with the lexicon's letters is reported as failed. Raises `ValueError` for `alternates` below 1.
    """
    if alternates < 1:
        raise ValueError(f"alternates must be at least 1, not {alternates}")
    report = GuessReport([], {})
    for word in dict.fromkeys(words):
        if word in lexicon or word in RESERVED:
            continue
        try:
            guesses = model.guess(word, alternates)
        except ValueError as error:
            report.failed[word] = str(error)
            continue
        if not guesses:
            report.failed[word] = f"{word!r} is silent as far as the model knows"
        report.guesses.extend(guess for rank, guess in enumerate(guesses) if rank == 0 or guess.share >= min_share)
    return report


def with_guesses(lexicon: Lexicon, report: GuessReport) -> Lexicon:
    """`lexicon` and after it the guessed words."""
    entries: dict[str, list[tuple[int, ...]]] = {}
    for guess in report.guesses:
        entries.setdefault(guess.word, []).append(guess.phones)
    return lexicon.extended(entries)
