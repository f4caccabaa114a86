"""Where the tests run the kernels: on the GPU if there is one, else in a process whose Triton interprets them.

A process of its own, because `TRITON_INTERPRET` is read while triton is imported and would then hold for everything
else in the test process that compiles with Triton.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]

Run = Callable[..., Any]


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Run]:
    """`interpreted(function, *arguments)` calls an importable function where kernels are interpreted."""
    with mock.patch.dict(os.environ, TRITON_INTERPRET="1"):
        pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,))
        pool.submit(abs, 0).result()  # the process starts with the first call, while the variable stands
    yield lambda function, *arguments: pool.submit(function, *arguments).result()
    pool.shutdown()


@pytest.fixture(scope="session")
def run(request: pytest.FixtureRequest) -> Run:
    """`run(function, *arguments)` calls a function of tensors where kernels can run; results come back to the CPU."""
    if not torch.cuda.is_available():
        return request.getfixturevalue("interpreted")

    def on_gpu(function: Run, *arguments: Any) -> Any:
        results = function(*(each.cuda() if isinstance(each, Tensor) else each for each in arguments))
        return tuple(each.cpu() for each in results)

    return on_gpu
