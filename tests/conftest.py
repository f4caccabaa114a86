"""One CPU thread: two threads beside a busy neighbour are many times slower than one."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
