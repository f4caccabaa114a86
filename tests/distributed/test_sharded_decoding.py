"""Two gloo processes decode or validate a split together: results and order of one process, and one stop for both."""

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mode_ssm.compose import load_train_config, run_main
from mode_ssm.config import ParallelConfig, TrainConfig
from mode_ssm.data.batch import TrialInfo
from mode_ssm.data.simulator import simulate
from mode_ssm.metrics import ErrorRate
from mode_ssm.tasks.choice import build_task
from mode_ssm.tasks.decoding import DecodedTrial, decode_trials
from mode_ssm.tasks.evaluation import evaluate_split
from mode_ssm.tasks.transcription import TranscriptionTask, build_model
from mode_ssm.tasks.transcription_data import TranscriptionData
from mode_ssm.tasks.word_decoder import build_word_decoding
from mode_ssm.train.distributed import Distributed, RankError, joined

SMALL = [
    "model.d_model=16", "model.stem.projection=16", "model.session_adapter=projection", "model.encoder.n_layers=1",
    "model.encoder.d_state=8", "model.encoder.headdim=8", "model.encoder.expand=1", "model.denoiser.hidden=16",
    "model.heads.d_joint=16", "data.eval_batch_size=2", "decode.beam_size=10", "decode.nbest=3",
    "decode.rnnt_beam_size=2", "adapt.steps=2", "adapt.lr=0.01",
]  # fmt: skip
FEW = {"three trials": 3, "one trial": 1, "all": 18}
TRANSDUCER_BY_CORPUS = ["decode.search=rnnt", "lm.corpora=[{0}/half.txt,{0}/other.txt]"]
VALIDATED = {
    "both heads": [],
    "fewer batches than ranks": ["data.eval_batch_size=100"],
    "CTC alone": ["model=gru_baseline", "model.gru.hidden=16", "model.gru.n_layers=2", "curriculum=one_stage"],
    "text": [
        "experiment=lm_small", "text.train=[{0}/half.txt]", "text.valid=[{0}/other.txt]", "text.tokens_per_batch=20",
        "language_model.d_model=16", "language_model.n_layers=1", "language_model.d_hidden=32",
    ],
}  # fmt: skip


def configured(root: str, *overrides: str) -> TrainConfig:
    given = {override.split("=")[0]: override.format(root) for override in [*SMALL, *overrides]}
    return load_train_config([f"data.root={root}", *given.values()])


def decode_everything(root: str, ranks: Distributed) -> dict[str, Any]:
    """What every case finds, on two sessions; both heads are untrained, so that nothing is decided clearly."""
    config = configured(root)
    data = TranscriptionData.open(config.data, 0, progress=False)
    torch.manual_seed(0)
    model = build_model(config, len(data.sessions), len(data.blocks()))
    words = build_word_decoding(config, data, None, model)
    trials = data.trials("train")[::-1]
    few = {"three trials": [trials[0], trials[-1], trials[1]], "one trial": trials[:1], "all": trials}
    found: dict[str, Any] = {
        (name, tta): decode_trials(
            model, data, some, config.decode, words, ranks, adapt=config.adapt if tta else None, progress=False
        )
        for name, some in few.items()
        for tta in (False, True)
    }
    by_corpus = configured(root, *TRANSDUCER_BY_CORPUS)
    words = build_word_decoding(by_corpus, data, None, model)
    found["by corpus"], _ = decode_trials(model, data, trials, by_corpus.decode, words, ranks, progress=False)
    found["evaluation"] = evaluate_split(model, data, "train", config, ranks, tta=True, progress=False).summary
    return found


def validate_everything(root: str, ranks: Distributed) -> dict[str, Any]:
    """What training sees of every kind of task, and how a validation ends of which the last rank fails."""

    class Failing(TranscriptionTask):
        def _greedy_errors(self, trials: Sequence[TrialInfo]) -> tuple[ErrorRate, ErrorRate]:
            if ranks.rank == ranks.world_size - 1:
                raise OSError("a disk is gone")
            return super()._greedy_errors(trials)

    found: dict[str, Any] = {}
    for name, overrides in VALIDATED.items():
        task = build_task(configured(root, *overrides), ranks.device, progress=False)
        task.setup()
        task.model.eval()
        found[name] = task.evaluate(ranks)
    failing = Failing(configured(root), ranks.device, progress=False)
    failing.setup()
    try:
        failing.evaluate(ranks)
    except (OSError, RankError) as error:
        found["failure"] = repr(error)
    return found


