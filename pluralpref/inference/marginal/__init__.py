"""Marginals over the preference strength: log E_beta[sigmoid(beta h)], exact where that is possible."""

from pluralpref.inference.marginal import any_density, delta, gamma, mixture, monte_carlo, quadrature  # noqa: F401  (they register themselves)
from pluralpref.inference.marginal.dispatch import (
    ClosedForm,
    MonteCarlo,
    Quadrature,
    available_methods,
    log_marginal,
    register_marginal,
    register_panel_marginal,
)
from pluralpref.inference.marginal.panel import PanelProblem, log_marginal_panel, panel_posterior
from pluralpref.inference.marginal.panel_grid import PanelGrid
from pluralpref.inference.marginal.with_error import log_marginal_with_error

__all__ = [
    "ClosedForm",
    "MonteCarlo",
    "PanelGrid",
    "PanelProblem",
    "Quadrature",
    "available_methods",
    "log_marginal",
    "log_marginal_panel",
    "log_marginal_with_error",
    "panel_posterior",
    "register_marginal",
    "register_panel_marginal",
]
