"""What is done with the checkpoint of a language model: report its perplexity, score words in decoding."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from mode_ssm.config import TaskName, TrainConfig
from mode_ssm.lm.huggingface_scorer import HuggingFaceScorer
from mode_ssm.lm.neural_scorer import NeuralScorer
from mode_ssm.lm.scorer import BatchScorer
from mode_ssm.report_text import write_text_report
from mode_ssm.tasks.language_model import restore_language_model
from mode_ssm.tasks.text_evaluation import evaluate_texts
from mode_ssm.train.checkpoint import Checkpoint, load_checkpoint
from mode_ssm.train.run_directory import METRICS


def report_on_text(checkpoint: Checkpoint, config: TrainConfig, device: torch.device, folder: Path) -> dict[str, Any]:
    """Perplexity of every file of `text.valid`, beside a Kneser-Ney model of `text.train`, written into `folder` as
    `report.json` and `report.html`; the summary."""
    model, tokens = restore_language_model(checkpoint.config, checkpoint.description, checkpoint.weights())
    text = config.text
    summary = evaluate_texts(model.to(device), tokens, text.train, text.valid, device, text.tokens_per_batch)
    run_dir = checkpoint.path.parent.parent
    summary["checkpoint"] = f"{checkpoint.path.name} of {run_dir.name}"
    write_text_report(
        folder,
        title=f"{config.run_name}: perplexity",
        summary=summary,
        config_yaml=OmegaConf.to_yaml(OmegaConf.structured(config)),
        metrics_path=run_dir / METRICS,
    )
    return summary


def load_neural_scorer(path: str | Path, device: torch.device | str = "cpu") -> NeuralScorer:
    """The language model of a checkpoint or run directory, for decoding.

    Raises `ValueError` in one line where nothing whole lies there, and for the checkpoint of another task.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint.config.task.name is not TaskName.language_model:
        raise ValueError(
            f"{path} is a checkpoint of task={checkpoint.config.task.name.value}; expected one of task=language_model, "
            "such as experiment=lm_small trains"
        )
    model, tokens = restore_language_model(checkpoint.config, checkpoint.description, checkpoint.weights())
    return NeuralScorer(model.to(device).requires_grad_(False), tokens, device)


def open_batch_scorer(name: str, device: torch.device | str = "cpu") -> BatchScorer:
    """The second language model of decoding: a checkpoint of task=language_model, or hf:<name or folder>."""
    if name.startswith("hf:"):
        return HuggingFaceScorer(name.removeprefix("hf:"), device)
    return load_neural_scorer(name, device)