def rank_main() -> None:
    root, output = sys.argv[1:]
    with joined(ParallelConfig(device="cpu", threads=1)) as distributed:
        Path(f"{output}{distributed.rank}").write_bytes(
            pickle.dumps(decode_everything(root, distributed) | {"validation": validate_everything(root, distributed)})
        )
        data = TranscriptionData.open(configured(root).data, 0, progress=False)
        distributed.together(lambda: data.trials(("train", "none")[distributed.rank]))  # rank 1 fails at the end


def start(world_size: int, root: Path, output: Path) -> list[subprocess.Popen[str]]:
    """The ranks, started as torchrun would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    size = str(world_size)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    return [
        subprocess.Popen(
            [sys.executable, __file__, str(root), str(output)],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in map(str, range(world_size))
    ]


@dataclass(frozen=True)
class Runs:
    """What one process found, what each of two found, and how the two ended: exit code and stderr."""

    alone: dict[Any, Any]
    ranks: list[dict[Any, Any]]
    ends: list[tuple[int, str]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("sharded")
    simulate(folder / "tiny", "tiny", 0, progress=False)
    sentences = Path(folder / "tiny" / "lexicon.txt").read_text().split("\n")
    words = [line.split()[0] for line in sentences if line.strip() and line[0].isalpha()]
    (folder / "tiny" / "half.txt").write_text("\n".join(words[::2]))
    (folder / "tiny" / "other.txt").write_text("\n".join(words[1::2]))
    processes = start(1, folder / "tiny", folder / "alone") + start(2, folder / "tiny", folder / "rank")
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    ends = [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]
    files = [folder / name for name in ("alone0", "rank0", "rank1")]
    assert all(file.exists() for file in files), ends
    alone, *ranks = (pickle.loads(file.read_bytes()) for file in files)
    return Runs(alone, ranks, ends[1:])


def assert_same(found: dict[str, DecodedTrial], expected: dict[str, DecodedTrial]) -> None:
    assert list(found) == list(expected)
    for name, trial in expected.items():
        for field in ("info", "mode_posterior", "ctc_phonemes", "rnnt_phonemes", "phonemes", "nbest", "words"):
            assert getattr(found[name], field) == getattr(trial, field), (name, field)
        np.testing.assert_array_equal(found[name].log_probs, trial.log_probs)


@pytest.mark.parametrize("tta", [False, True], ids=["plain", "adapted"])
@pytest.mark.parametrize("name", FEW)
def test_two_ranks_find_what_one_process_finds_in_its_order(name: str, tta: bool, runs: Runs) -> None:
    expected, adaptations = runs.alone[name, tta]
    assert len(expected) == FEW[name]
    for found in runs.ranks:
        decoded, adaptations_found = found[name, tta]
        assert_same(decoded, expected)
        assert list(adaptations_found.items()) == list(adaptations.items())
    assert bool(adaptations) == tta


def test_the_sentences_of_a_block_tell_their_corpus_over_ranks(runs: Runs) -> None:
    for found in runs.ranks:
        assert_same(found["by corpus"], runs.alone["by corpus"])
    moved = [
        name
        for name, trial in runs.alone["by corpus"].items()
        if trial.nbest != runs.alone["all", False][0][name].nbest
    ]
    assert len(moved) > 5


def test_the_summary_of_two_ranks_is_that_of_one_process(runs: Runs) -> None:
    assert [found["evaluation"] for found in runs.ranks] == [runs.alone["evaluation"]] * 2


@pytest.mark.parametrize("name", VALIDATED)
def test_validation_during_training_gives_every_rank_the_figures_of_one_process(name: str, runs: Runs) -> None:
    expected = runs.alone["validation"][name]
    assert all(0 < value < float("inf") for value in expected.values())
    assert [found["validation"][name] for found in runs.ranks] == [expected] * 2


def test_if_one_rank_fails_to_validate_the_others_stop_waiting(runs: Runs) -> None:
    failures = [found["validation"]["failure"] for found in runs.ranks]
    assert failures == ["RankError('rank 1 stopped: a disk is gone')", "OSError('a disk is gone')"]


def test_if_one_rank_fails_it_says_why_and_both_end_with_code_2(runs: Runs) -> None:
    (code0, errors0), (code1, errors1) = runs.ends
    assert (code0, code1) == (2, 2)
    assert errors0 == ""
    assert len(errors1.splitlines()) == 1
    assert errors1.startswith("error: split=none holds no trials under data.root=")


if __name__ == "__main__":
    run_main(rank_main)
