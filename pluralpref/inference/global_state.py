"""Global state, borrowed and given back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyro
import torch

from pluralpref.distributions.generators import generators_kept


@contextmanager
def borrowed_state(seed: int, *, threads: int | None = None) -> Iterator[None]:
    """Seed every global generator for the duration of a block, and leave everything as it was found.

    Kept are the generators of torch (the CPU's and those of CUDA devices), NumPy and Python, Pyro's parameter store and
    torch's number of threads.

    :param seed: for all generators.
    :param threads: torch's number of threads inside. With one, sums don't depend on the number of cores.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()
    num_threads = torch.get_num_threads()
    try:
        with generators_kept(seed), pyro.get_param_store().scope():
            np.random.seed(seed % 2**32)
            random.seed(seed)
            if threads is not None:
                torch.set_num_threads(threads)
            yield
    finally:
        torch.set_num_threads(num_threads)
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def child_seed(seed: int, *path: int) -> int:
    """A seed for one part of a computation, independent of the others': ``path`` names the part.

    By NumPy's ``SeedSequence``, so that neighbouring seeds and parts give unrelated streams.
    """
    return int(np.random.SeedSequence(seed, spawn_key=path).generate_state(1, np.uint64)[0] >> 1)
