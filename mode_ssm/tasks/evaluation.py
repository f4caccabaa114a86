"""Evaluation of a model on a split: decoding with and without adaptation, results, summary, example."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mode_ssm.adapt.test_time import Adaptation
from mode_ssm.config import TrainConfig
from mode_ssm.data.batch import TrialInfo
from mode_ssm.lm.scorer import BatchScorer
from mode_ssm.metrics import seen_unseen_split
from mode_ssm.models.phoneme_model import PhonemeModel
from mode_ssm.tasks.decoding import DecodedTrial, decode_trials
from mode_ssm.tasks.results import TrialResult, summarise
from mode_ssm.tasks.sharding import Ranks
from mode_ssm.tasks.transcription_data import TranscriptionData
from mode_ssm.tasks.word_decoder import build_word_decoding


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results in the order of the split, their summary, the decoded trials by name, adaptations by session."""

    results: list[TrialResult]
    summary: dict[str, Any]
    decoded: dict[str, DecodedTrial]
    adaptations: dict[str, Adaptation] = field(default_factory=dict)


def evaluate_split(
    model: PhonemeModel,
    data: TranscriptionData,
    split: str,
    config: TrainConfig,
    ranks: Ranks,
    *,
    tta: bool = False,
    neural: BatchScorer | None = None,
    progress: bool = True,
) -> Evaluation:
    """Decode a split and compare it with its labels, or with the truth file where the split withholds them.

    With `tta` every trial is decoded twice, so that the report shows words without and with adaptation. `neural` is
    `lm.neural`, loaded. Ranks share the decoding and all return the same; if one fails, all raise. Raises `ValueError`
    for an empty split or one without labels.
    """
    trials = data.trials(split)
    if not data.has_labels(split):
        raise ValueError(f"split={split} has no labels to compare with; make_submission.py decodes it without")
    words = ranks.together(lambda: build_word_decoding(config, data, neural, model, rank=ranks.rank))
    plain, _ = decode_trials(model, data, trials, config.decode, words, ranks, progress=progress)
    decoded: dict[str, DecodedTrial] = plain
    adaptations: dict[str, Adaptation] = {}
    if tta:
        decoded, adaptations = decode_trials(
            model, data, trials, config.decode, words, ranks, adapt=config.adapt, progress=progress
        )
    results = _results(data, trials, decoded, plain if tta else None)
    summary = summarise(results, seed=config.seed)
    if tta:
        summary["adaptation"] = {name: _adaptation_row(a) for name, a in adaptations.items()}
    return Evaluation(results, summary, decoded, adaptations)


def _results(
    data: TranscriptionData,
    trials: Sequence[TrialInfo],
    decoded: dict[str, DecodedTrial],
    plain: dict[str, DecodedTrial] | None,
) -> list[TrialResult]:
    references = [data.reference(info) for info in trials]
    seen = seen_unseen_split(data.training_sentences(), [reference.sentence for reference in references])
    results = []
    for info, reference, is_seen in zip(trials, references, seen, strict=True):
        trial = decoded[info.name]
        before = plain[info.name] if plain is not None else None
        results.append(
            TrialResult(
                info=info,
                reference_phonemes=reference.phonemes.tolist(),
                reference_sentence=reference.sentence,
                phonemes=trial.phonemes,
                ctc_phonemes=trial.ctc_phonemes,
                rnnt_phonemes=trial.rnnt_phonemes,
                words=trial.words,
                words_without_tta=before.words if before is not None else None,
                phonemes_without_tta=before.phonemes if before is not None else None,
                corpus=reference.corpus,
                mode=reference.mode,
                seen=bool(is_seen),
                mode_posterior=trial.mode_posterior,
            )
        )
    return results


def _adaptation_row(adaptation: Adaptation) -> dict[str, Any]:
    return {
        "steps": adaptation.steps,
        "entropy_before": adaptation.entropy_before,
        "entropy_after": adaptation.entropy_after,
        "refused": adaptation.refused,
    }
