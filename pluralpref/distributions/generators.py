"""Random numbers that leave the global generators as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def generators_kept(seed: int | None = None) -> Iterator[None]:
    """Draw what you like in a block; torch's generators, of the CPU and of all CUDA devices, are then as before.

    :param seed: for all of them inside of the block; ``None`` to go on from where they are.
    """
    # torch.manual_seed seeds every device, so every device's state is to be given back.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        if seed is not None:
            torch.manual_seed(seed)
        yield
