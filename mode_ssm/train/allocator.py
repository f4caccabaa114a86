"""What the C library does with freed memory."""

import ctypes
import sys

# mallopt's parameters, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Have glibc keep what tensors give back and hand it out again, instead of returning it to the kernel.

    By default a block over 32 MB is mapped anew every time, and a training step spends more time in page faults (250 of
    them a megabyte) than in some of its kernels. The process then stays as large as its largest step was. Returns
    whether the C library is one that knows the setting.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
