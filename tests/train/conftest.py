"""The toy task lies beside the tests and also runs as a script in fresh processes: a plain module on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
