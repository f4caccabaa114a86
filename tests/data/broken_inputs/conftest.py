"""A folder to break, and what is said of it; `broken_recordings` is importable by name."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from broken_recordings import FEATURE_DIM, write_recordings

from mode_ssm.compose import run_main
from mode_ssm.data.index import build_index
from scripts import prepare_data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_recordings(tmp_path / "data")


@pytest.fixture
def index_error(capsys: pytest.CaptureFixture[str]) -> Callable[[Path], str]:
    """What an entry script says of a folder whose index cannot be built; exit code 2."""

    def call(root: Path) -> str:
        with pytest.raises(SystemExit) as stop:
            run_main(lambda: build_index(root, feature_dim=FEATURE_DIM, progress=False))
        assert stop.value.code == 2
        return capsys.readouterr().err

    return call


@pytest.fixture
def prepare_error(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What the preparation says of a folder that it refuses; exit code 2."""

    def call(root: Path, output: Path, *more: str) -> str:
        command = ["--root", str(root), "--output", str(output), "--processes", "1", *more]
        with pytest.raises(SystemExit) as stop:
            run_main(lambda: prepare_data.main(command))
        assert stop.value.code == 2
        return capsys.readouterr().err

    return call
