"""What the entry scripts do with a finished checkpoint: load it, report on a split, write a submission."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mode_ssm.config import DataConfig, Normalisation, Smoothing, TaskName, TrainConfig
from mode_ssm.data.brain2text import load_features
from mode_ssm.data.index import submission_order
from mode_ssm.data.smoothing import lookahead_bins
from mode_ssm.inference_text import open_batch_scorer
from mode_ssm.lm.scorer import BatchScorer
from mode_ssm.models.phoneme_model import PhonemeModel
from mode_ssm.report import ExampleTrial, choose_example, write_report
from mode_ssm.submission import validate_submission, write_submission
from mode_ssm.tasks.decoding import decode_trials
from mode_ssm.tasks.evaluation import Evaluation, evaluate_split
from mode_ssm.tasks.transcription import restore_model
from mode_ssm.tasks.transcription_data import TranscriptionData
from mode_ssm.tasks.word_decoder import build_word_decoding
from mode_ssm.tasks.word_decoding import WordDecoding
from mode_ssm.train.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint
from mode_ssm.train.distributed import Distributed


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A checkpoint's model on its device, the data it is asked about, and the processes that share the work."""

    checkpoint: Checkpoint
    config: TrainConfig  # the checkpoint's, with what the command line put over it
    model: PhonemeModel
    data: TranscriptionData
    distributed: Distributed
    neural: BatchScorer | None  # the second language model of decoding

    @property
    def run_dir(self) -> Path:
        return self.checkpoint.path.parent.parent


def load(checkpoint: Checkpoint, config: TrainConfig, distributed: Distributed) -> LoadedModel:
    """Build the model as `checkpoint` describes it and open the data that `config` names; on every rank.

    Raises `ValueError` for the checkpoint of another task than transcription.
    """
    if checkpoint.config.task.name is not TaskName.transcription:
        raise ValueError(
            f"{checkpoint.path} is of task={checkpoint.config.task.name.value}, which decodes no recordings"
        )
    progress = config.logging.progress and distributed.is_main

    def build() -> LoadedModel:
        model = restore_model(checkpoint.config, checkpoint.description, checkpoint.weights()).to(distributed.device)
        data = TranscriptionData.open(config.data, config.seed, checkpoint.description["sessions"], progress=progress)
        neural = open_batch_scorer(config.lm.neural) if config.lm.neural is not None else None
        return LoadedModel(checkpoint, config, model, data, distributed, neural)

    return distributed.together(build)


def report_on(loaded: LoadedModel, split: str, folder: Path, *, tta: bool) -> dict[str, Any]:
    """Decode `split` on all ranks, write `report.json` and `report.html` into `folder` on rank 0; the summary."""
    config = loaded.config
    evaluation = evaluate_split(
        loaded.model,
        loaded.data,
        split,
        config,
        loaded.distributed,
        tta=tta,
        neural=loaded.neural,
        progress=config.logging.progress,
    )
    return loaded.distributed.on_main(lambda: _write_report(loaded, evaluation, split, folder))


def _write_report(loaded: LoadedModel, evaluation: Evaluation, split: str, folder: Path) -> dict[str, Any]:
    config = loaded.config
    evaluation.summary["checkpoint"] = f"{loaded.checkpoint.path.name} of {loaded.run_dir.name}"
    evaluation.summary["num_parameters"] = loaded.checkpoint.description["num_parameters"]
    evaluation.summary["stages"] = stage_metrics(loaded)
    result = choose_example(evaluation.results)
    truth = loaded.data.truth.get(result.info.name)
    example = ExampleTrial(
        result=result,
        features=load_features(result.info),
        log_probs=evaluation.decoded[result.info.name].log_probs,
        frame_stride=loaded.model.frame_stride,
        phoneme_starts=truth.phoneme_starts if truth is not None else None,
    )
    write_report(
        folder,
        title=f"{config.run_name}: {split}",
        summary=evaluation.summary,
        results=evaluation.results,
        config_yaml=OmegaConf.to_yaml(OmegaConf.structured(config)),
        metrics_path=loaded.run_dir / "metrics.jsonl",
        example=example,
        notes=[f"Checkpoint {evaluation.summary['checkpoint']}.", signal_path(config.data, loaded.model.causal)],
    )
    return evaluation.summary


def stage_metrics(loaded: LoadedModel) -> list[dict[str, Any]]:
    """Validation metrics at the end of every stage that the run has finished, later ones than the checkpoint's too."""
    latest = latest_checkpoint(loaded.run_dir)
    state = load_checkpoint(latest).state if latest is not None else loaded.checkpoint.state
    return [{"stage": phase["phase"], "steps": phase["steps"], **phase["after"]} for phase in state["loop"]["history"]]


def signal_path(data: DataConfig, causal: bool) -> str:
    """What the figures assume about the future of the signal, in words."""
    normalisation = {
        Normalisation.released: "features as the files hold them",
        Normalisation.session: "features normalised by each session's training data",
        Normalisation.rolling: f"features normalised by the past {data.rolling_seconds:g} s of their block",
    }[data.normalisation]
    ahead_bins = lookahead_bins(data.smoothing, data.smoothing_std)
    ahead = {
        Smoothing.none: "no smoothing",
        Smoothing.causal: "causal smoothing",
        Smoothing.symmetric: f"symmetric smoothing, which sees {20 * ahead_bins} ms ahead",
    }[data.smoothing]
    encoder = "a causal encoder" if causal else "a bidirectional encoder, which reads the whole trial"
    path = f"{normalisation}, {ahead}, {encoder}"
    if data.normalisation is Normalisation.rolling and ahead_bins == 0 and causal:
        return (
            f"Causal from the files on: {path}. Files that were z-scored by whole blocks before, as the benchmark's "
            "are, have seen the future of each block."
        )
    return f"Offline figures: {path}."


def submit(loaded: LoadedModel, output: Path, *, tta: bool) -> int:
    """Decode the test split on all ranks and write the CSV on rank 0; return the number of rows.

    Raises `ValueError` where words cannot be decoded, or where the file that was written does not pass validation.
    """
    config, distributed = loaded.config, loaded.distributed
    trials = submission_order(loaded.data.trials("test"))
    words = distributed.together(lambda: _require_words(loaded))
    decoded, _ = decode_trials(
        loaded.model,
        loaded.data,
        trials,
        config.decode,
        words,
        distributed,
        adapt=config.adapt if tta else None,
        progress=config.logging.progress,
    )
    sentences = [decoded[info.name].words or "" for info in trials]

    def write() -> None:
        write_submission(output, sentences)
        validate_submission(output, len(trials), empty_ids=[row for row, text in enumerate(sentences) if not text])

    distributed.on_main(write)
    return len(trials)


def _require_words(loaded: LoadedModel) -> WordDecoding:
    words = build_word_decoding(loaded.config, loaded.data, loaded.neural, loaded.model, rank=loaded.distributed.rank)
    if words is None:
        raise ValueError(
            "a submission needs words: give lm.lexicon=... (CMUdict's format), or put lexicon.txt beside the data"
        )
    return words
