"""Draws from a posterior, with what is needed to read them: fresh from a fit, or loaded from a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pluralpref.distributions.mixture import log_density
from pluralpref.distributions.structure import has_atoms
from pluralpref.errors import ConfigError, DataError
from pluralpref.inference import arviz_data
from pluralpref.inference.choices import Choices, as_choices
from pluralpref.inference.conditional import ConditionalStrengths
from pluralpref.inference.posterior_checks import Convergence, measure_convergence
from pluralpref.inference.posterior_problem import PosteriorProblem, laws_of_draws
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
    :param problem: makes the collapsed model with its data, where these are known.
    """

    def __init__(
        self,
        draws: Mapping[str, np.ndarray],
        prior: Mapping[str, np.ndarray],
        attrs: Mapping[str, Any],
        convergence: Convergence,
        twin: StrengthModel | None,
        problem: Callable[[], PosteriorProblem] | None = None,
    ) -> None:
        self._draws = dict(draws)
        self._prior = dict(prior)
        self.attrs: dict[str, Any] = dict(attrs)
        #: R-hat, effective sample sizes and the number of divergent transitions.
        self.convergence = convergence
        self._twin = twin
        self._make_problem = problem

    @cached_property
    def problem(self) -> PosteriorProblem:
        """The collapsed model with its data: the likelihood of any draws.

        :raises ConfigError: if the draws were loaded without their strength model, or from a file without the data.
        """
        if self._make_problem is None:
            raise ConfigError(
                "the draws were loaded without their strength model or their data: use load_posterior(path, strength) on a "
                "file with the groups observed_data and constant_data"
            )
        return self._make_problem()

    @property
    def has_data(self) -> bool:
        """Whether :attr:`problem` can be had."""
        return self._make_problem is not None

    @property
    def choices(self) -> Choices:
        """The data that the posterior was fitted on."""
        return self.problem.choices

    @property
    def annotators(self) -> tuple[Any, ...]:
        """The labels of the annotators, in the order of ``beta_annotator``."""
        return self.choices.annotator_names

    @property
    def names(self) -> list[str]:
        """The inferred parameters."""
        return str(self.attrs["parameters"]).split(", ")

    @property
    def quantities(self) -> list[str]:
        """The names that :meth:`draws` knows."""
        return list(self._draws)

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
        # A law without a variance has no cv, but a spread: nan is not 0.
        return bool((self._prior["beta_cv"] != 0).any())

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

        :returns: a pandas ``DataFrame``, one row for each quantity; its ``attrs["identification"]`` lists what speaks against
            reading the spread as a finding, as :attr:`identification` does.
        """
        names = list(dict.fromkeys([*self.names, "beta_mean", *(["beta_cv"] if self.has_spread else [])]))
        data = arviz_data.make_inference_data({"posterior": {name: self._draws[name] for name in names}})
        table = arviz_data.summary(data, names, prob=prob)
        table.attrs["identification"] = self.identification
        return table

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
        said = "".join(f"; {reason}" for reason in self.identification)
        return f"{type(self).__name__}({self.family}, {units}: {spread}; {state}{said})"

    # -- people --------------------------------------------------------------------------------------------------

    def probability(self, margins: Any, num_draws: int = 500) -> np.ndarray:
        """E[sigmoid(beta h)] of a person who isn't in the data, under (evenly thinned) draws.

        :param margins: (pairs,) nats.
        :returns: (draws, pairs).
        """
        h = torch.as_tensor(margins, dtype=torch.float64)
        return self.problem.probability(self.thinned(num_draws), h).numpy()

    def beta_given_choices(
        self,
        margins: Any = None,
        *,
        annotator: Any = None,
        weight: Any = None,
        preferred: Any = None,
        groups: Mapping[str, Any] | None = None,
        covariates: Mapping[str, Any] | None = None,
        num_draws: int = 200,
    ) -> ConditionalStrengths:
        """The conditional posterior of beta for each person, or pair, given what was chosen; by quadrature.

        Without margins, of the annotators (or pairs) that the posterior was fitted on. With margins, of others that it
        hasn't seen; the columns are those of :func:`~pluralpref.inference.fit_posterior`.

        ::

            people = posterior.beta_given_choices()
            people.table()            # mean, interval, less sensitive than the median, opposed
            new = posterior.beta_given_choices(margins, annotator=labels)

        :param num_draws: average over so many (evenly thinned) draws of the parameters.
        :raises ConfigError: if columns are given without margins.
        :raises DataError: for data that can't be used, and for annotators that the posterior was fitted on.
        :raises UnsupportedError: where columns that the strength reads change between one person's choices.
        """
        draws = self.thinned(num_draws)
        if margins is None:
            given = [
                n for n, v in (("annotator", annotator), ("weight", weight), ("preferred", preferred)) if v is not None
            ]
            if given or groups or covariates:
                raise ConfigError(
                    "columns without margins have no effect: give margins, or nothing for the fitted people"
                )
            return ConditionalStrengths(self.problem.twin, draws, self.problem.choices, seen=True)
        choices = as_choices(
            margins, annotator=annotator, weight=weight, preferred=preferred, groups=groups, covariates=covariates
        )
        known = set(self.annotators) & set(choices.annotator_names)
        if known:
            raise DataError(
                f"annotator {sorted(map(str, known))[0]!r} is one of {len(known)} that the posterior was fitted on: their "
                "choices would count twice; leave margins out for them, or fit again with all of their choices"
            )
        return ConditionalStrengths(self.problem.twin, draws, choices, seen=False)

    # -- density of beta -----------------------------------------------------------------------------------------

    def thinned(self, num_draws: int) -> dict[str, Tensor]:
        """At most so many evenly spaced draws of the parameters, (draws, ...) by name."""
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
        laws = laws_of_draws(self._twin, self.thinned(num_draws), _DENSITY_BLOCK)
        return torch.cat([log_density(law, points).exp() for _, _, law in laws]).numpy()


def load_posterior(
    source: str | os.PathLike[str] | InferenceData, strength: StrengthModel | None = None
) -> PosteriorDraws:
    """Read draws that :meth:`Posterior.save` wrote, with the data that they come from.

    :param source: a NetCDF file, or the ``InferenceData`` itself.
    :param strength: a strength model of the same family; only needed for one that isn't built in (nor registered by
        :func:`~pluralpref.models.register_family`), since no code is imported on the word of a file.
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
    if strength is None and attrs.get("strength_config"):
        with suppress(ConfigError):  # a family of the user's own
            strength = StrengthModel.from_configuration(json.loads(attrs["strength_config"]))
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
    convergence = measure_convergence({name: draws[name] for name in names}, divergences, attrs)
    return PosteriorDraws(draws, prior, attrs, convergence, twin, _problem_of(data, strength))


def _problem_of(data: Any, strength: StrengthModel | None) -> Callable[[], PosteriorProblem] | None:
    """How to make the collapsed model again, where everything that it takes is in the file."""
    if strength is None or not {"observed_data", "constant_data"} <= set(data.groups()):
        return None
    columns = {str(name): values.values for name, values in data["constant_data"].items()}
    annotator = None
    if "annotator_index" in columns:
        labels = next(
            (data[name]["annotator"].values for name in data.groups() if "annotator" in data[name].coords), None
        )
        if labels is None:
            return None
        annotator = labels[columns.pop("annotator_index")].tolist()
    margins, weight = columns.pop("margin"), columns.pop("weight")
    choices = as_choices(
        margins,
        annotator=annotator,
        weight=weight,
        preferred=data["observed_data"]["preferred"].values,
        groups={name: values for name, values in columns.items() if values.dtype.kind != "f"},
        covariates={name: values for name, values in columns.items() if values.dtype.kind == "f"},
    )
    return lambda: PosteriorProblem(strength, choices)
