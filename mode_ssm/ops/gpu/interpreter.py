"""What Triton's interpreter (`TRITON_INTERPRET=1`: kernels as numpy on the CPU) needs beside the numpy of today."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.version import Version

MENDED = Version("3.7.1")


def mend() -> None:
    """Let `range(n)` count in interpreted kernels.

    Triton 3.6, which torch 2.11 pins, makes an integer of an array with one element, and numpy 2.4 refuses that. Triton
    3.7.1 has the line that stands here. Does nothing unless kernels are interpreted by an older one.
    """
    if not os.environ.get("TRITON_INTERPRET"):
        return
    try:
        if Version(version("triton")) >= MENDED:
            return
    except PackageNotFoundError:
        return
    interpreter: Any = import_module("triton.runtime.interpreter")
    patch = interpreter._patch_lang_tensor

    def patch_and_count(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patch_and_count
