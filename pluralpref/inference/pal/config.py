"""What a PAL model is made of and how it is fitted."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pluralpref.errors import ConfigError

VARIANTS = ("a", "b")
OPTIMIZERS = ("adam", "lbfgs")
#: Defaults of options that only Adam has.
LEARNING_RATE, WEIGHT_LEARNING_RATE, BATCH_SIZE = 1e-3, 1e-2, 256
PATIENCE = 5


@dataclass(frozen=True)
class PalConfig:
    """Options of :func:`~pluralpref.inference.pal.fit_pal`.

    :param variant: ``"a"``, ideal points; ``"b"``, preference mappings.
    :param num_prototypes: K; 1 is one reward model for all.
    :param latent_dim: of the space that f and g_k map to.
    :param hidden_layers: of f and g_k, each ``latent_dim`` wide with GELU; 0 makes them linear.
    :param optimizer: ``"adam"`` on mini-batches, or ``"lbfgs"`` on all pairs at once, for small problems.
    :param learning_rate: Adam's, of f and g_k (0.001).
    :param weight_learning_rate: Adam's, of the people's weights, the prototypes of PAL-A and the strength's parameters (0.01).
    :param weight_decay: lambda of the penalty lambda/2 times the sum of squares of the parameters of f and g_k.
    :param batch_size: pairs in a mini-batch of Adam's (256).
    :param max_epochs: passes over the pairs, or steps of L-BFGS.
    :param stopping_fraction: share of each person's choices that is left out of the fit to find out when to stop; the
        parameters of the best epoch are kept.
    :param patience: epochs without improvement after which to stop (5).
    :param seed: of the start, the order of pairs and the choices that are left out.
    :raises ConfigError: for values out of range and options without effect.
    """

    variant: str = "b"
    num_prototypes: int = 2
    latent_dim: int = 64
    hidden_layers: int = 1
    optimizer: str = "adam"
    learning_rate: float | None = None
    weight_learning_rate: float | None = None
    weight_decay: float = 0.0
    batch_size: int | None = None
    max_epochs: int = 100
    stopping_fraction: float | None = None
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("variant", VARIANTS), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(allowed)}")
        for name, least in (
            ("num_prototypes", 1),
            ("latent_dim", 1),
            ("hidden_layers", 0),
            ("batch_size", 1),
            ("max_epochs", 1),
            ("patience", 1),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}={value}: must be at least {least}")
        for name in ("learning_rate", "weight_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name}={value}: must be a number greater than 0")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"weight_decay={self.weight_decay}: must be a number of at least 0")
        if self.stopping_fraction is not None and not 0 < self.stopping_fraction < 1:
            raise ConfigError(f"stopping_fraction={self.stopping_fraction}: must lie between 0 and 1")
        if self.patience is not None and self.stopping_fraction is None:
            raise ConfigError("patience has no effect without stopping_fraction: leave it out or give both")
        if self.optimizer == "lbfgs":
            for name in ("learning_rate", "weight_learning_rate", "batch_size", "stopping_fraction"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"{name} has no effect with optimizer='lbfgs': leave it out or use 'adam'")
