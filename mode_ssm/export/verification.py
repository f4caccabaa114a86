"""Does an exported model do what the checkpoint does? Against eager steps on one stream, and by error rates on a split.

Shapes: T bins, C features, K frames, V classes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mode_ssm.data.brain2text import load_features
from mode_ssm.data.smoothing import smooth
from mode_ssm.decode.greedy import greedy_ctc
from mode_ssm.export.bundle import UNSEEN, Export, Source, build
from mode_ssm.export.graph import Weights
from mode_ssm.export.streaming_session import Frames, StreamingSession
from mode_ssm.metrics import ErrorRate, aggregate, phoneme_errors
from mode_ssm.tasks.transcription_data import TranscriptionData

FRAMES = 300  # of which the median is taken
WARM_UP = 20
TOLERANCE = 1e-4  # of an fp32 export, relative to the largest value; rounding alone reaches about 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Of one stream: the largest difference of log-probabilities, that of the encoder's output relative to its largest
    value, the share of frames with the same best class, and the median time of a frame."""

    log_probs: float
    encoder_out: float
    same_class: float
    milliseconds: float


def example_features(source: Source, session: str | None, bins: int = 4 * FRAMES + 3, seed: int = 0) -> np.ndarray:
    """Noise (T, C) with the mean and spread of the training data, or of the session where the model knows it."""
    preprocessor, row = source.model.preprocessor, source.session_id(session)
    mean, std = preprocessor.feature_mean, preprocessor.feature_std
    if row != UNSEEN:
        mean, std = preprocessor.session_mean[row], preprocessor.session_std[row]
    noise = np.random.default_rng(seed).standard_normal((bins, len(mean)), np.float32)
    return noise * std.cpu().numpy() + mean.cpu().numpy()


def open_export(export: Export, threads: int = 1) -> StreamingSession:
    return StreamingSession(export.content, export.manifest, threads)


def stream(session: StreamingSession, features: np.ndarray) -> Frames:
    """A whole trial of recorded features (T, C)."""
    frames = [session.push(features), session.finish()]
    return Frames(np.concatenate([f.log_probs for f in frames]), np.concatenate([f.encoder_out for f in frames]))


@torch.inference_mode()
def eager_stream(source: Source, session_id: int, features: np.ndarray) -> tuple[Frames, list[float]]:
    """The same by `MODE_SSM.step`, and the seconds of every frame."""
    smoothed = torch.from_numpy(smooth(features, source.data.smoothing, source.data.smoothing_std))
    state = source.model.initial_state(torch.tensor([session_id]))
    log_probs, encoder_out, seconds = [], [], []
    for bins in smoothed.unsqueeze(0).split(source.model.frame_stride, 1):
        begin = time.perf_counter()
        frame_log_probs, frame_out, state = source.model.step(bins, state)
        seconds.append(time.perf_counter() - begin)
        log_probs.append(frame_log_probs)
        encoder_out.append(frame_out)
    return Frames(torch.cat(log_probs).numpy(), torch.cat(encoder_out).numpy()), seconds


def compare(session: StreamingSession, features: np.ndarray, expected: Frames) -> Comparison:
    """The exported model against eager frames of the same features."""
    found = stream(session, features)
    seconds = []
    for bins in np.split(features, range(session.stride, len(features), session.stride)):
        begin = time.perf_counter()
        session.push(bins)
        seconds.append(time.perf_counter() - begin)
    session.reset()
    same = found.log_probs.argmax(-1) == expected.log_probs.argmax(-1)
    return Comparison(
        log_probs=float(np.abs(found.log_probs - expected.log_probs).max()),
        encoder_out=float(np.abs(found.encoder_out - expected.encoder_out).max() / np.abs(expected.encoder_out).max()),
        same_class=float(same.mean()),
        milliseconds=median_milliseconds(seconds),
    )


def median_milliseconds(seconds: Sequence[float]) -> float:
    return 1e3 * float(np.median(seconds[min(WARM_UP, len(seconds) // 2) :]))


@torch.inference_mode()
def phoneme_error_rates(
    source: Source, data: TranscriptionData, split: str, *, progress: bool = True
) -> dict[str, ErrorRate]:
    """Greedy CTC on a split, four times: offline and streamed in eager mode, streamed by fp32 and int8 exports.

    The exports read normalised features and smooth them themselves. Raises `ValueError` for a split without labels.
    """
    trials = sorted(data.trials(split), key=lambda info: info.session)
    if not data.has_labels(split):
        raise ValueError(f"split={split} has no labels to compare with")
    errors: dict[str, list[ErrorRate]] = {name: [] for name in ("offline", "streamed", "fp32", "int8")}
    with _progress(len(trials), progress) as advance:
        for name, of_session in groupby(trials, key=lambda info: info.session):
            session = name if name in source.sessions else None
            exports = {weights.value: open_export(build(source, session, weights)) for weights in Weights}
            for info in of_session:
                features = data.normalise(info, load_features(info))
                reference = data.reference(info).phonemes.tolist()
                log_probs = {key: stream(export, features).log_probs for key, export in exports.items()}
                log_probs["offline"] = _offline(source, source.session_id(session), features)
                log_probs["streamed"] = eager_stream(source, source.session_id(session), features)[0].log_probs
                for key, values in log_probs.items():
                    errors[key].append(phoneme_errors(reference, greedy_ctc(values)))
                advance()
    return {key: aggregate(of_trials) for key, of_trials in errors.items()}


def _offline(source: Source, session_id: int, features: np.ndarray) -> np.ndarray:
    smoothed = torch.from_numpy(smooth(features, source.data.smoothing, source.data.smoothing_std))
    output = source.model(smoothed.unsqueeze(0), torch.tensor([len(smoothed)]), torch.tensor([session_id]))
    return output.phoneme_logits[0].log_softmax(-1).numpy()


@contextmanager
def _progress(total: int, enabled: bool) -> Iterator[Callable[[], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not enabled) as bar:
        task = bar.add_task("trials", total=total)
        yield lambda: bar.advance(task)
