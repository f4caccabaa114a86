"""One tiny run of train.py that the tests of this folder look at."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from command_line import call, tiny_run


@dataclass(frozen=True)
class TinyRun:
    root: Path
    run_dir: Path
    cache: Path
    output: str


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    folder = tmp_path_factory.mktemp("tiny")
    root, run_dir, cache = folder / "data", folder / "run", folder / "cache"
    done = call("train.py", *tiny_run(root, run_dir, "checkpoint.keep=9"), cache=cache)
    return TinyRun(root, run_dir, cache, done.stdout)
