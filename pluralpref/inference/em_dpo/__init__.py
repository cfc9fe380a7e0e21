"""EM-DPO (arXiv:2405.15065): a policy for each latent class of annotators.

The driver needs transformers, so it is imported when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

from pluralpref.inference.em_dpo.aggregation import MinMaxRegret, min_max_regret
from pluralpref.inference.em_dpo.e_step import (
    initial_responsibilities,
    observed_log_likelihood,
    pair_log_likelihoods,
    responsibilities,
)
from pluralpref.inference.em_dpo.prediction import log_shares_before, mixture_log_prob, mixture_metrics
from pluralpref.inference.em_dpo.result import EMDPOResult

if TYPE_CHECKING:
    from pluralpref.inference.em_dpo.driver import EMDPO

__all__ = [
    "EMDPO",
    "EMDPOResult",
    "MinMaxRegret",
    "initial_responsibilities",
    "log_shares_before",
    "min_max_regret",
    "mixture_log_prob",
    "mixture_metrics",
    "observed_log_likelihood",
    "pair_log_likelihoods",
    "responsibilities",
]


def __getattr__(name: str) -> Any:
    if name == "EMDPO":
        from pluralpref.inference.em_dpo.driver import EMDPO

        return EMDPO
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
