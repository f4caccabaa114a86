"""Memory of batches that is used again.

Fresh memory costs more than reading into it: the system hands it out page by page, each cleared first. Where files are
in the page cache, a batch that is read into memory used before takes a quarter of the time or less.
"""

import threading
import weakref

import numpy as np
import torch
from torch import Tensor

_STEP_BYTES = 1 << 22  # sizes are rounded up, so that a block fits batches of similar length


class BatchMemory:
    """Hands out tensors; the memory of one comes back when nobody holds it, or a view of it, any more.

    keep: blocks that wait to be used again, at most; beyond them the smallest is given back to the system.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self._lock = threading.RLock()  # the garbage collector may return a block in the middle of `take`
        self._free: list[np.ndarray] = []

    def __reduce__(self) -> tuple[type["BatchMemory"], tuple[int]]:
        """Another process starts with none."""
        return BatchMemory, (self.keep,)

    def take(self, *shape: int) -> Tensor:
        """A float32 tensor with whatever was in its memory before."""
        elements = int(np.prod(shape))
        with self._lock:
            fitting = [place for place, block in enumerate(self._free) if block.size >= elements]
            # The smallest that fits; where none does, a new one takes the place of the smallest.
            block = self._free.pop(fitting[0]) if fitting else None
            if block is None and self._free:
                self._free.pop(0)
        if block is None:
            step = _STEP_BYTES // 4
            block = np.empty(-(-elements // step) * step, np.float32)
        view = block[:elements].reshape(shape)
        # torch keeps `view`, and nothing else does: it lives as long as the tensor's memory is in use.
        weakref.finalize(view, self._put_back, block).atexit = False
        return torch.from_numpy(view)

    def _put_back(self, block: np.ndarray) -> None:
        with self._lock:
            self._free.append(block)
            self._free.sort(key=lambda free: free.size)
            del self._free[: -self.keep]
