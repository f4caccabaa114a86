"""The task that a configuration names, and what has to lie on disk before it can be built."""

import torch

from mode_ssm.config import TaskName, TrainConfig
from mode_ssm.tasks.language_model import LanguageModelTask
from mode_ssm.tasks.task import Task
from mode_ssm.tasks.transcription import TranscriptionTask
from mode_ssm.tasks.transcription_data import ensure_data


def prepare_data(config: TrainConfig) -> None:
    """Simulate what the configuration wants simulated. Rank 0 only."""
    if config.task.name is TaskName.transcription:
        ensure_data(config.data)


def build_task(config: TrainConfig, device: torch.device, *, progress: bool) -> Task:
    if config.task.name is TaskName.language_model:
        return LanguageModelTask(config, device, progress)
    return TranscriptionTask(config, device, progress)
