"""Command line -> typed configuration, by Hydra's compose API over the schema in `mode_ssm.config`.

Nothing is changed for the process: no working directory, no logging set-up, no `outputs/` folder.
"""

import re
from collections.abc import Sequence
from typing import Any, TypeVar

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    OmegaConfBaseException,
    ValidationError,
)

from mode_ssm.compose import help_page, launch
from mode_ssm.compose.keys import ConfigError, did_you_mean, find_key, schema_keys, unknown_key, wrong_value
from mode_ssm.compose.overrides import (
    EXPERIMENT,
    Space,
    check_defaults_list,
    checked,
    config_folder,
    default_choice,
    group_choices,
    malformed_yaml,
    parse,
    unknown_choice,
)
from mode_ssm.compose.validation import validate, validate_comparison, validate_split, validate_tuning
from mode_ssm.config import (
    OVERRIDABLE_SECTIONS,
    CompareConfig,
    EvaluateConfig,
    SubmissionConfig,
    TrainConfig,
    TuneConfig,
)

_CHECKPOINT = "checkpoint_config"  # name under which a checkpoint's configuration is composed upon
Root = TypeVar("Root", EvaluateConfig, SubmissionConfig, TuneConfig)


def register_schema() -> None:
    """Tell Hydra the types behind the files that lie in `configs/` itself."""
    store = ConfigStore.instance()
    roots = {
        "train": TrainConfig,
        "evaluate": EvaluateConfig,
        "submission": SubmissionConfig,
        "tune": TuneConfig,
        "compare": CompareConfig,
    }
    for name, node in roots.items():
        store.store(name=f"{name}_schema", node=node)


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
        help_page.show_train(composed, space.groups, _chosen(lines))
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


def load_compare_config(argv: Sequence[str]) -> tuple[CompareConfig, dict[str, list[str]]]:
    """The settings of `scripts/compare.py`, and the overrides of train.py for each row of its table.

    A row has those given to all and over them its own. Raises as `load_train_config`, and for keys that the comparison
    gives to every run itself.
    """
    flags, arguments = launch.split_flags(argv)
    if flags.multirun:
        raise ConfigError("--multirun is for train.py; experiments=[...] and seeds=[...] say what is compared")
    own_keys = schema_keys(CompareConfig)
    overrides = parse(arguments)
    own = [o for o in overrides if o.key_or_group.split(".")[0] in own_keys]
    lines = [checked(override, Space(own_keys, {})) for override in own]
    # Rows are names that the schema does not know: what holds them is added to.
    lines = [f"++{line}" if line.startswith(("settings", "tune_lr")) else line for line in lines]
    composed = _composed("compare", lines, CompareConfig)
    if flags.help:
        help_page.show_comparison(composed)
        raise SystemExit(0)
    _refuse_missing(composed, CompareConfig)
    config = OmegaConf.to_object(composed)
    assert isinstance(config, CompareConfig)
    validate_comparison(config)
    rows = {row: _row_overrides(row, config, [o for o in overrides if o not in own]) for row in config.experiments}
    if flags.cfg:
        print(OmegaConf.to_yaml(composed), end="")
        print("".join(f"# {row}: train.py {' '.join(lines)}\n" for row, lines in rows.items()), end="")
        raise SystemExit(0)
    return config, rows


def _row_overrides(row: str, config: CompareConfig, shared: Sequence[Override]) -> list[str]:
    settings = parse(config.settings.get(row, []))
    given = {override.key_or_group for override in settings}
    space = Space(schema_keys(TrainConfig), group_choices())
    for override in (*shared, *settings):
        key = override.key_or_group
        if key in ("seed", "run_name", "run_dir", "resume", "overwrite", "report_test"):
            raise ConfigError(f"{override.input_line!r}: the comparison sets {key} of every run itself")
        if key == "optim.lr" and row in config.tune_lr:
            raise ConfigError(f"{override.input_line!r}: tune_lr chooses the learning rate of {row}")
    if any(override.key_or_group == EXPERIMENT for override in shared):
        raise ConfigError("experiment=... is one training; write experiments=[...]")
    kept = [override for override in shared if override.key_or_group not in given]
    named = [] if EXPERIMENT in given else parse([f"{EXPERIMENT}={row}"])
    return [checked(override, space) for override in (*named, *kept, *settings)]


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
    composed = _composed(name, own, root)
    merged = _merge_sections(TrainConfig(), sections)
    if flags.help:
        groups = {group: choices for group, choices in group_choices().items() if group in OVERRIDABLE_SECTIONS}
        help_page.show_over_checkpoint(composed, merged, groups)
        raise SystemExit(0)
    if flags.cfg:
        print(OmegaConf.to_yaml(composed), end="")
        print("".join(f"# over the checkpoint's configuration: {line}\n" for line in sections), end="")
        raise SystemExit(0)
    _refuse_missing(composed, root)
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
    ConfigStore.instance().store(name=_CHECKPOINT, node=config)
    return _composed(_CHECKPOINT, choices + keys, TrainConfig)


