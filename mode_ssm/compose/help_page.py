"""The text of `--help`: groups with their choices, every key with its value and meaning, examples."""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from mode_ssm.compose.keys import ANY_NAME, Key, expected, find_key, schema_keys
from mode_ssm.config import (
    OVERRIDABLE_SECTIONS,
    EvaluateConfig,
    PhaseConfig,
    SubmissionConfig,
    TrainConfig,
    TuneConfig,
)

_PHASES = "curriculum.phases"

_TRAIN_USAGE = """\
Train a model, evaluate it, write the report.

  uv run train.py [group=choice ...] [key=value ...]

  --cfg job       print the composed configuration and stop
  --multirun, -m  run comma-separated values one after the other, each in a run directory of its own
  --help, -h      this page; with overrides it shows their values
"""
_TRAIN_EXAMPLES = """\
Examples
  uv run train.py                                             the quickstart
  uv run train.py resume=true                                 continue it
  uv run train.py experiment=t15_mode_ssm data.root=/data/t15
  uv run train.py model.encoder.n_layers=4 run_name=shallow
  uv run train.py curriculum.phases.joint.epochs=30 parallel=cpu
  uv run train.py ~curriculum.phases.flow_bridge run_name=no_bridge
  uv run train.py -m optim.lr=1e-3,2e-3
"""
_CHECKPOINT_USAGE = """\
Run a trained model; the model and its training come from the checkpoint.

  uv run {script} checkpoint=runs/quickstart/best [key=value ...] [group=choice ...]

  --cfg job   print the composed settings and stop
  --help, -h  this page
"""
_COMPARISON_USAGE = """\
Train several experiments with several seeds on one dataset, and write one table. Every further key or group is an
override of all trainings, as `train.py --help` lists them.

  uv run scripts/compare.py experiments=[sim_mode_ssm,sim_gru_baseline] [key=value ...] [group=choice ...]

  settings.<row>='["key=value",...]'  overrides of one row; a row that is no experiment names its own, "experiment=..."
  tune_lr.<row>=[1e-3,3e-3]           learning rates that are tried with the first seed, chosen by PER on val

  --cfg job   print the composed settings and the overrides of every row, and stop
  --help, -h  this page
"""
_SCRIPTS: Mapping[Any, str] = {
    EvaluateConfig: "evaluate_model.py",
    SubmissionConfig: "make_submission.py",
    TuneConfig: "scripts/tune_decoding.py",
}


def show_train(composed: DictConfig, groups: Mapping[str, Sequence[str]], chosen: Mapping[str, str]) -> None:
    print(_TRAIN_USAGE)
    print(_groups(groups, chosen))
    print("Keys, with the values of this configuration\n" + _keys(composed, TrainConfig))
    print(_TRAIN_EXAMPLES, end="")


def show_over_checkpoint(composed: DictConfig, sections: DictConfig, groups: Mapping[str, Sequence[str]]) -> None:
    root = OmegaConf.get_type(composed)
    print(_CHECKPOINT_USAGE.format(script=_SCRIPTS[root]))
    print("Keys\n" + _keys(composed, root))
    print("Over the checkpoint's configuration\n" + _groups(groups, {}))
    print("  Keys, with the defaults of the schema; the checkpoint has its own")
    print(_keys(OmegaConf.masked_copy(sections, list(OVERRIDABLE_SECTIONS)), TrainConfig), end="")


def show_comparison(composed: DictConfig) -> None:
    print(_COMPARISON_USAGE)
    print("Keys\n" + _keys(composed, OmegaConf.get_type(composed)), end="")


def _groups(groups: Mapping[str, Sequence[str]], chosen: Mapping[str, str]) -> str:
    width = max(map(len, groups))
    marked = {
        group: [f"{choice}*" if chosen.get(group) == choice else choice for choice in choices]
        for group, choices in groups.items()
    }
    rows = [f"  {group:<{width}}  {'  '.join(choices)}" for group, choices in marked.items()]
    return "Groups (group=choice" + ("; * is chosen here)" if chosen else ")") + "\n" + "\n".join(rows) + "\n"


def _keys(composed: DictConfig, root: Any) -> str:
    """A row for every key. Of a phase only what it changes: the keys that every phase has follow once."""
    keys = schema_keys(root)
    default = OmegaConf.create({"phase": OmegaConf.structured(PhaseConfig)}).phase
    usual = {f"{_PHASES}.{ANY_NAME}.{path}": value for path, value in _leaves(default, "")}
    rows = []
    for path, value in _leaves(composed, ""):
        key = find_key(path, keys)
        assert key is not None
        if usual.get(key.path) != value:
            rows.append((f"{path}={value}", key))
    if "curriculum" in composed:
        rows += [(f"{path.replace(ANY_NAME, '<phase>')}={value}", keys[path]) for path, value in usual.items()]
    return "".join(f"  {setting:<48}  {_note(key)}".rstrip() + "\n" for setting, key in rows)


def _note(key: Key) -> str:
    choices = expected(key.type)
    return "; ".join(filter(None, [key.comment, choices if choices.startswith("one of") else ""]))


def _leaves(node: DictConfig, prefix: str) -> list[tuple[str, str]]:
    leaves = []
    for name in node:
        path = f"{prefix}{name!s}"
        if OmegaConf.is_missing(node, name):
            leaves.append((path, "???"))
        elif isinstance(node[name], DictConfig):
            leaves += _leaves(node[name], f"{path}.")
        else:
            leaves.append((path, _shown(node[name])))
    return leaves


def _shown(value: Any) -> str:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, ListConfig):
        return "[" + ",".join(map(str, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
