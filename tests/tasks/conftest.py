"""The tiny model of the transcription task's tests, importable by name."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny_model import build_model

from mode_ssm.models.mode_ssm import MODE_SSM


@pytest.fixture
def model() -> MODE_SSM:
    return build_model()