def _chosen(lines: Sequence[str]) -> dict[str, str]:
    """{group: choice} after the defaults of train.yaml, the experiment and the command line."""
    with initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
        return dict(compose("train", overrides=list(lines), return_hydra_config=True).hydra.runtime.choices)


def _compose_train(lines: Sequence[str]) -> DictConfig:
    if not any(line.lstrip("~").split("=")[0] == EXPERIMENT for line in lines):
        check_defaults_list(EXPERIMENT, default_choice(EXPERIMENT))
    return _composed("train", lines, TrainConfig)


def _composed(name: str, lines: Sequence[str], root: type) -> DictConfig:
    register_schema()
    try:
        with initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
            composed = compose(name, overrides=list(lines))
            OmegaConf.resolve(composed)
            return composed
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(_in_one_line(error, lines, root)) from error


def _train_object(composed: DictConfig) -> TrainConfig:
    _refuse_missing(composed, TrainConfig)
    config = OmegaConf.to_object(composed)
    assert isinstance(config, TrainConfig)
    validate(config)
    return config


def _refuse_missing(composed: DictConfig, root: type) -> None:
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        key = find_key(missing[0], schema_keys(root))
        meaning = f" ({key.comment})" if key and key.comment else ""
        more = f"; also missing: {', '.join(missing[1:])}" if missing[1:] else ""
        raise ConfigError(f"missing value for {missing[0]!r}{meaning}; give {missing[0]}=...{more}")


def _in_one_line(error: Exception, lines: Sequence[str], root: type) -> str:
    """What Hydra or OmegaConf found wrong, with the file it stands in and the nearest valid key or value."""
    if isinstance(error, yaml.YAMLError):
        return malformed_yaml(error, config_folder())
    text = str(error)
    file = re.match(r"In '(.+?)'", text)
    where = f"{config_folder().name}/{file[1]}.yaml: " if file and file[1] != _CHECKPOINT else ""
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    keys = schema_keys(root)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return where + unknown_choice(group, choice, error.options)
    if isinstance(cause, InterpolationKeyError) and (name := re.search(r"'(.+?)'", str(cause))):
        return f"${{{name[1]}}} refers to nothing: {unknown_key(name[1], keys)}"
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        key = cause.full_key
        if isinstance(cause, ConfigKeyError | ConfigAttributeError):
            return where + _unknown_name(key, lines, root)
        if isinstance(cause, ValidationError):
            return where + wrong_value(key, _refused_value(key, str(cause), lines), keys)
        return f"{where}{key}: {str(cause).splitlines()[0]}"
    deleted = re.fullmatch(r"Could not delete from config. '(.+)' does not exist.", text)
    if deleted:
        return _unknown_name(deleted[1], lines, root)
    return where + "; ".join(line.strip() for line in text.splitlines() if line.strip())


def _unknown_name(key: str, lines: Sequence[str], root: type) -> str:
    """A key that composition refused: foreign to the schema, or a phase that this curriculum has not."""
    keys = schema_keys(root)
    if find_key(key, keys) is None:
        return unknown_key(key, keys)
    return _unknown_phase(key.rpartition(".")[2], lines)


def _unknown_phase(phase: str, lines: Sequence[str]) -> str:
    groups = group_choices()
    choices = [line for line in lines if line.split("=")[0].lstrip("~") in groups]
    phases = list(_composed("train", choices, TrainConfig).curriculum.phases)
    return (
        f"unknown phase {phase!r}{did_you_mean(phase, phases) or ';'} phases here: {', '.join(phases)}; "
        "a new phase needs a file in configs/curriculum"
    )


def _refused_value(key: str, reason: str, lines: Sequence[str]) -> str:
    for line in lines:
        if line.startswith(f"{key}="):
            return line.partition("=")[2]
    if "is not Optional" in reason:
        return "null"
    first = reason.splitlines()[0]
    match = re.search(r"[Vv]alue:? '?(.*?)'?(?: of type| is not a| \(\w+\) is incompatible|, expected|$)", first)
    return match[1] if match else first
