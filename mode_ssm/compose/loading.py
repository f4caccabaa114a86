"""Command line -> typed configuration: of a training, and of the scripts that run a checkpoint."""

from collections.abc import Sequence
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from mode_ssm.compose import help_page, launch
from mode_ssm.compose.composition import CHECKPOINT, chosen_groups, composed_by_hydra, refuse_missing
from mode_ssm.compose.keys import ConfigError, schema_keys
from mode_ssm.compose.overrides import (
    EXPERIMENT,
    Space,
    check_defaults_list,
    checked,
    default_choice,
    group_choices,
    parse,
)
from mode_ssm.compose.validation import validate
from mode_ssm.compose.validation_scripts import validate_split, validate_tuning
from mode_ssm.config import OVERRIDABLE_SECTIONS, EvaluateConfig, SubmissionConfig, TrainConfig, TuneConfig

Root = TypeVar("Root", EvaluateConfig, SubmissionConfig, TuneConfig)


def load_train_config(argv: Sequence[str]) -> TrainConfig:
    """The checked configuration of a training run from the arguments of `train.py`.

    `--help`, `--cfg job` and `--multirun` do their work and raise `SystemExit`.

    Raises:
        ConfigError: one line that names the key, group, choice or value and the nearest valid one.
        ValueError: every value that makes no sense, a line each.
    """
    flags, arguments = launch.split_flags(argv)
    overrides = parse(arguments)
    space = Space(schema_keys(TrainConfig), group_choices())
    lines = [checked(override, space, multirun=flags.multirun) for override in overrides]
    if flags.multirun:
        jobs = launch.sweep_jobs(overrides, lines, space)
        names = [launch.job_name(_train_object(_compose_train(job)).run_name, job, lines) for job in jobs]
        raise SystemExit(launch.run_jobs(jobs, names))
    composed = _compose_train(lines)
    if flags.help:
        help_page.show_train(composed, space.groups, chosen_groups(lines))
        raise SystemExit(0)
    if flags.cfg:
        print(OmegaConf.to_yaml(composed), end="")
        raise SystemExit(0)
    return _train_object(composed)


def load_evaluate_config(argv: Sequence[str]) -> tuple[EvaluateConfig, list[str]]:
    """The settings of `evaluate_model.py`, and the overrides for the checkpoint's configuration (`apply_overrides`)."""
    config, section_overrides = _load_over_checkpoint("evaluate", EvaluateConfig, argv)
    validate_split(config.split)
    return config, section_overrides


def load_submission_config(argv: Sequence[str]) -> tuple[SubmissionConfig, list[str]]:
    """The settings of `make_submission.py`, and the overrides for the checkpoint's configuration."""
    return _load_over_checkpoint("submission", SubmissionConfig, argv)


def load_tune_config(argv: Sequence[str]) -> tuple[TuneConfig, list[str]]:
    """The settings of `scripts/tune_decoding.py`, and the overrides for the checkpoint's configuration."""
    config, section_overrides = _load_over_checkpoint("tune", TuneConfig, argv)
    validate_tuning(config)
    return config, section_overrides


def apply_overrides(config: TrainConfig, section_overrides: Sequence[str]) -> TrainConfig:
    """A new configuration: `config`, as read from a checkpoint, with overrides merged over it.

    Group choices (`lm=bigram`) merge the values of their file, then keys (`decode.beam_size=300`) have the last word.
    Only `OVERRIDABLE_SECTIONS` can be given, because the model and its training are facts of the checkpoint.

    Raises:
        ConfigError: for any other section, and for what does not exist.
        ValueError: every value that makes no sense, a line each.
    """
    return _train_object(_merge_sections(config, section_overrides))


def _load_over_checkpoint(name: str, root: type[Root], argv: Sequence[str]) -> tuple[Root, list[str]]:
    flags, arguments = launch.split_flags(argv)
    if flags.multirun:
        raise ConfigError("--multirun is for train.py; run this script once for every setting")
    own_keys = schema_keys(root)
    own, sections = [], []
    for override in parse(arguments):
        head = override.key_or_group.split(".")[0]
        if head in own_keys:
            own.append(checked(override, Space(own_keys, {})))
        else:
            sections.append(_checked_section(override, own_keys))
    composed = composed_by_hydra(name, own, root)
    merged = _merge_sections(TrainConfig(), sections)
    if flags.help:
        groups = {group: choices for group, choices in group_choices().items() if group in OVERRIDABLE_SECTIONS}
        help_page.show_over_checkpoint(composed, merged, groups)
        raise SystemExit(0)
    if flags.cfg:
        print(OmegaConf.to_yaml(composed), end="")
        print("".join(f"# over the checkpoint's configuration: {line}\n" for line in sections), end="")
        raise SystemExit(0)
    refuse_missing(composed, root)
    config = OmegaConf.to_object(composed)
    assert isinstance(config, root)
    return config, sections


def _checked_section(override: Override, own_keys: Any) -> str:
    """An override of a checkpoint's configuration, or `ConfigError` where that is not allowed."""
    sections = ", ".join(OVERRIDABLE_SECTIONS)
    train_keys = schema_keys(TrainConfig)
    head = override.key_or_group.split(".")[0]
    if (head in train_keys or head in group_choices()) and head not in OVERRIDABLE_SECTIONS:
        raise ConfigError(
            f"{str(override.input_line)!r}: the model and its training come from the checkpoint; "
            f"sections that can be overridden: {sections}"
        )
    keys = {path: key for path, key in train_keys.items() if path.split(".")[0] in OVERRIDABLE_SECTIONS}
    groups = {group: choices for group, choices in group_choices().items() if group in OVERRIDABLE_SECTIONS}
    return checked(override, Space({**own_keys, **keys}, groups))


def _merge_sections(config: TrainConfig, section_overrides: Sequence[str]) -> DictConfig:
    lines = [_checked_section(override, {}) for override in parse(section_overrides)]
    groups = group_choices()
    choices = [f"+{line}" for line in lines if line.split("=")[0] in groups]
    keys = [line for line in lines if line.split("=")[0] not in groups]
    ConfigStore.instance().store(name=CHECKPOINT, node=config)
    return composed_by_hydra(CHECKPOINT, choices + keys, TrainConfig)


def _compose_train(lines: Sequence[str]) -> DictConfig:
    if not any(line.lstrip("~").split("=")[0] == EXPERIMENT for line in lines):
        check_defaults_list(EXPERIMENT, default_choice(EXPERIMENT))
    return composed_by_hydra("train", lines, TrainConfig)


def _train_object(composed: DictConfig) -> TrainConfig:
    refuse_missing(composed, TrainConfig)
    config = OmegaConf.to_object(composed)
    assert isinstance(config, TrainConfig)
    validate(config)
    return config
