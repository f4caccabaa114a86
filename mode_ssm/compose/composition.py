"""A configuration is composed by Hydra from `configs/` over the schema, and what Hydra refuses is said in one line.

Nothing is changed for the process: no working directory, no logging set-up, no `outputs/` folder.
"""

import re
from collections.abc import Sequence

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    OmegaConfBaseException,
    ValidationError,
)

from mode_ssm.compose.keys import ConfigError, did_you_mean, find_key, schema_keys, unknown_key, wrong_value
from mode_ssm.compose.overrides import config_folder, group_choices, malformed_yaml, unknown_choice
from mode_ssm.config import CompareConfig, EvaluateConfig, SubmissionConfig, TrainConfig, TuneConfig

CHECKPOINT = "checkpoint_config"  # name under which a checkpoint's configuration is composed upon


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


def composed_by_hydra(name: str, lines: Sequence[str], root: type) -> DictConfig:
    """`configs/<name>.yaml`, or what is stored as `name`, with the overrides `lines`; interpolations are resolved.

    root: its class in the schema, for messages. Raises `ConfigError`.
    """
    register_schema()
    try:
        with initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
            composed = compose(name, overrides=list(lines))
            OmegaConf.resolve(composed)
            return composed
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(_in_one_line(error, lines, root)) from error


def chosen_groups(lines: Sequence[str]) -> dict[str, str]:
    """{group: choice} after the defaults of train.yaml, the experiment and the command line."""
    with initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
        return dict(compose("train", overrides=list(lines), return_hydra_config=True).hydra.runtime.choices)


def refuse_missing(composed: DictConfig, root: type) -> None:
    """Raise `ConfigError` for a key that has no default and was not given."""
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
    where = f"{config_folder().name}/{file[1]}.yaml: " if file and file[1] != CHECKPOINT else ""
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
    phases = list(composed_by_hydra("train", choices, TrainConfig).curriculum.phases)
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
