"""Imports point one way: a room knows the rooms below it, never its neighbours or those above."""

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "mode_ssm"
LAYERS = (
    ("config", "vocab"),
    ("metrics", "ops"),
    ("data", "models", "lm"),
    ("decode", "adapt"),
    ("tasks",),
    ("train",),
    ("compose", "submission", "report"),
    ("inference", "export"),
)
# Beyond the order of the layers: composing a configuration needs the schema and nothing else.
ONLY = {"compose": {"config"}}


def room_of(module: str) -> str:
    """`mode_ssm.data.batch` -> `data`; a file beside the rooms such as `report_page.py` belongs to `report`."""
    name = module.split(".")[1]
    rooms = [room for layer in LAYERS for room in layer]
    if name in rooms:
        return name
    return next((room for room in rooms if name.startswith(f"{room}_")), name)


def imported_modules(tree: ast.AST, module: str, is_package: bool) -> Iterable[str]:
    """Absolute names of all that a file imports, inside of functions and type-checking blocks too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ""
            if node.level:
                parts = module.split(".")
                base = ".".join(parts[: len(parts) - node.level + is_package])
            name = ".".join(filter(None, [base, node.module]))
            yield from ([name] if name != PACKAGE else (f"{name}.{alias.name}" for alias in node.names))


def violations(folder: Path) -> list[str]:
    """Imports inside of the package at `folder` that do not point downwards, and rooms that no layer has."""
    level = {room: number for number, layer in enumerate(LAYERS) for room in layer}
    found = []
    for file in sorted(folder.rglob("*.py")):
        relative = file.relative_to(folder.parent)
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        if module == PACKAGE:
            continue
        room = room_of(module)
        if room not in level:
            found.append(f"{relative}: {room!r} stands in no layer of this test")
            continue
        for imported in imported_modules(ast.parse(file.read_text()), module, file.name == "__init__.py"):
            if imported.split(".")[0] != PACKAGE or imported == PACKAGE:
                continue
            other = room_of(imported)
            allowed = ONLY.get(room, {name for name in level if level[name] < level[room]})
            if other != room and other not in allowed:
                found.append(f"{relative} imports {imported}: {room} may import {', '.join(sorted(allowed)) or 'none'}")
    return found


def test_imports_point_one_way():
    assert violations(ROOT / PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "source", "violation"),
    [
        ("data/batch.py", "from mode_ssm.models.mamba import Mamba", "mode_ssm.models.mamba: data may import"),
        ("data/batch.py", "import mode_ssm.train.trainer", "mode_ssm.train.trainer: data may import"),
        ("data/batch.py", "from mode_ssm import models", "mode_ssm.models: data may import"),
        ("data/batch.py", "from ..models import mamba", "mode_ssm.models: data may import"),
        ("data/__init__.py", "from ..lm.ngram import NGram", "mode_ssm.lm.ngram: data may import"),
        ("data/batch.py", "def f():\n    from mode_ssm.tasks import task", "mode_ssm.tasks: data may import"),
        ("ops/ssd.py", "from mode_ssm.metrics import align", "mode_ssm.metrics: ops may import config, vocab"),
        ("config/model.py", "from mode_ssm.vocab import BLANK", "mode_ssm.vocab: config may import none"),
        ("compose/loading.py", "from mode_ssm.train import trainer", "mode_ssm.train: compose may import config"),
        ("report_page.py", "from mode_ssm.submission import write", "mode_ssm.submission: report may import"),
        ("helpers/misc.py", "import math", "'helpers' stands in no layer of this test"),
    ],
)
def test_a_violation_is_found(tmp_path, file, source, violation):
    path = tmp_path / PACKAGE / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    (found,) = violations(tmp_path / PACKAGE)
    assert violation in found


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("data/batch.py", "from mode_ssm.config import DataConfig\nfrom mode_ssm.data.sampler import S\nimport torch"),
        ("data/batch.py", "from .t15_format import NAME\nfrom ..config import DataConfig"),
        ("data/__init__.py", "from .batch import Batch"),
        ("config/roots.py", "from mode_ssm.config.data import DataConfig"),
        ("train/trainer.py", "from mode_ssm.tasks.task import Task\nfrom mode_ssm.ops import ssd"),
        ("report.py", "from mode_ssm.report_page import page\nfrom mode_ssm.train import logger"),
    ],
)  # fmt: skip
def test_an_import_downwards_or_of_the_same_room_is_fine(tmp_path, file, source):
    path = tmp_path / PACKAGE / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    assert violations(tmp_path / PACKAGE) == []
