"""From a model and recordings to decoded trials: both heads alone, their joint decision, words, with or without
test-time adaptation.

Shapes: B trials, T frames, D d_model, J d_joint, V classes, K hypotheses.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mode_ssm.adapt.test_time import Adaptation, adapted
from mode_ssm.config import AdaptConfig, DecodeConfig
from mode_ssm.data.batch import Batch, TrialInfo
from mode_ssm.decode.greedy import greedy_ctc
from mode_ssm.decode.hypothesis import Hypothesis
from mode_ssm.decode.transducer_beam import beam_transducer_batch
from mode_ssm.models.mode_ssm import MODE_SSM
from mode_ssm.models.phoneme_model import PhonemeModel, PhonemeOutput
from mode_ssm.ops.joint_transducer_loss import joint_transducer_loss
from mode_ssm.tasks.progress import progress_bar
from mode_ssm.tasks.sharding import Ranks, batch_units, deal, session_units
from mode_ssm.tasks.transcription_data import TranscriptionData, without_labels
from mode_ssm.tasks.word_decoding import WordDecoding, decode_words_of
from mode_ssm.vocab import BLANK


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedTrial:
    """What the model makes of one trial. log_probs (T, V) of the CTC head; mode_posterior p(z | X).

    Models with a CTC head alone have no mode and no transducer: their phonemes are those of CTC.
    """

    info: TrialInfo
    log_probs: np.ndarray
    mode_posterior: tuple[float, ...] | None
    ctc_phonemes: list[int]  # greedy
    rnnt_phonemes: list[int] | None  # beam search
    phonemes: list[int]  # the candidate that both heads together like best
    projected: np.ndarray | None = None  # (T, J), kept for a word search of the transducer
    nbest: list[Hypothesis] | None = None  # word sequences, best first; None where words were not decoded

    @property
    def words(self) -> str | None:
        """The best word sequence."""
        return self.nbest[0].text if self.nbest is not None else None


class HeadTransducer:
    """The transducer head as search sees it (`decode.transducer_beam.TransducerModel`)."""

    def __init__(self, model: MODE_SSM) -> None:
        self.model = model
        self.context = model.predictor.context

    def project(self, encoder_out: Tensor) -> Tensor:
        """encoder_out (..., D) -> the frames (..., J) that search takes: projected once, not for every hypothesis."""
        return self.model.joiner.encoder_proj(encoder_out)

    def log_probs(self, frames: Tensor, contexts: Tensor) -> Tensor:
        """frames (K, J), contexts (K, context) -> (K, V)."""
        hidden = torch.tanh(frames + self.model.predictor(contexts))
        return self.model.joiner.output(hidden).float().log_softmax(-1)


def decode_trials(
    model: PhonemeModel,
    data: TranscriptionData,
    trials: Sequence[TrialInfo],
    decode: DecodeConfig,
    words: WordDecoding | None,
    ranks: Ranks,
    *,
    adapt: AdaptConfig | None = None,
    progress: bool = True,
) -> tuple[dict[str, DecodedTrial], dict[str, Adaptation]]:
    """Decoded trials by name, and what adaptation did by session (empty without `adapt`), in order.

    Every rank decodes its share and returns the whole; if one fails, all raise. Rank 0 shows progress.
    """
    units = batch_units(trials, data.config.eval_batch_size) if adapt is None else session_units(trials)
    own = deal(units, ranks.world_size)[ranks.rank]
    progress = progress and ranks.rank == 0

    keep_projected = words is not None and words.needs_projected

    def phonemes() -> tuple[list[DecodedTrial], dict[str, Adaptation]]:
        return decode_phonemes(model, data, own, decode, adapt, progress, keep_projected=keep_projected)

    decoded, adaptations = ranks.together(phonemes)
    if words is not None:
        inputs = [_search_input(words, trial) for trial in decoded]
        nbests = decode_words_of(words, trials, [t.info for t in decoded], inputs, ranks, progress=progress)
        decoded = [replace(trial, nbest=nbest) for trial, nbest in zip(decoded, nbests, strict=True)]
    decoded = [replace(trial, projected=None) for trial in decoded]  # too much to send to all

    by_name: dict[str, DecodedTrial] = {}
    by_session: dict[str, Adaptation] = {}
    for of_rank, adaptations_of_rank in ranks.gather_objects((decoded, adaptations)):
        by_name |= {trial.info.name: trial for trial in of_rank}
        by_session |= adaptations_of_rank
    return {info.name: by_name[info.name] for info in trials}, dict(sorted(by_session.items()))


def _search_input(words: WordDecoding, trial: DecodedTrial) -> np.ndarray:
    """What the word search reads of a trial."""
    if not words.needs_projected:
        return trial.log_probs
    assert trial.projected is not None
    return trial.projected


def decode_phonemes(
    model: PhonemeModel,
    data: TranscriptionData,
    trials: Sequence[TrialInfo],
    decode: DecodeConfig,
    adapt: AdaptConfig | None,
    progress: bool,
    *,
    keep_projected: bool,
) -> tuple[list[DecodedTrial], dict[str, Adaptation]]:
    """Trials without their words, in the order of batches, and what adaptation did by session.

    keep_projected: for a word search of the transducer; the frames of a whole split are large.
    """
    decoded: list[DecodedTrial] = []
    adaptations: dict[str, Adaptation] = {}
    model.eval()
    with progress_bar("phonemes", len(trials), progress) as advance:
        for batches, adaptation in _adapted_sessions(model, data, trials, adapt):
            if adaptation is not None:
                adaptations[batches[0].trials[0].session] = adaptation
            for batch in batches:
                decoded += _decode_batch(model, batch, decode, keep_projected=keep_projected)
                advance(len(batch))
    return decoded, adaptations


def _adapted_sessions(
    model: PhonemeModel,
    data: TranscriptionData,
    trials: Sequence[TrialInfo],
    adapt: AdaptConfig | None,
) -> Iterator[tuple[list[Batch], Adaptation | None]]:
    """Batches to decode, with the model in the state to decode them in while the consumer holds them."""
    if adapt is None:
        for batch in data.batches(trials):
            yield [batch.to(model.device)], None
        return
    for of_session in session_units(trials):
        batches = [without_labels(batch).to(model.device) for batch in data.batches(of_session, adapt.batch_size)]
        statistics = data.session_statistics(of_session[0].split, of_session[0].session)
        with adapted(model, batches, statistics, adapt) as adaptation:
            yield batches, adaptation


@torch.no_grad()
def _decode_batch(
    model: PhonemeModel, batch: Batch, config: DecodeConfig, *, keep_projected: bool
) -> list[DecodedTrial]:
    output = model(batch.features, batch.feature_lengths, batch.session_ids)
    if not isinstance(model, MODE_SSM):
        return _decode_ctc(output, batch)
    lengths = output.lengths.tolist()
    log_probs = output.phoneme_logits.float().log_softmax(-1)
    transducer = HeadTransducer(model)
    projected = transducer.project(output.encoder_out)
    beams = beam_transducer_batch(
        transducer,
        projected,
        output.lengths,
        beam_size=config.rnnt_beam_size,
        max_symbols=config.rnnt_max_symbols,
        nbest=config.rnnt_beam_size,
    )
    greedy = [greedy_ctc(log_probs[row, :frames]) for row, frames in enumerate(lengths)]
    candidates = [
        list(dict.fromkeys((*(hypothesis.labels for hypothesis in beam), tuple(best))))
        for beam, best in zip(beams, greedy, strict=True)
    ]
    scores = joint_scores(model, log_probs, projected, output.lengths, candidates, config.ctc_weight)
    mode_posterior = output.mode_log_probs.exp().tolist()
    return [
        DecodedTrial(
            info=info,
            log_probs=log_probs[row, :frames].cpu().numpy(),
            mode_posterior=tuple(mode_posterior[row]),
            projected=projected[row, :frames].float().cpu().numpy() if keep_projected else None,
            ctc_phonemes=greedy[row],
            rnnt_phonemes=list(beams[row][0].labels),
            phonemes=list(candidates[row][int(scores[row].argmax())]),
        )
        for row, (info, frames) in enumerate(zip(batch.trials, lengths, strict=True))
    ]


def _decode_ctc(output: PhonemeOutput, batch: Batch) -> list[DecodedTrial]:
    trials = []
    for info, logits, frames in zip(batch.trials, output.phoneme_logits, output.lengths.tolist(), strict=True):
        log_probs = logits[:frames].float().log_softmax(-1)
        best = greedy_ctc(log_probs)
        trials.append(
            DecodedTrial(
                info=info,
                log_probs=log_probs.cpu().numpy(),
                mode_posterior=None,
                ctc_phonemes=best,
                rnnt_phonemes=None,
                phonemes=best,
            )
        )
    return trials


def joint_scores(
    model: MODE_SSM,
    log_probs: Tensor,
    projected: Tensor,
    lengths: Tensor,
    candidates: Sequence[Sequence[Sequence[int]]],
    ctc_weight: float,
) -> tuple[Tensor, ...]:
    """ctc_weight * log P_ctc + (1 - ctc_weight) * log P_rnnt of each trial's candidates, over all alignments.

    log_probs (B, T, V), projected (B, T, J), lengths (B,); for each trial (len(candidates),).
    """
    device, joiner = log_probs.device, model.joiner
    counts = [len(of_trial) for of_trial in candidates]
    labels = [torch.tensor(labels, dtype=torch.int64) for of_trial in candidates for labels in of_trial]
    rows = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(device)
    targets = pad_sequence(labels, batch_first=True).to(device)
    target_lengths = torch.tensor([len(candidate) for candidate in labels], device=device)
    lengths = lengths.to(device)[rows]
    ctc = F.ctc_loss(log_probs[rows].transpose(0, 1), targets, lengths, target_lengths, blank=BLANK, reduction="none")
    rnnt = joint_transducer_loss(
        projected[rows],
        model.predictor(model.predictor.contexts(targets)),
        joiner.output.weight,
        joiner.output.bias,
        targets,
        lengths,
        target_lengths,
        blank=BLANK,
    )
    return (-(ctc_weight * ctc + (1 - ctc_weight) * rnnt)).split(counts)
