"""From a checkpoint to the decoding scales that suit it: what `scripts/tune_decoding.py` does."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mode_ssm.config import TrainConfig, TuneConfig, TuneMethod, WordSearch
from mode_ssm.inference import LoadedModel
from mode_ssm.inference_text import open_batch_scorer
from mode_ssm.lm.lexicon_cache import fingerprint
from mode_ssm.report_tuning import KEYS, write_tuning_report
from mode_ssm.tasks.cached_log_probs import kept_log_probs, made_for, model_log_probs
from mode_ssm.tasks.tuning import AXES, Setting, Study, open_study
from mode_ssm.tasks.tuning_methods import grid_search, optuna_search
from mode_ssm.tasks.tuning_results import finished_trials, summarise_study, write_study
from mode_ssm.tasks.word_decoder import build_word_decoder
from mode_ssm.train.checkpoint import WEIGHTS

JSON_FILE = "tune.json"
_OF_PHONEMES = ("ctc_weight", "rnnt_beam_size", "rnnt_max_symbols")  # settings that leave words as they are


def tune(loaded: LoadedModel, settings: TuneConfig, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Search for the best scales, write `tune.json` after every search and the report at the end; return the summary.

    overrides: those of the command line over the checkpoint's configuration, for the command that is written down.
    Raises `ValueError` for a split without trials or labels, for a search that cannot be tuned, and where words cannot
    be decoded.
    """
    config, data = loaded.config, loaded.data
    if loaded.distributed.world_size > 1:
        raise ValueError("tune_decoding.py starts its processes itself (processes=...): run it without torchrun")
    if config.decode.search is not WordSearch.ctc:
        raise ValueError(f"decode.search={config.decode.search.value}: scales are tuned for decode.search=ctc only")
    if config.lm.corpora:
        raise ValueError("lm.corpora: two passes are not tuned at once; tune without, then evaluate with it")
    infos = data.trials(settings.split)
    if not data.has_labels(settings.split):
        raise ValueError(f"split={settings.split} has no labels to compare with; tune with a split that has")
    decoder = build_word_decoder(config, data, open_batch_scorer(config.lm.neural) if config.lm.neural else None)
    if decoder is None:
        raise ValueError("tuning needs words: give lm.lexicon=..., or put lexicon.txt beside the data")
    needed = made_for(loaded.checkpoint.path / WEIGHTS, config.data, infos)
    progress = config.logging.progress

    def compute() -> Sequence[np.ndarray]:
        with _progress("phonemes", len(infos), progress) as advance:
            return model_log_probs(loaded.model, data, infos, advance)

    log_probs = kept_log_probs(loaded.run_dir / f"log_probs_{settings.split}.npz", needed, compute)
    folder.mkdir(parents=True, exist_ok=True)
    file, studied = folder / JSON_FILE, needed | _search_made_for(config, data.training_sentences())
    axes = asdict(settings.axes)
    if decoder.delayed is None:
        axes["neural_weight"] = [0.0]
    processes = settings.processes or loaded.distributed.cores
    with _study_progress(progress) as show:

        def on_trial(study: Study) -> None:
            write_study(file, studied, study, {})
            show(study)

        with open_study(
            decoder,
            log_probs,
            [data.reference(info).sentence for info in infos],
            axes,
            trials=finished_trials(file, studied),
            processes=processes,
            on_trial=on_trial,
        ) as study:
            if settings.method is TuneMethod.optuna:
                optuna_search(study, settings.trials, config.seed, processes)
            else:
                grid_search(study, settings.refinements)
            show(study)
    summary = {"split": settings.split, **summarise_study(study, infos, seed=config.seed)}
    write_study(file, studied, study, summary)
    write_tuning_report(
        folder,
        study,
        summary,
        title=f"{config.run_name}: scales of the word search, tuned on {settings.split}",
        command=evaluation_command(settings.checkpoint, overrides, study.best(), study.default),
        decode=_plain(config.decode),
    )
    return summary


def evaluation_command(checkpoint: str, overrides: Sequence[str], chosen: Setting, default: Setting) -> list[str]:
    """`evaluate_model.py` with the chosen setting: `overrides` but for keys that it replaces."""
    names = [name for name in AXES if "decode." in KEYS[name] or getattr(chosen, name) != getattr(default, name)]
    kept = [line for line in overrides if line.split("=")[0].lstrip("+") not in {KEYS[name] for name in names}]
    tuned = [f"{KEYS[name]}={getattr(chosen, name):g}" for name in names]
    return ["uv", "run", "evaluate_model.py", f"checkpoint={checkpoint}", *kept, *tuned]


def _search_made_for(config: TrainConfig, sentences: Sequence[str]) -> dict[str, str]:
    """What word errors depend on beside log-probabilities and the scales that are tuned.

    Files count by size and time: a language model may have gigabytes.
    """
    lm = _untuned("lm", _plain(config.lm))
    paths = [Path(config.data.root) / "lexicon.txt", *map(Path, _texts(lm))]
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.exists()]
    return {
        "language model or lexicon": fingerprint(json.dumps([lm, states, list(sentences)])),
        "search": fingerprint(json.dumps(_untuned("decode", _plain(config.decode)))),
    }


def _texts(value: Any) -> Iterator[str]:
    """All texts in nested dictionaries and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _plain(section: Any) -> dict[str, Any]:
    """Names and values of what words depend on in a section of the configuration."""
    values = OmegaConf.to_container(OmegaConf.structured(section), enum_to_str=True)
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items() if name not in _OF_PHONEMES}


def _untuned(section: str, values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if f"{section}.{name}" not in KEYS.values()}


@contextmanager
def _progress(name: str, total: int, enabled: bool) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not enabled) as bar:
        task = bar.add_task(name, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def _study_progress(enabled: bool) -> Iterator[Callable[[Study], None]]:
    columns = (
        TextColumn("settings"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, disable=not enabled) as bar:
        task = bar.add_task("", total=None)

        def show(study: Study) -> None:
            best = study.best()
            values = ", ".join(f"{getattr(best, name):g}" for name in AXES if len(study.axes[name]) > 1)
            bar.update(
                task,
                total=study.planned,
                completed=len(study.trials),
                description=f"best WER {100 * study.wer(best):.2f} % at {values}",
            )

        yield show
