"""Draws from a posterior, with what is needed to read them: fresh from a fit, or loaded from a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pluralpref.distributions.mixture import log_density
from pluralpref.distributions.structure import has_atoms
from pluralpref.errors import ConfigError, DataError
from pluralpref.inference import arviz_data
from pluralpref.inference.posterior_checks import Convergence, measure_convergence
from pluralpref.inference.posterior_problem import laws_of_draws
from pluralpref.models import StrengthModel

if TYPE_CHECKING:
    from arviz import InferenceData

_DENSITY_BLOCK = 100


class PosteriorDraws:
    r"""Draws from the posterior of a preference-strength model.

    Names of the draws: the family's own parameters; ``beta_mean`` and ``beta_cv``, the mean and coefficient of
    variation of the distribution of :math:`\beta` under each draw; ``beta``, the strength of a person who isn't in
    the data (groups' effects and covariates are 0 for it and for the moments; ``beta_mean_context`` has the mean for each
    set of the columns' values); with annotators ``beta_annotator``, each person's strength given their choices.

    :param draws: (chain, draw) arrays by name (``beta_annotator``: one more dimension).
    :param prior: (1, draw) arrays by name.
    :param attrs: facts about the fit, as :meth:`Posterior.to_arviz` writes them.
    :param convergence: R-hat, effective sample sizes, divergences.
    :param twin: the strength model with priors; without it there is no :meth:`density`.
    """

    def __init__(
        self,
        draws: Mapping[str, np.ndarray],
        prior: Mapping[str, np.ndarray],
        attrs: Mapping[str, Any],
        convergence: Convergence,
        twin: StrengthModel | None,
    ) -> None:
        self._draws = dict(draws)
        self._prior = dict(prior)
        self.attrs: dict[str, Any] = dict(attrs)
        #: R-hat, effective sample sizes and the number of divergent transitions.
        self.convergence = convergence
        self._twin = twin

    @property
    def names(self) -> list[str]:
        """The inferred parameters."""
        return str(self.attrs["parameters"]).split(", ")

    @property
    def family(self) -> str:
        """The class name of the strength model."""
        return str(self.attrs["family"])

    @property
    def is_panel(self) -> bool:
        """Whether choices of one annotator shared a strength."""
        return self.attrs["likelihood"] == "panel"

    @property
    def identification(self) -> list[str]:
        """What speaks against reading the spread as a finding; empty if nothing does."""
        return [line for line in str(self.attrs.get("identification", "")).splitlines() if line]

    @property
    def has_spread(self) -> bool:
        """Whether the family has heterogeneity at all (``FixedStrength`` hasn't)."""
        return bool((self._prior["beta_cv"] > 0).any())

    def draws(self, name: str) -> np.ndarray:
        """The draws of one quantity, (chain, draw) or (chain, draw, annotator).

        :raises ConfigError: for an unknown name.
        """
        if name not in self._draws:
            raise ConfigError(f"unknown quantity {name!r}: this posterior has {', '.join(self._draws)}")
        return self._draws[name]

    def prior_draws(self, name: str) -> np.ndarray:
        """Draws of one quantity under the prior, (1, draw).

        :raises ConfigError: for an unknown name.
        """
        if name not in self._prior:
            raise ConfigError(f"unknown quantity {name!r}: the prior has {', '.join(self._prior)}")
        return self._prior[name]

    @property
    def has_density(self) -> bool:
        """Whether :meth:`density` can be had: the strength model is known, and its law has no point masses."""
        return self._twin is not None and not has_atoms(self._twin.law())

    # -- summaries -----------------------------------------------------------------------------------------------

    def interval(self, name: str, prob: float = 0.95, kind: str = "hdi") -> tuple[float, float]:
        """An interval that holds the quantity with probability ``prob``.

        :param kind: ``"hdi"``, the shortest one, which for a spread near 0 begins near 0; or ``"eti"``, which leaves
            out as much on either side.
        :raises ConfigError: for an unknown name or kind, or a probability outside (0, 1).
        """
        if not 0 < prob < 1:
            raise ConfigError(f"prob={prob}: must lie strictly between 0 and 1")
        values = self.draws(name)
        if values.ndim != 2:
            raise ConfigError(f"{name} isn't a single number: take draws({name!r}) and an interval of each column")
        if kind == "hdi":
            return arviz_data.hdi(values, prob)
        if kind == "eti":
            low, high = np.quantile(values, [(1 - prob) / 2, (1 + prob) / 2])
            return float(low), float(high)
        raise ConfigError(f"kind={kind!r}: choose 'hdi' (the shortest interval) or 'eti' (equal tails)")

    def summary(self, prob: float = 0.95) -> Any:
        """Mean, sd, shortest interval, MCSE, ESS and R-hat of the parameters, ``beta_mean`` and ``beta_cv``.

        :returns: a pandas ``DataFrame``, one row for each quantity.
        """
        names = list(dict.fromkeys([*self.names, "beta_mean", *(["beta_cv"] if self.has_spread else [])]))
        data = arviz_data.make_inference_data({"posterior": {name: self._draws[name] for name in names}})
        return arviz_data.summary(data, names, prob=prob)

    def __repr__(self) -> str:
        low, high = self.interval("beta_cv")
        units = f"{self.attrs['num_pairs']} pairs"
        if self.is_panel:
            units += f" of {self.attrs['num_annotators']} annotators"
        state = "converged" if self.convergence.converged else "; ".join(self.convergence.problems)
        spread = f"beta_cv {np.median(self._draws['beta_cv']):.3g} (95% {low:.3g} to {high:.3g})"
        if not self.has_spread:
            low, high = self.interval("beta_mean")
            spread = f"beta_mean {np.median(self._draws['beta_mean']):.3g} (95% {low:.3g} to {high:.3g})"
        return f"{type(self).__name__}({self.family}, {units}: {spread}; {state})"

    # -- density of beta -----------------------------------------------------------------------------------------

    def _thinned(self, num_draws: int) -> dict[str, Tensor]:
        flat = {name: torch.as_tensor(self._draws[name]).flatten(0, 1) for name in self.names}
        total = next(iter(flat.values())).shape[0]
        rows = torch.linspace(0, total - 1, min(num_draws, total)).round().long()
        return {name: value[rows] for name, value in flat.items()}

    @torch.no_grad()
    def density(self, beta: Any, num_draws: int = 500) -> np.ndarray:
        """The density of beta's distribution in the population under (evenly thinned) draws.

        :param beta: (points,) values greater than 0.
        :param num_draws: use at most this many draws.
        :returns: (draws, points); its quantiles over the draws are a band for the density.
        :raises ConfigError: if the draws were loaded without their strength model.
        """
        if self._twin is None:
            raise ConfigError("the density needs the strength model: load_posterior(path, strength)")
        points = torch.as_tensor(beta, dtype=torch.float64)
        laws = laws_of_draws(self._twin, self._thinned(num_draws), _DENSITY_BLOCK)
        return torch.cat([log_density(law, points).exp() for _, _, law in laws]).numpy()


def load_posterior(
    source: str | os.PathLike[str] | InferenceData, strength: StrengthModel | None = None
) -> PosteriorDraws:
    """Read draws that :meth:`Posterior.save` wrote.

    :param source: a NetCDF file, or the ``InferenceData`` itself.
    :param strength: a strength model of the same family, for the density.
    :raises DataError: if it wasn't written by pluralpref.
    :raises ConfigError: if ``strength`` has other parameters.
    """
    data: Any = arviz_data.load_netcdf(source) if isinstance(source, str | os.PathLike) else source
    groups = set(data.groups())
    if not {"posterior", "prior"} <= groups or "parameters" not in data["posterior"].attrs:
        raise DataError(
            f"{source if isinstance(source, str | os.PathLike) else 'the data'}: no posterior of pluralpref"
        )
    attrs = dict(data["posterior"].attrs)
    names = str(attrs["parameters"]).split(", ")
    twin = None
    if strength is not None:
        twin = strength.with_priors()
        if sorted(twin.priors()) != sorted(names) or type(strength).__name__ != attrs["family"]:
            raise ConfigError(
                f"the posterior is of {attrs['family']} with {attrs['parameters']}, but the strength is {strength!r}"
            )
    draws = {str(name): values.values for name, values in data["posterior"].items()}
    prior = {str(name): values.values for name, values in data["prior"].items()}
    divergences = 0
    if "sample_stats" in groups and "diverging" in data["sample_stats"]:
        divergences = int(data["sample_stats"]["diverging"].sum())
    convergence = measure_convergence({name: draws[name] for name in names}, divergences)
    return PosteriorDraws(draws, prior, attrs, convergence, twin)
