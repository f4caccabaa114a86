"""Recordings to break, what may become of them, and the line that has to name it."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mode_ssm.data.t15_format import RecordedTrial, session_file, write_session_file
from mode_ssm.vocab import SIL

FEATURE_DIM = 512
SESSION, OTHER = "t15.2023.08.11", "t15.2023.08.13"
FILE = f"{SESSION}/data_train.hdf5"
Damage = Callable[[Path], None]


def write_recordings(root: Path) -> Path:
    """Two sessions, three trials in each of train and val; the third has 42 bins, 5 phonemes, and says "cab."."""
    for s, session in enumerate((SESSION, OTHER)):
        for p, split in enumerate(("train", "val")):
            rng = np.random.default_rng((s, p))
            trials = [
                RecordedTrial(
                    session=session,
                    block=p,
                    trial=i,
                    features=rng.standard_normal((40 + i, FEATURE_DIM)).astype(np.float32),
                    phonemes=np.array([1, 2, 3, 4, SIL]),
                    sentence=f"{'abc'[i]}ab.",
                )
                for i in range(3)
            ]
            write_session_file(session_file(root, session, split), trials, with_labels=True)
    return root


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_one_line(said: str, line: str, root: Path) -> None:
    """One line of what was said is `line`, in which * stands for anything; others only frame it."""
    listing = line.startswith("  ")
    pattern = re.escape(line.replace("{root}", str(root))).replace(r"\*", ".*")
    named = re.findall(rf"^{'' if listing else 'error: '}{pattern}$", said, re.MULTILINE)
    assert len(named) == 1, said
    assert "Traceback" not in said
    if listing:
        assert re.search(rf"^error: \d bad recordings? under {re.escape(str(root))}:$", said, re.MULTILINE)
        assert said.count(" trial_0002: ") == ("trial_0002" in line)
