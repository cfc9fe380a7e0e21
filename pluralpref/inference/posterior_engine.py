"""What every method of inference is told, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class SamplerSettings:
    """See :func:`~pluralpref.inference.posterior.fit_posterior`; each method reads what concerns it."""

    num_samples: int
    num_warmup: int = 500
    num_chains: int = 1
    seed: int = 0
    progress_bar: bool = False
    target_accept_prob: float = 0.8
    max_tree_depth: int = 10
    num_proposals: int | None = None
    guide: str = "AutoMultivariateNormal"
    num_steps: int = 2000
    learning_rate: float = 0.02
    batch_size: int | None = None


@dataclass(frozen=True)
class EngineResult:
    """Draws of the parameters and statistics of the sampler.

    :param draws: (chain, draw, ...) float64 by parameter name.
    :param stats: (chain, draw) by ArviZ's name.
    :param facts: single values about the fit, for ``attrs``.
    :param problems: what speaks against the draws, one phrase each; empty if nothing does.
    """

    draws: dict[str, Tensor]
    stats: dict[str, np.ndarray]
    facts: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
