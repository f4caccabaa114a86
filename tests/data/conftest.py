"""Small T15-format datasets, and a cache folder that is not the user's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mode_ssm.data.batch import TrialInfo
from mode_ssm.data.t15_format import RecordedTrial, session_file, write_session_file
from mode_ssm.vocab import SIL

WORDS = ("add", "bone", "cat", "dog", "each", "fish", "gone", "hat")
FEATURE_DIM = 4

Counts = dict[str, dict[str, int]]  # session -> split -> trials
WriteDataset = Callable[[Path, Counts], Path]
MakeInfo = Callable[..., TrialInfo]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def write_dataset() -> WriteDataset:
    """Writes `counts[session][split]` trials: 40-120 bins, 4 features, 2-5 phonemes; no two sentences alike."""

    def write(root: Path, counts: Counts) -> Path:
        for s, (session, by_split) in enumerate(sorted(counts.items())):
            for p, (split, number) in enumerate(sorted(by_split.items())):
                rng = np.random.default_rng((s, p))
                trials = [
                    RecordedTrial(
                        session=session,
                        block=p * 10 + i // 4,
                        trial=i % 4,
                        features=rng.standard_normal((int(rng.integers(40, 121)), FEATURE_DIM)).astype(np.float32),
                        phonemes=np.append(rng.integers(1, 41, size=int(rng.integers(2, 6)))[:-1], SIL),
                        sentence=f"{WORDS[s]} {WORDS[p]} {'ab' * i} {WORDS[i % 8]}.",
                    )
                    for i in range(number)
                ]
                write_session_file(session_file(root, session, split), trials, with_labels=split != "test")
        return root

    return write


@pytest.fixture
def make_info() -> MakeInfo:
    """A `TrialInfo` with plain defaults; number tells trials apart."""

    def make(number: int = 0, **changes: object) -> TrialInfo:
        values: dict[str, object] = {
            "session": "t15.2023.08.11",
            "split": "train",
            "block": 1,
            "trial": number,
            "path": "",
            "key": f"trial_{number:04d}",
            "num_bins": 100,
            "num_phonemes": 10,
            "sentence": f"sentence {number}",
        }
        return TrialInfo(**{**values, **changes})  # type: ignore[arg-type]

    return make
