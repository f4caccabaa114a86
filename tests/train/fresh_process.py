"""Run the toy in processes of their own and compare what they leave behind.

A fork server that has imported torch and nothing else of a run starts them: they share no state with the tests or with
each other, and do not pay for the import again.
"""

import json
import multiprocessing
import os
import sys
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from mode_ssm.train.checkpoint import latest_checkpoint, load_checkpoint

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["torch._dynamo", "torch.nn.parallel", "mode_ssm.train.trainer"])


@dataclass
class Run:
    process: BaseProcess
    errors: Path

    def finish(self) -> tuple[int, str]:
        """(exit code, what it wrote to stderr); the code of a killed process is minus its signal"""
        self.process.join(timeout=120)
        assert self.process.exitcode is not None, f"still running: {self.errors.read_text()}"
        return self.process.exitcode, self.errors.read_text()


def start(run_dir: Path, *arguments: str, environment: dict[str, str] | None = None) -> Run:
    rank = (environment or {}).get("RANK", "0")
    errors = run_dir.with_name(f"{run_dir.name}_rank{rank}.stderr")
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    process = _SERVER.Process(target=_toy, args=([str(run_dir), *arguments], environment or {}, str(errors)))
    process.start()
    return Run(process, errors)


def _toy(arguments: list[str], environment: dict[str, str], errors: str) -> None:
    descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    sys.argv = ["toy_run", *arguments]
    from toy_run import main

    main()


def metric_lines(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without the two entries that a clock writes."""
    lines = [json.loads(text) for text in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "trials_per_second")} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    """Parameters, optimizer, generators, history and log agree to the bit."""
    a, b = (load_checkpoint(latest_checkpoint(run) or run) for run in (one, other))
    assert a.path.name == b.path.name
    assert_equal(a.weights(), b.weights())
    assert_equal(a.optimizer_state(), b.optimizer_state())
    for rank in range(a.state["world_size"]):
        assert_equal(a.rng_state(rank), b.rng_state(rank))
    assert a.state["loop"] | {"seconds": 0} == b.state["loop"] | {"seconds": 0}
    assert metric_lines(one) == metric_lines(other)
    assert (one / "best").readlink() == (other / "best").readlink()
    names = [sorted(p.name for p in (run / "checkpoints").iterdir()) for run in (one, other)]
    assert names[0] == names[1]


def assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b
