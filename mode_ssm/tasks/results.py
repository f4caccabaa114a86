"""What decoding one trial gave, and the summary of many: the content of `report.json`."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from mode_ssm.data.batch import TrialInfo
from mode_ssm.metrics import (
    ErrorRate,
    aggregate,
    bootstrap_interval,
    character_errors,
    paired_bootstrap_difference,
    phoneme_errors,
    word_errors,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """One decoded trial beside its reference. Phonemes are class ids 1..40; None stands for "not decoded".

    `words` are the final words, after test-time adaptation where that is on; `words_without_tta` and
    `phonemes_without_tta` come from the same checkpoint left alone. `mode_posterior` is p(z | X), (n_modes,).
    """

    info: TrialInfo
    reference_phonemes: Sequence[int]
    reference_sentence: str
    phonemes: Sequence[int]  # the main phoneme output
    ctc_phonemes: Sequence[int] | None = None  # greedy CTC
    rnnt_phonemes: Sequence[int] | None = None  # transducer alone
    words: str | None = None
    words_without_tta: str | None = None
    phonemes_without_tta: Sequence[int] | None = None
    corpus: str | None = None
    mode: str | None = None
    seen: bool | None = None  # whether the sentence also stands in training
    mode_posterior: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialErrors:
    """Edits of one trial, each None where that output does not exist."""

    per: ErrorRate
    per_greedy_ctc: ErrorRate | None = None
    per_rnnt: ErrorRate | None = None
    wer: ErrorRate | None = None
    cer: ErrorRate | None = None
    per_without_tta: ErrorRate | None = None
    wer_without_tta: ErrorRate | None = None


METRICS = ("per", "per_greedy_ctc", "per_rnnt", "wer", "cer", "per_without_tta", "wer_without_tta")
WITH_INTERVAL = ("per", "wer", "cer", "wer_without_tta")
OF_GROUPS = ("per", "wer", "cer", "per_without_tta", "wer_without_tta")


def trial_errors(result: TrialResult) -> TrialErrors:
    """Edits of every output of a trial against its reference."""
    phonemes, sentence = result.reference_phonemes, result.reference_sentence

    def of_phonemes(hypothesis: Sequence[int] | None) -> ErrorRate | None:
        return None if hypothesis is None else phoneme_errors(phonemes, hypothesis)

    return TrialErrors(
        per=phoneme_errors(phonemes, result.phonemes),
        per_greedy_ctc=of_phonemes(result.ctc_phonemes),
        per_rnnt=of_phonemes(result.rnnt_phonemes),
        wer=None if result.words is None else word_errors(sentence, result.words),
        cer=None if result.words is None else character_errors(sentence, result.words),
        per_without_tta=of_phonemes(result.phonemes_without_tta),
        wer_without_tta=None if result.words_without_tta is None else word_errors(sentence, result.words_without_tta),
    )


def summarise(results: Sequence[TrialResult], *, samples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """The JSON-able summary of a decoded split.

    Rates are aggregate (edits over reference symbols) and as fractions; `*_ci` are 95 % bootstrap intervals over
    trials, [low, high]; None stands where an output was not decoded for every trial of the group. `by_session`,
    `by_corpus`, `by_mode` and `by_seen` repeat rates and intervals for groups of trials; trials whose corpus or mode
    is not known are left out of that grouping. With adaptation on, `tta_wer_change` is the WER after minus before.

    Raises `ValueError` for no results, or results of more than one split.
    """
    splits = sorted({result.info.split for result in results})
    if len(splits) != 1:
        raise ValueError(f"a summary needs results of exactly one split, got {splits or 'no results'}")
    errors = [trial_errors(result) for result in results]

    def rates_of(members: Sequence[TrialErrors], metrics: Sequence[str]) -> dict[str, Any]:
        return _rates(members, metrics, samples, seed)

    def grouped(label: Callable[[TrialResult], str | None]) -> dict[str, Any]:
        groups: dict[str, list[TrialErrors]] = defaultdict(list)
        for result, error in zip(results, errors, strict=True):
            name = label(result)
            if name is not None:
                groups[name].append(error)
        return {name: {"num_trials": len(g), **rates_of(g, OF_GROUPS)} for name, g in sorted(groups.items())}

    summary = {
        "split": splits[0],
        "num_trials": len(results),
        **rates_of(errors, METRICS),
        "tta_wer_change": _tta_change(errors, samples, seed),
        "mode_agreement": mode_agreement(results),
        "empty_hypotheses": sum(result.words is not None and not result.words.strip() for result in results),
        "by_session": grouped(lambda result: result.info.session),
        "by_corpus": grouped(lambda result: result.corpus),
        "by_mode": grouped(lambda result: result.mode),
        "by_seen": grouped(lambda result: None if result.seen is None else ("seen" if result.seen else "unseen")),
    }
    return summary


def mode_agreement(results: Sequence[TrialResult]) -> dict[str, float] | None:
    """How well the latent mode, argmax p(z | X), tells the true modes apart, under the best naming of its values.

    `accuracy` beside `chance`, the share of the commonest mode; None where no trial's mode is known.
    """
    known = [(r.mode, int(np.argmax(r.mode_posterior))) for r in results if r.mode and r.mode_posterior is not None]
    if not known:
        return None
    names = sorted({name for name, _ in known})
    table = np.zeros((len(names), 1 + max(z for _, z in known)))
    for name, z in known:
        table[names.index(name), z] += 1
    rows, columns = linear_sum_assignment(table, maximize=True)
    return {
        "accuracy": float(table[rows, columns].sum() / len(known)),
        "chance": float(table.sum(1).max() / len(known)),
        "num_trials": len(known),
    }


def _rates(errors: Sequence[TrialErrors], metrics: Sequence[str], samples: int, seed: int) -> dict[str, Any]:
    rates: dict[str, Any] = {}
    for metric in metrics:
        known = _complete(errors, metric)
        total = aggregate(known) if known else ErrorRate(0, 0)
        rates[metric] = total.rate if total.reference_length else None
        if metric in WITH_INTERVAL:
            rates[f"{metric}_ci"] = None
            if known and total.reference_length:
                edits, lengths = np.array(known).T
                rates[f"{metric}_ci"] = list(bootstrap_interval(edits, lengths, samples=samples, seed=seed))
    counts = {"phonemes": aggregate(e.per for e in errors), "words": aggregate(_complete(errors, "wer"))}
    rates["counts"] = {
        name: {"edits": total.edits, "reference": total.reference_length} for name, total in counts.items()
    }
    return rates


def _complete(errors: Sequence[TrialErrors], metric: str) -> list[ErrorRate]:
    """The metric of all trials, or nothing where one lacks it: a rate over part of a group is another group's rate."""
    known = [value for error in errors if (value := getattr(error, metric)) is not None]
    return known if len(known) == len(errors) else []


def _tta_change(errors: Sequence[TrialErrors], samples: int, seed: int) -> dict[str, float] | None:
    after, before = _complete(errors, "wer"), _complete(errors, "wer_without_tta")
    if not after or not before or not aggregate(after).reference_length:
        return None
    change = paired_bootstrap_difference(
        [e.edits for e in before], [e.edits for e in after], [e.reference_length for e in after], samples, seed
    )
    return {"value": change.value, "low": change.low, "high": change.high}
