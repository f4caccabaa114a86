"""What Triton's interpreter (`TRITON_INTERPRET=1`: kernels as numpy on the CPU) lacks for these kernels."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
from packaging.version import Version

COUNTS = Version("3.7.1")


def mend() -> None:
    """Let interpreted kernels count and multiply matrices of bf16. Does nothing unless kernels are interpreted.

    `range(n)`: Triton 3.6, which torch 2.11 pins, makes an integer of an array with one element, and numpy 2.4 refuses
    that; Triton 3.7.1 has the line that stands here. `tl.dot`: the interpreter keeps bf16 as the 16-bit integers of its
    bits, up to Triton 3.9 at least, and multiplies these.
    """
    if not os.environ.get("TRITON_INTERPRET") or find_spec("triton") is None:
        return
    interpreter: Any = import_module("triton.runtime.interpreter")
    bf16, float32 = interpreter.tl.bfloat16, interpreter.tl.float32
    patch, dot = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot

    def patch_and_count(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != bf16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), float32)

    def dot_of_numbers(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return dot(self, widened(a), widened(b), *others)

    if Version(version("triton")) < COUNTS:
        interpreter._patch_lang_tensor = patch_and_count
    interpreter.InterpreterBuilder.create_dot = dot_of_numbers
