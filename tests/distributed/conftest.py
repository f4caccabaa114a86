"""The toy task of the trainer's tests, for processes that train together."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
