"""Reads command-line overrides and the defaults lists of experiments, and refuses what does not exist.

Hydra reports a mistyped key only without `+`, a mistyped choice with its search path, and an override of an unknown
group without a suggestion; here each is one line before Hydra sees it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, QuotedString
from hydra.errors import HydraException

from mode_ssm.compose.keys import ConfigError, Key, did_you_mean, find_key, unknown_key

PACKAGE = Path(__file__).resolve().parent.parent
EXPERIMENT = "experiment"
_SWEEP = "is a sweep, which needs train.py --multirun; a text with commas is quoted, a list is written [a,b]"
_DEFAULT = re.compile(r"^(?:override\s+)?/?(?P<group>[\w/]+)(?:@[\w.]+)?$")


def config_folder() -> Path:
    """`configs/`: inside the installed package, else beside it in the repository."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def group_choices() -> dict[str, list[str]]:
    """{group: its choices}."""
    return {
        group.name: sorted(file.stem for file in group.glob("*.yaml"))
        for group in sorted(config_folder().iterdir())
        if group.is_dir() and not group.name.startswith((".", "_"))
    }


@dataclass(frozen=True, slots=True)
class Space:
    """What may be overridden: the keys of the schema and the groups with their choices."""

    keys: Mapping[str, Key]
    groups: Mapping[str, Sequence[str]]


def unknown_choice(group: str, choice: str, choices: Iterable[str]) -> str:
    choices = list(choices)
    return f"unknown {group} {choice!r}{did_you_mean(choice, choices) or ';'} choices: {', '.join(choices)}"


def parse(arguments: Iterable[str]) -> list[Override]:
    """Parsed overrides; raises `ConfigError` for malformed syntax and for a key that is given twice."""
    parser = OverridesParser.create()
    overrides: list[Override] = []
    for argument in arguments:
        if argument.startswith("-"):
            raise ConfigError(
                f"unknown option {argument!r}; options are --help, --cfg job and --multirun, settings are key=value"
            )
        try:
            override = parser.parse_override(argument)
        except HydraException as error:
            raise ConfigError(f"cannot read {argument!r}: {_reason(argument, error)}") from error
        if not override.key_or_group:
            raise ConfigError(f"cannot read {argument!r}: no key before '='; write key=value")
        if override.package is not None:
            raise ConfigError(f"cannot read {argument!r}: '@' has no meaning here; write group=choice or key=value")
        if any(override.key_or_group == earlier.key_or_group for earlier in overrides):
            raise ConfigError(f"{override.key_or_group!r} is given twice; give it once")
        overrides.append(override)
    return overrides


def _reason(argument: str, error: HydraException) -> str:
    """The parser's complaint without its list of tokens, and what to write."""
    if "=" not in argument:
        return "no '='; write key=value"
    lines = [line.strip() for line in str(error).splitlines()]
    reason = next(line for line in lines if not line.startswith(("Error parsing override", "See ")))
    return f"""{reason.partition(" expecting ")[0]}; write key=value, or "key='value'" with special characters"""


def _value_paths(prefix: str, value: Any) -> Iterable[str]:
    """`prefix`, and the paths of every key inside of a dictionary value."""
    yield prefix
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _value_paths(f"{prefix}.{name.text if isinstance(name, QuotedString) else name}", inner)


def checked(override: Override, space: Space, multirun: bool = False) -> str:
    """The override as Hydra shall see it; raises `ConfigError` if its key, group or choice does not exist.

    Every key of the schema exists, so `+` and `++` have nothing to add and are dropped.
    """
    key, line = override.key_or_group, str(override.input_line).lstrip("+")
    if key.split(".")[0].split("/")[0] == "hydra":
        raise ConfigError(f"{key!r}: Hydra's own settings have no effect; the run directory is run_dir")
    if key in space.groups:
        return _checked_choice(override, key, line, space.groups, multirun)
    for path in _value_paths(key, override.value()):
        if find_key(path, space.keys) is None:
            raise ConfigError(unknown_key(path, space.keys, space.groups))
    if override.is_delete():
        parent = find_key(key.rpartition(".")[0], space.keys)
        if parent is None or get_origin(parent.type) is not dict:
            raise ConfigError(f"{line!r}: a key of the schema cannot be deleted; set it to another value")
    elif override.is_sweep_override() and not multirun:
        raise ConfigError(f"{line!r} {_SWEEP}")
    return line


