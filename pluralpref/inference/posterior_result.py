"""What a posterior fit gives back."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pluralpref._version import __version__
from pluralpref.errors import ConfigError, DataWarning
from pluralpref.inference import arviz_data
from pluralpref.inference.global_state import borrowed_state, child_seed
from pluralpref.inference.posterior_checks import check_convergence, check_identification
from pluralpref.inference.posterior_draws import PosteriorDraws
from pluralpref.inference.posterior_engine import EngineResult, SamplerSettings
from pluralpref.inference.posterior_panel import conditional_strengths
from pluralpref.inference.posterior_predict import draw_choices, draw_prior, population_strengths
from pluralpref.inference.posterior_problem import MOST_CELLS, PosteriorProblem
from pluralpref.models import StrengthModel
from pluralpref.models.serialization import describe_arguments

if TYPE_CHECKING:
    from arviz import InferenceData

#: The number of draws in the prior and prior_predictive groups.
PRIOR_DRAWS = 1000
#: Groups with one value for each draw and pair are left out, with a warning, above this many values (4 bytes each).
POINTWISE_LIMIT = 100_000_000

_POINTWISE = ("log_likelihood", "posterior_predictive")
#: Dimensions with a meaning of their own, which a column may be named like.
_TAKEN = ("chain", "draw", "pair", "annotator", "context")


class Posterior(PosteriorDraws):
    """A posterior fresh from :func:`~pluralpref.inference.fit_posterior`, with the data that it was fitted on."""

    def __init__(
        self,
        problem: PosteriorProblem,
        result: EngineResult,
        settings: SamplerSettings,
        method: str,
        seconds: float,
        reason: str,
    ) -> None:
        self._problem = problem
        self._result = result
        self._settings = settings
        flat = self._flat
        with borrowed_state(child_seed(settings.seed, 1)):
            mean, cv = problem.moments(flat)
            derived = {"beta_mean": mean, "beta_cv": cv, "beta": population_strengths(problem, flat)}
            self._prior_parameters = draw_prior(problem, PRIOR_DRAWS)
            prior_mean, prior_cv = problem.moments(self._prior_parameters)
            prior = {
                "beta_mean": prior_mean,
                "beta_cv": prior_cv,
                "beta": population_strengths(problem, self._prior_parameters),
            }
        shape = (settings.num_chains, settings.num_samples)
        draws = {name: values.reshape(shape).numpy() for name, values in derived.items()}
        draws |= {name: values.numpy() for name, values in result.draws.items()}
        prior |= self._prior_parameters
        contexts = problem.contexts
        if contexts is not None and contexts.num_cells <= MOST_CELLS:
            rows = contexts.rows(torch.arange(contexts.num_cells))
            by_context, _ = problem.moments(flat, rows, contexts.num_cells)
            draws["beta_mean_context"] = by_context.reshape(*shape, -1).numpy()
        divergences = int(result.stats["diverging"].sum()) if "diverging" in result.stats else 0
        convergence = check_convergence({name: draws[name] for name in problem.names}, divergences, method, result)
        prior_arrays = {name: values.numpy()[None] for name, values in prior.items()}
        facts = self._facts(method, seconds, reason)
        super().__init__(draws, prior_arrays, facts, convergence, problem.twin, lambda: problem)
        reasons = check_identification(problem.choices, draws["beta_cv"], prior_arrays["beta_cv"], not self.has_spread)
        self.attrs["identification"] = "\n".join(reasons)

    @property
    def _flat(self) -> dict[str, Tensor]:
        return {name: value.flatten(0, 1) for name, value in self._result.draws.items()}

    @property
    def seconds(self) -> float:
        """Wall-clock time of the sampling."""
        return float(self.attrs["sampling_time"])

    def draws(self, name: str) -> np.ndarray:
        """The draws of one quantity, (chain, draw) or (chain, draw, annotator).

        :raises ConfigError: for an unknown name.
        """
        return self._beta_annotator if name == "beta_annotator" and self.is_panel else super().draws(name)

    @cached_property
    def _beta_annotator(self) -> np.ndarray:
        with borrowed_state(child_seed(self._settings.seed, 2)):
            beta = conditional_strengths(self._problem, self._flat)
        return beta.reshape(self._settings.num_chains, self._settings.num_samples, -1).numpy()

    # -- ArviZ ---------------------------------------------------------------------------------------------------

    def to_arviz(self, groups: Sequence[str] | None = None) -> InferenceData:
        """Everything as ArviZ ``InferenceData``, for ``az.summary``, ``az.loo``, ``az.plot_*``.

        Dimensions: ``chain``, ``draw``, ``pair`` (the row), ``annotator`` (the label), and those of vectors of
        parameters, such as the groups' column. ``beta_mean_context`` is the mean of beta for each set of people with the
        same columns, where the strength reads columns. ``log_likelihood`` has one
        value for each pair, or, with annotators, for each annotator, so that ``az.loo`` leaves one annotator out; it
        is in float32 and includes the weights. ``posterior_predictive`` are new choices of the same people in the same
        pairs (with annotators), or of new people. ``lp`` in ``sample_stats`` is the log joint density in the sampler's
        unconstrained space; ``energy`` is the Hamiltonian at the start of each transition.

        :param groups: which groups to compute; all by default. The two that have a value for each draw and pair are
            left out, with a :class:`~pluralpref.errors.DataWarning`, where they would have more than 100
            million values, unless they are asked for here.
        :raises ConfigError: for an unknown group.
        """
        chosen = self._choose_groups(groups)
        names = {name: self._arrays(name) for name in chosen}
        data = self._problem.choices
        coords: dict[str, Any] = {"pair": np.arange(data.num_pairs)}
        if self.is_panel:
            coords["annotator"] = np.array(arviz_data.plain_labels(data.annotator_names))
        dims_of_parameters: dict[str, list[str]] = {"beta_annotator": ["annotator"]}
        dims: dict[str, list[str]] = {"preferred": ["pair"], "margin": ["pair"]}
        dims |= {name: ["pair"] for name in ("weight", "annotator_index", *data.groups, *data.covariates)}
        for name, axes in self._problem.twin.parameter_coords().items():
            named = {f"{axis}_of_parameter" if axis in _TAKEN else axis: labels for axis, labels in axes.items()}
            dims_of_parameters[name] = list(named)
            coords |= named
        if self._problem.contexts is not None and "beta_mean_context" in self._draws:
            dims_of_parameters["beta_mean_context"] = ["context"]
            coords["context"] = self._problem.contexts.labels()
        of_parameters = {name: values for name, values in names.items() if name in ("posterior", "prior")}
        of_pairs = {name: v for name, v in names.items() if name not in of_parameters and name != "log_likelihood"}
        # Apart, since a parameter and a column may have the same name.
        parts = [
            arviz_data.make_inference_data(groups, dims=names_of, coords=coords, attrs=self.attrs)
            for groups, names_of in ((of_parameters, dims_of_parameters), (of_pairs, dims))
            if groups
        ]
        result = parts[0] if parts else arviz_data.make_inference_data({}, attrs=self.attrs)
        for part in parts[1:]:
            result.extend(part)
        if "log_likelihood" in names:
            # In a group of its own: "preferred" has the annotators' dimension there.
            unit = "annotator" if self.is_panel else "pair"
            result.extend(
                arviz_data.make_inference_data(
                    {"log_likelihood": names["log_likelihood"]},
                    dims={"preferred": [unit]},
                    coords={unit: coords[unit]},
                    attrs=self.attrs,
                )
            )
        return result

    def save(self, path: str | os.PathLike[str], groups: Sequence[str] | None = None) -> Path:
        """Write :meth:`to_arviz` as NetCDF, atomically.

        :param groups: as in :meth:`to_arviz`.
        """
        return arviz_data.save_netcdf(self.to_arviz(groups), path)

    def _choose_groups(self, groups: Sequence[str] | None) -> list[str]:
        if groups is not None:
            unknown = sorted(set(groups) - set(arviz_data.GROUPS))
            if unknown:
                raise ConfigError(f"unknown group(s) {', '.join(unknown)}: choose from {', '.join(arviz_data.GROUPS)}")
            return [name for name in arviz_data.GROUPS if name in groups]
        num_draws = self._settings.num_chains * self._settings.num_samples
        size = {
            "log_likelihood": num_draws * self._problem.num_units,
            "posterior_predictive": num_draws * self._problem.choices.num_pairs,
        }
        left_out = [name for name in _POINTWISE if size[name] > POINTWISE_LIMIT]
        if left_out:
            warnings.warn(
                f"{' and '.join(left_out)} left out: {max(size.values()):,} values; ask for them with "
                f"to_arviz(groups=[...]), or draw fewer samples",
                DataWarning,
                stacklevel=3,
            )
        return [name for name in arviz_data.GROUPS if name not in left_out]

    def _arrays(self, group: str) -> dict[str, np.ndarray]:
        problem, seed = self._problem, self._settings.seed
        data = problem.choices
        shape = (self._settings.num_chains, self._settings.num_samples, -1)
        if group == "posterior":
            values = self._settings.num_chains * self._settings.num_samples * data.num_annotators
            if values > POINTWISE_LIMIT:
                warnings.warn(
                    f"beta_annotator left out: {values:,} values; draw fewer samples, or use beta_given_choices()",
                    DataWarning,
                    stacklevel=4,
                )
                return self._draws
            return self._draws | ({"beta_annotator": self._beta_annotator} if self.is_panel else {})
        if group == "sample_stats":
            return dict(self._result.stats)
        if group == "log_likelihood":
            return {"preferred": problem.log_likelihood(self._flat).reshape(shape).numpy()}
        if group == "posterior_predictive":
            beta = torch.as_tensor(self._beta_annotator).flatten(0, 1) if self.is_panel else None
            with borrowed_state(child_seed(seed, 3)):
                return {"preferred": draw_choices(problem, self._flat, beta).reshape(shape)}
        if group == "prior":
            return dict(self._prior)
        if group == "prior_predictive":
            with borrowed_state(child_seed(seed, 4)):
                return {"preferred": draw_choices(problem, self._prior_parameters)[None]}
        if group == "observed_data":
            return {"preferred": data.preferred.numpy()}
        constant: dict[str, np.ndarray] = {"margin": data.margins.numpy()}
        constant["weight"] = np.ones(data.num_pairs) if data.weight is None else data.weight.numpy()
        if data.annotator is not None:
            constant["annotator_index"] = data.annotator.numpy()
        return constant | dict(data.groups) | dict(data.covariates)

    def _facts(self, method: str, seconds: float, reason: str) -> dict[str, Any]:
        problem, settings = self._problem, self._settings
        attrs: dict[str, Any] = {
            "created_with": f"pluralpref {__version__}",
            "family": type(problem.strength).__name__,
            "parameters": ", ".join(problem.names),
            "method": method,
            "method_reason": reason,
            "marginal": problem.marginal_name,
            "likelihood": "panel" if problem.is_panel else "single choices",
            "log_likelihood_unit": "annotator" if problem.is_panel else "pair",
            "num_pairs": problem.choices.num_pairs,
            "num_annotators": problem.choices.num_annotators,
            "seed": settings.seed,
            "priors": "; ".join(f"{name} ~ {describe_arguments(prior)}" for name, prior in problem.priors.items()),
            "strength": repr(problem.strength),
            "strength_config": _configuration(problem.strength),
            "sampling_time": seconds,
        }
        if method == "nuts":
            attrs |= {"num_warmup": settings.num_warmup, "target_accept_prob": settings.target_accept_prob}
        attrs |= self._result.facts
        if problem.strength.learned():
            attrs["training_law_mean"] = float(problem.strength.mean)
            attrs["training_law_cv"] = float(problem.strength.cv)
        return attrs


def _configuration(strength: StrengthModel) -> str:
    """JSON that the model can be built from again; empty where its arguments can't be written so."""
    try:
        return json.dumps(strength.configuration())
    except ConfigError:
        return ""
