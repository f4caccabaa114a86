"""From a model and recordings to decoded trials: both heads alone, their joint decision, words, with or without
test-time adaptation.

Shapes: B trials, T frames, D d_model, U phonemes, V classes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mode_ssm.adapt.test_time import Adaptation, adapted
from mode_ssm.config import AdaptConfig, DecodeConfig
from mode_ssm.data.batch import Batch, TrialInfo
from mode_ssm.decode.batch import decode_batch
from mode_ssm.decode.ctc_beam import CtcWordDecoder
from mode_ssm.decode.greedy import greedy_ctc
from mode_ssm.decode.transducer_beam import beam_transducer
from mode_ssm.models.mode_ssm import MODE_SSM
from mode_ssm.ops.transducer_loss import transducer_loss
from mode_ssm.tasks.transcription_data import TranscriptionData, without_labels
from mode_ssm.vocab import BLANK


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedTrial:
    """What the model makes of one trial. log_probs (T, V) of the CTC head; mode_posterior p(z | X)."""

    info: TrialInfo
    log_probs: np.ndarray
    mode_posterior: tuple[float, ...]
    ctc_phonemes: list[int]  # greedy
    rnnt_phonemes: list[int]  # beam search
    phonemes: list[int]  # the candidate that both heads together like best
    words: str | None = None


class HeadTransducer:
    """The transducer head as search sees it (`decode.transducer_beam.TransducerModel`)."""

    def __init__(self, model: MODE_SSM) -> None:
        self.model = model
        self.context = model.predictor.context

    def log_probs(self, frames: Tensor, contexts: Tensor) -> Tensor:
        """frames (K, D), contexts (K, context) -> (K, V)."""
        return self.model.joiner(frames, self.model.predictor(contexts)).float().log_softmax(-1)


def decode_trials(
    model: MODE_SSM,
    data: TranscriptionData,
    trials: Sequence[TrialInfo],
    decode: DecodeConfig,
    device: torch.device,
    word_decoder: CtcWordDecoder | None,
    *,
    adapt: AdaptConfig | None = None,
    processes: int = 1,
    progress: bool = True,
) -> tuple[dict[str, DecodedTrial], dict[str, Adaptation]]:
    """Decoded trials by name, and what adaptation did by session (empty without `adapt`)."""
    decoded: dict[str, DecodedTrial] = {}
    adaptations: dict[str, Adaptation] = {}
    model.eval()
    with _progress("phonemes", len(trials), progress) as advance:
        for batches, adaptation in _adapted_sessions(model, data, trials, adapt, device):
            if adaptation is not None:
                adaptations[batches[0].trials[0].session] = adaptation
            for batch in batches:
                for trial in _decode_batch(model, batch, decode):
                    decoded[trial.info.name] = trial
                advance(len(batch))
    ordered = [decoded[info.name] for info in trials]
    if word_decoder is not None:
        log_probs = [trial.log_probs for trial in ordered]
        with _progress("words", len(ordered), progress) as advance:
            nbest = decode_batch(word_decoder, log_probs, processes, progress=lambda done, total: advance(1))
        ordered = [replace(trial, words=hyps[0].text) for trial, hyps in zip(ordered, nbest, strict=True)]
    return {trial.info.name: trial for trial in ordered}, adaptations


def _adapted_sessions(
    model: MODE_SSM,
    data: TranscriptionData,
    trials: Sequence[TrialInfo],
    adapt: AdaptConfig | None,
    device: torch.device,
) -> Iterator[tuple[list[Batch], Adaptation | None]]:
    """Batches to decode, with the model in the state to decode them in while the consumer holds them."""
    if adapt is None:
        for batch in data.batches(trials):
            yield [batch.to(device)], None
        return
    for session in sorted({t.session for t in trials}):
        of_session = [t for t in trials if t.session == session]
        batches = [without_labels(batch).to(device) for batch in data.batches(of_session, adapt.batch_size)]
        statistics = data.index.statistics[of_session[0].split][session]
        with adapted(model, batches, statistics, adapt) as adaptation:
            yield batches, adaptation


@torch.no_grad()
def _decode_batch(model: MODE_SSM, batch: Batch, config: DecodeConfig) -> Iterator[DecodedTrial]:
    output = model(batch.features, batch.feature_lengths, batch.session_ids)
    log_probs = output.phoneme_logits.float().log_softmax(-1)
    transducer = HeadTransducer(model)
    for row, info in enumerate(batch.trials):
        frames = int(output.lengths[row])
        trial_log_probs, encoder_out = log_probs[row, :frames], output.encoder_out[row, :frames]
        ctc_phonemes = greedy_ctc(trial_log_probs)
        beam = beam_transducer(
            transducer,
            encoder_out,
            beam_size=config.rnnt_beam_size,
            max_symbols=config.rnnt_max_symbols,
            nbest=config.rnnt_beam_size,
        )
        rnnt_phonemes = list(beam[0].labels)
        candidates = [list(c) for c in dict.fromkeys(tuple(c) for c in (*[h.labels for h in beam], ctc_phonemes))]
        scores = joint_scores(model, trial_log_probs, encoder_out, candidates, config.ctc_weight)
        yield DecodedTrial(
            info=info,
            log_probs=trial_log_probs.cpu().numpy(),
            mode_posterior=tuple(output.mode_log_probs[row].exp().tolist()),
            ctc_phonemes=ctc_phonemes,
            rnnt_phonemes=rnnt_phonemes,
            phonemes=candidates[int(scores.argmax())],
        )


def joint_scores(
    model: MODE_SSM, log_probs: Tensor, encoder_out: Tensor, candidates: Sequence[Sequence[int]], ctc_weight: float
) -> Tensor:
    """ctc_weight * log P_ctc + (1 - ctc_weight) * log P_rnnt of each candidate, over all alignments.

    log_probs (T, V) and encoder_out (T, D) of one trial -> (len(candidates),).
    """
    count, frames, device = len(candidates), len(log_probs), log_probs.device
    target_lengths = torch.tensor([len(c) for c in candidates], device=device)
    targets = torch.zeros(count, int(target_lengths.max()), dtype=torch.int64, device=device)
    for row, candidate in enumerate(candidates):
        targets[row, : len(candidate)] = torch.tensor(candidate, dtype=torch.int64)
    lengths = torch.full((count,), frames, device=device)
    repeated = log_probs.unsqueeze(1).expand(frames, count, -1)
    ctc = F.ctc_loss(repeated, targets, lengths, target_lengths, blank=BLANK, reduction="none")
    lattice = model.joint_logits(encoder_out.unsqueeze(0).expand(count, -1, -1), targets).float()
    rnnt = transducer_loss(lattice, targets, lengths, target_lengths, blank=BLANK)
    return -(ctc_weight * ctc + (1 - ctc_weight) * rnnt)


@contextmanager
def _progress(name: str, total: int, enabled: bool) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not enabled) as bar:
        task = bar.add_task(name, total=total)
        yield lambda count: bar.advance(task, count)
