"""Label sequences from an RNN transducer (Graves 2012, "Sequence transduction with recurrent neural networks").

Both searches are time-synchronous: at every frame a hypothesis emits labels until it emits the blank that takes it to
the next frame. All utterances go through the network together.

Shapes: B utterances, T frames, d features of a frame, V classes, K hypotheses of all utterances.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mode_ssm.vocab import BLANK


class TransducerModel(Protocol):
    """What the search needs of predictor and joiner; the predictor sees the last `context` labels only."""

    context: int

    def log_probs(self, frames: Tensor, contexts: Tensor) -> Tensor:
        """frames (K, d), contexts (K, context) int64, left-padded with blank -> log-softmaxed (K, V)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TransducerHypothesis:
    """score: log-probability of the labels, summed over the alignments that the search kept."""

    labels: tuple[int, ...]
    score: float


@torch.inference_mode()
def greedy_transducer(
    model: TransducerModel, encoder_out: Tensor, lengths: Tensor, max_symbols: int
) -> list[list[int]]:
    """The most probable next symbol, again and again, for encoder_out (B, T, d) with lengths (B,).

    A frame is left after a blank or after `max_symbols` labels.
    """
    _check_max_symbols(max_symbols)
    contexts = torch.zeros(len(encoder_out), model.context, dtype=torch.int64, device=encoder_out.device)
    labels: list[list[int]] = [[] for _ in range(len(encoder_out))]
    for t in range(int(lengths.max()) if len(lengths) else 0):
        active = torch.nonzero(lengths.to(encoder_out.device) > t).squeeze(1)
        for _ in range(max_symbols):
            symbols = model.log_probs(encoder_out[active, t], contexts[active]).argmax(-1)
            emitted = symbols != BLANK
            active, symbols = active[emitted], symbols[emitted]
            if len(active) == 0:
                break
            contexts[active] = torch.cat([contexts[active], symbols[:, None]], dim=1)[:, 1:]
            for utterance, symbol in zip(active.tolist(), symbols.tolist(), strict=True):
                labels[utterance].append(symbol)
    return labels


def beam_transducer(
    model: TransducerModel, encoder_out: Tensor, beam_size: int, max_symbols: int, nbest: int = 1
) -> list[TransducerHypothesis]:
    """Best label sequences of one utterance, encoder_out (T, d); see `beam_transducer_batch`."""
    lengths = torch.tensor([len(encoder_out)])
    return beam_transducer_batch(model, encoder_out[None], lengths, beam_size, max_symbols, nbest)[0]


@torch.inference_mode()
def beam_transducer_batch(
    model: TransducerModel, encoder_out: Tensor, lengths: Tensor, beam_size: int, max_symbols: int, nbest: int = 1
) -> list[list[TransducerHypothesis]]:
    """For each utterance of encoder_out (B, T, d), lengths (B,): at most `nbest` label sequences, best first.

    Alignments of equal label sequences are summed. At a frame at most `max_symbols` labels are emitted; after every
    label and at the end of the frame the best `beam_size` hypotheses of an utterance stay. With a beam that drops
    nothing, scores are the transducer's forward log-probabilities (of alignments with at most `max_symbols` labels a
    frame).
    """
    _check_max_symbols(max_symbols)
    if beam_size < 1 or nbest < 1:
        raise ValueError(f"beam_size and nbest must be at least 1, not {beam_size} and {nbest}")
    beams: list[dict[tuple[int, ...], float]] = [{(): 0.0} for _ in lengths]
    for t in range(int(lengths.max()) if len(lengths) else 0):
        frames = encoder_out[:, t]
        emitting = [beam if t < length else {} for beam, length in zip(beams, lengths.tolist(), strict=True)]
        finished: list[dict[tuple[int, ...], float]] = [{} for _ in beams]
        for emitted in range(max_symbols + 1):
            emitting = _emit(model, frames, emitting, finished, beam_size, last=emitted == max_symbols)
            if not any(emitting):
                break
        beams = [new if new else old for new, old in zip(finished, beams, strict=True)]
    return [
        [TransducerHypothesis(labels=labels, score=score) for labels, score in _best(beam, nbest).items()]
        for beam in beams
    ]


def _emit(
    model: TransducerModel,
    frames: Tensor,
    beams: list[dict[tuple[int, ...], float]],
    finished: list[dict[tuple[int, ...], float]],
    beam_size: int,
    *,
    last: bool,
) -> list[dict[tuple[int, ...], float]]:
    """One symbol for every hypothesis: blanks go to `finished`, labels make the hypotheses that are returned."""
    utterances = [utterance for utterance, beam in enumerate(beams) for _ in beam]
    prefixes = [labels for beam in beams for labels in beam]
    padding = (BLANK,) * model.context
    contexts = torch.tensor([(padding + labels)[len(labels) :] for labels in prefixes], device=frames.device)
    log_probs = model.log_probs(frames[torch.tensor(utterances, device=frames.device)], contexts)
    blanks = log_probs[:, BLANK].tolist()
    for utterance, labels, blank in zip(utterances, prefixes, blanks, strict=True):
        _add(finished[utterance], labels, beams[utterance][labels] + blank)
    for utterance, new in enumerate(finished):
        finished[utterance] = _best(new, beam_size)
    longer: list[dict[tuple[int, ...], float]] = [{} for _ in beams]
    if last:
        return longer
    log_probs = log_probs.clone()
    log_probs[:, BLANK] = -math.inf
    # Of one hypothesis no more than beam_size labels can survive.
    best, symbols = log_probs.topk(min(beam_size, log_probs.shape[1] - 1), dim=1)
    floors = [min(new.values()) if len(new) == beam_size else -math.inf for new in finished]
    rows = zip(utterances, prefixes, best.tolist(), symbols.tolist(), strict=True)
    for utterance, labels, row_best, row_symbols in rows:
        score = beams[utterance][labels]
        for log_prob, symbol in zip(row_best, row_symbols, strict=True):
            if score + log_prob > floors[utterance]:  # scores only fall: it would not survive the frame
                _add(longer[utterance], (*labels, symbol), score + log_prob)
    return [_best(beam, beam_size) for beam in longer]


def _add(beam: dict[tuple[int, ...], float], labels: tuple[int, ...], score: float) -> None:
    beam[labels] = float(np.logaddexp(beam[labels], score)) if labels in beam else score


def _best(beam: dict[tuple[int, ...], float], size: int) -> dict[tuple[int, ...], float]:
    """The best `size` entries, best first."""
    return dict(sorted(beam.items(), key=lambda item: (-item[1], item[0]))[:size])


def _check_max_symbols(max_symbols: int) -> None:
    if max_symbols < 1:
        raise ValueError(f"max_symbols must be at least 1, not {max_symbols}")
