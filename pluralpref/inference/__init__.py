"""Objectives, marginalisation, posterior inference, and the trainer.

The trainer needs transformers, so it is imported when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

from pluralpref.inference.marginal import (
    ClosedForm,
    MonteCarlo,
    Quadrature,
    available_methods,
    log_marginal,
    log_marginal_panel,
    register_marginal,
)
from pluralpref.inference.mixdpo import MixDPO
from pluralpref.inference.mixed_logit import MixedLogit
from pluralpref.inference.posterior import fit_posterior
from pluralpref.inference.posterior_result import Posterior

if TYPE_CHECKING:
    from pluralpref.inference.config import MixDPOConfig
    from pluralpref.inference.trainer import MixDPOTrainer

__all__ = [
    "ClosedForm",
    "MixDPO",
    "MixDPOConfig",
    "MixDPOTrainer",
    "MixedLogit",
    "MonteCarlo",
    "Posterior",
    "Quadrature",
    "available_methods",
    "fit_posterior",
    "log_marginal",
    "log_marginal_panel",
    "register_marginal",
]


def __getattr__(name: str) -> Any:
    if name == "MixDPOConfig":
        from pluralpref.inference.config import MixDPOConfig

        return MixDPOConfig
    if name == "MixDPOTrainer":
        from pluralpref.inference.trainer import MixDPOTrainer

        return MixDPOTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
