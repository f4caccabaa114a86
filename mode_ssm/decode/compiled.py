"""Numba functions that are compiled once for a machine and anew when any of their sources changes.

Numba by itself looks at the file of a function only, and would go on with old code of the functions that it calls.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])
_SOURCES = (
    "compiled.py",
    "beam_arrays.py",
    "history_kernel.py",
    "correction_kernel.py",
    "arrival_kernel.py",
    "beam_kernel.py",
    "transducer_arrays.py",
    "emission_kernel.py",
    "transducer_kernel.py",
    "../vocab.py",
)


def fingerprint(folder: Path) -> str:
    """Of the contents of all files that the compiled functions come from."""
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


_STAMP = fingerprint(Path(__file__).parent)


def compiled(function: _Function) -> _Function:
    """For functions that Python calls."""
    return _stamped(numba.njit(cache=True)(function))


def inner(function: _Function) -> _Function:
    """For functions that only compiled ones call: taking apart their many arrays is half of the compile time."""
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return _stamped(numba.njit(cache=True, **options)(function))


def _stamped(dispatcher: Any) -> Any:
    dispatcher._cache._cache_file._source_stamp = _STAMP  # in place of the file's time and size
    return cast(Any, dispatcher)