def _checked_choice(
    override: Override, group: str, line: str, groups: Mapping[str, Sequence[str]], multirun: bool
) -> str:
    choices = groups[group]
    if override.is_delete() or override.value() is None:
        if group != EXPERIMENT:
            raise ConfigError(f"{line!r}: {group!r} cannot be left out; choices: {', '.join(choices)}")
        return f"~{EXPERIMENT}"
    if override.is_sweep_override():
        if not multirun:
            raise ConfigError(f"{line!r} {_SWEEP}")
        values = sweep_values(override, choices)
    else:
        values = [str(override.value())]
    if isinstance(override.value(), dict | list):
        raise ConfigError(f"{line!r}: {group!r} takes one of {', '.join(choices)}; set keys as {group}.key=value")
    for value in values:
        if value not in choices:
            raise ConfigError(unknown_choice(group, value, choices))
        check_defaults_list(group, value)
    return line if override.is_sweep_override() else f"{group}={values[0]}"


def sweep_values(override: Override, choices: Sequence[str]) -> list[str]:
    """The values of a sweep as texts; of `glob(...)` the matching choices of the group."""
    if override.is_interval_sweep():
        raise ConfigError(f"{override.input_line!r}: an interval has no list of values; write range(a,b,step) or a,b,c")
    sweep = override.value()
    if isinstance(sweep, Glob):
        return list(sweep.filter(list(choices)))
    return list(override.sweep_string_iterator())


def default_choice(group: str) -> str:
    """What `train.yaml` chooses for a group."""
    entries = _defaults_list(config_folder() / "train.yaml", config_folder())
    return next(str(entry[group]) for entry in entries if isinstance(entry, dict) and group in entry)


def _defaults_list(file: Path, folder: Path) -> list[str | dict[str, str | None]]:
    try:
        with file.open(encoding="utf-8") as stream:
            content = yaml.safe_load(stream)
    except yaml.YAMLError as error:
        raise ConfigError(malformed_yaml(error, folder)) from error
    return content.get("defaults", []) if isinstance(content, dict) else []


def check_defaults_list(group: str, choice: str) -> None:
    """Raise `ConfigError` if a file, or one that it builds on, asks for a group or a choice that does not exist."""
    folder, groups = config_folder(), group_choices()
    name = f"{folder.name}/{group}/{choice}.yaml"
    for entry in _defaults_list(folder / group / f"{choice}.yaml", folder):
        if isinstance(entry, dict):
            ((target, value),) = entry.items()
            match = _DEFAULT.match(str(target))
            other = match["group"] if match else str(target)
        else:
            other, value = group, entry
        if other not in groups:
            raise ConfigError(f"{name}: unknown group {other!r}{did_you_mean(other, groups)}")
        if value is None or value == "_self_":
            continue
        if value not in groups[other]:
            raise ConfigError(f"{name}: {unknown_choice(other, str(value), groups[other])}")
        check_defaults_list(other, value)


def malformed_yaml(error: yaml.YAMLError, folder: Path) -> str:
    """One line for a file that is not YAML."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"malformed YAML: {' '.join(str(error).split())}"
    mark = error.problem_mark
    place = Path(mark.name)
    shown = f"{folder.name}/{place.relative_to(folder)}" if place.is_relative_to(folder) else place.name
    return f"{shown}:{mark.line + 1}: malformed YAML: {error.problem}"
