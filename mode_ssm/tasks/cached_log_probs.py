"""Log-probabilities of a split, kept beside a run: what is searched again and again is computed once.

Shapes: T frames, V classes.
"""

import json
import logging
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from mode_ssm.config import DataConfig
from mode_ssm.data.batch import TrialInfo
from mode_ssm.lm.lexicon_cache import fingerprint
from mode_ssm.models.phoneme_model import PhonemeModel
from mode_ssm.tasks.transcription_data import TranscriptionData

logger = logging.getLogger(__name__)


def model_log_probs(
    model: PhonemeModel,
    data: TranscriptionData,
    trials: Sequence[TrialInfo],
    advance: Callable[[int], None] | None = None,
) -> list[np.ndarray]:
    """(T, V) float32 of the CTC head for every trial, in order. `advance(n)` is called as n trials are done."""
    model.eval()
    by_name: dict[str, np.ndarray] = {}
    with torch.no_grad():
        for batch in data.batches(trials):
            moved = batch.to(model.device)
            output = model(moved.features, moved.feature_lengths, moved.session_ids)
            log_probs = output.phoneme_logits.float().log_softmax(-1).cpu().numpy()
            for info, rows, frames in zip(batch.trials, log_probs, output.lengths.tolist(), strict=True):
                by_name[info.name] = rows[:frames].copy()
            if advance is not None:
                advance(len(batch))
    return [by_name[info.name] for info in trials]


def made_for(weights: Path, config: DataConfig, trials: Sequence[TrialInfo]) -> dict[str, str]:
    """What log-probabilities depend on: the weights' content, trials and files, and what is done to the signal."""
    files = {path: Path(path).stat() for path in dict.fromkeys(info.path for info in trials)}
    recordings = {
        "trials": [(info.name, info.num_bins) for info in trials],
        "files": [(path, status.st_size, status.st_mtime_ns) for path, status in files.items()],
        "smoothing": (config.smoothing.name, config.smoothing_std),
        "normalisation": (config.normalisation.name, config.rolling_seconds),
    }
    return {"checkpoint": fingerprint(weights), "data": fingerprint(json.dumps(recordings))}


def kept_log_probs(
    path: Path, needed: dict[str, str], compute: Callable[[], Sequence[np.ndarray]]
) -> Sequence[np.ndarray]:
    """The arrays (T, V) kept at `path` if they were made for what is `needed`, else those of `compute`, kept there.

    Ones made for something else are replaced, and a warning names what differs.
    """
    try:
        with np.load(path) as file:
            found = json.loads(str(file["made_for"]))
            if found == needed:
                return np.split(file["log_probs"], np.cumsum(file["frames"])[:-1])
            differing = " and ".join(key for key in needed if found.get(key) != needed[key])
            logger.warning("%s was made for another %s; log-probabilities are computed again", path, differing)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s cannot be read and is made anew: %s", path, error)
    log_probs = compute()
    try:
        _write(path, needed, log_probs)
    except OSError as error:
        logger.warning("%s cannot be written (%s); the next run computes log-probabilities again", path, error.strerror)
    return log_probs


def _write(path: Path, needed: dict[str, str], log_probs: Sequence[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial_{path.name}")
    with partial.open("wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            made_for=np.array(json.dumps(needed)),
            log_probs=np.concatenate(log_probs),
            frames=np.array([len(rows) for rows in log_probs]),
        )
    os.replace(partial, path)
