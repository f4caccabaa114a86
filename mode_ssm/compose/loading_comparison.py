"""The command line of `scripts/compare.py`: its own settings, and the overrides of every training that it starts."""

from collections.abc import Sequence

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from mode_ssm.compose import help_page, launch
from mode_ssm.compose.composition import composed_by_hydra, refuse_missing
from mode_ssm.compose.keys import ConfigError, schema_keys
from mode_ssm.compose.overrides import EXPERIMENT, Space, checked, group_choices, parse
from mode_ssm.compose.validation_scripts import validate_comparison
from mode_ssm.config import CompareConfig, TrainConfig


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
    composed = composed_by_hydra("compare", lines, CompareConfig)
    if flags.help:
        help_page.show_comparison(composed)
        raise SystemExit(0)
    refuse_missing(composed, CompareConfig)
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
