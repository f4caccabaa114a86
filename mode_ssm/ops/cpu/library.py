"""The compiled kernels, loaded: one shared library for each instruction set, built when first asked for."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch

from mode_ssm.ops.cpu.build import LEVELS, build


class Library:
    """The kernels of one level of `build.LEVELS`; `lanes` floats a vector.

    Raises:
        BuildError: no compiler, or one that fails.
    """

    def __init__(self, level: str) -> None:
        self.lanes = LEVELS[level].lanes
        # Its libgomp.so.1 is the one that torch brought along and loaded: one pool of threads, not two.
        self._library = ctypes.CDLL(str(build(level)))

    def function(self, name: str) -> Callable[[object], None]:
        """A kernel; takes a pointer to its arguments, gives the interpreter's lock back while it runs."""
        function = self._library[name]
        function.argtypes, function.restype = [ctypes.c_void_p], None
        return function


@cache
def library(level: str) -> Library:
    return Library(level)


def usable_levels() -> list[str]:
    """Levels of `build.LEVELS` that this CPU can run, fastest first, by torch's own detection."""
    capability = torch.backends.cpu.get_cpu_capability()
    return [
        name for name, level in LEVELS.items() if capability in level.capabilities or level.capabilities == ("any",)
    ]
