"""Every call to ArviZ that its 1.x line changes, in one place.

ArviZ 1.x replaces ``InferenceData`` by xarray's ``DataTree``, nests the arguments of ``from_dict`` and renames the
statistics; the rest of the package calls the functions below and will not notice. ArviZ is imported on first use,
because the import takes more than a second.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pluralpref.atomic import written_aside
from pluralpref.errors import ConfigError, DataError

if TYPE_CHECKING:
    from arviz import InferenceData

#: Above this Pareto k-hat an importance-sampling estimate's error is neither small nor known (Vehtari et al., JMLR 25).
MAX_PARETO_K = 0.7
#: The groups of a posterior, as ArviZ's schema names them.
GROUPS = (
    "posterior",
    "sample_stats",
    "log_likelihood",
    "posterior_predictive",
    "prior",
    "prior_predictive",
    "observed_data",
    "constant_data",
)


def make_inference_data(
    groups: Mapping[str, Mapping[str, np.ndarray]],
    *,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> InferenceData:
    """Arrays by group and variable as ArviZ ``InferenceData``.

    :param groups: group name (one of :data:`GROUPS`) to variables. Variables of ``observed_data`` and
        ``constant_data`` have no sample dimensions; all others start with (chain, draw).
    :param dims: names of the dimensions after (chain, draw), by variable.
    :param coords: labels of those dimensions.
    :param attrs: written to every group and to the whole.
    :raises ConfigError: for a group that ArviZ's schema doesn't know, which ``from_dict`` would turn into nonsense.
    """
    unknown = sorted(set(groups) - set(GROUPS))
    if unknown:
        raise ConfigError(f"unknown InferenceData group(s) {', '.join(unknown)}: choose from {', '.join(GROUPS)}")
    import arviz

    dims, coords = dict(dims or {}), dict(coords or {})
    with warnings.catch_warnings():
        # from_dict guesses that more draws than chains is a mistake the other way round.
        warnings.filterwarnings("ignore", message="More chains", category=UserWarning)
        data = arviz.from_dict(
            **{name: dict(variables) for name, variables in groups.items()},
            dims={name: list(names) for name, names in dims.items()},
            coords=coords,
        )
    for name in data.groups():
        data[name].attrs.update(attrs or {})
    data.attrs.update(attrs or {})
    return data


def plain_labels(labels: Sequence[Any]) -> list[Any]:
    """Labels as coordinates that NetCDF can hold: integers where all are, else strings."""
    if all(isinstance(label, int | np.integer) and not isinstance(label, bool) for label in labels):
        return [int(label) for label in labels]
    return [str(label) for label in labels]


def summary(
    data: InferenceData, var_names: Sequence[str] | None = None, *, prob: float = 0.95, round_to: Any = "none"
) -> Any:
    """Mean, sd, highest-density interval, MCSE, ESS and R-hat of variables of the posterior, as a ``DataFrame``.

    :param prob: the mass of the interval.
    :param round_to: as in ``arviz.summary``; nothing is rounded by default.
    """
    import arviz

    with _quiet():
        return arviz.summary(data, var_names=list(var_names) if var_names else None, hdi_prob=prob, round_to=round_to)


def convergence(draws: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """R-hat and effective sample size of each scalar.

    Rank-normalised split R-hat and bulk ESS: A. Vehtari et al., *Bayesian Analysis* 16 (2021), arXiv:1903.08008.

    :param draws: arrays (chain, draw, ...) by name.
    :returns: ``{"r_hat": {...}, "ess_bulk": {...}, "ess_tail": {...}}``, the worst entry of each variable. R-hat of
        one chain compares its two halves.
    """
    import arviz

    data = make_inference_data({"posterior": draws})
    halves = make_inference_data({"posterior": {name: _at_least_two_chains(values) for name, values in draws.items()}})
    with _quiet():
        tables = {
            "r_hat": (arviz.rhat(halves), np.max),
            "ess_bulk": (arviz.ess(data, method="bulk"), np.min),
            "ess_tail": (arviz.ess(data, method="tail"), np.min),
        }
    return {
        statistic: {name: float(worst(table[name].values)) for name in draws}
        for statistic, (table, worst) in tables.items()
    }


def _at_least_two_chains(values: np.ndarray) -> np.ndarray:
    """One chain's halves as two, since ArviZ has no R-hat of a single one."""
    chains, draws = values.shape[:2]
    return values if chains > 1 or draws < 8 else values[0, : draws // 2 * 2].reshape(2, draws // 2, *values.shape[2:])


def mcse_mean(draws: np.ndarray) -> float:
    """Monte-Carlo standard error of the mean of (chain, draw) values."""
    import arviz

    with _quiet():
        return float(arviz.mcse(np.asarray(draws), method="mean"))


def hdi(draws: np.ndarray, prob: float = 0.95) -> tuple[float, float]:
    """The shortest interval with mass ``prob``, from draws of any shape."""
    import arviz

    low, high = arviz.hdi(np.asarray(draws, dtype=np.float64).reshape(-1), hdi_prob=prob)
    return float(low), float(high)


def loo(data: InferenceData, var_name: str | None = None, *, pointwise: bool = False) -> Any:
    """Leave-one-out expected log predictive density by Pareto-smoothed importance sampling, nats.

    One unit is one element of ``log_likelihood``: a pair for single choices, an annotator for panels.

    :raises DataError: if there is no ``log_likelihood`` group.
    """
    import arviz

    if "log_likelihood" not in data.groups():
        raise DataError("no log_likelihood group: make the data with to_arviz(groups=[..., 'log_likelihood'])")
    return arviz.loo(data, var_name=var_name, pointwise=pointwise)


def pareto_smooth(log_ratios: Any) -> tuple[np.ndarray, float]:
    """Pareto-smoothed importance weights: A. Vehtari et al., JMLR 25 (2024), arXiv:1507.02646.

    :param log_ratios: (S,) log target density minus log proposal density, constants left out; -inf has no weight.
    :returns: normalised log-weights (S,), and Pareto k-hat (infinite where there is no tail to fit).
    """
    import arviz

    ratios = np.asarray(log_ratios, dtype=np.float64)
    used = np.isfinite(ratios)
    if used.sum() < 25:
        return np.where(used, -np.log(max(used.sum(), 1)), -np.inf), float("inf")
    weights = np.full(len(ratios), -np.inf)
    with _quiet():
        smoothed, k = arviz.psislw(ratios[used])
    weights[used] = smoothed
    return weights, float(k)


def compare_loo(
    log_likelihoods: Mapping[str, np.ndarray],
) -> tuple[Any, dict[str, np.ndarray]]:
    """Models side by side by PSIS-LOO, with stacking weights.

    :param log_likelihoods: by model (chain, draw, units), nats.
    :returns: (a pandas ``DataFrame``, the best model first: elpd_loo, se, p_loo, elpd_diff, dse, weight, high_k (units
        with Pareto k-hat above 0.7); elpd of each unit by model, (units,)).
    """
    import arviz

    with _quiet():
        results = {}
        for name, values in log_likelihoods.items():
            data = make_inference_data({"posterior": {"dummy": values[..., 0]}, "log_likelihood": {"y": values}})
            results[name] = arviz.loo(data, pointwise=True, reff=1.0)
        table = arviz.compare(results, ic="loo", method="stacking", scale="log")
    high = [int((results[name].pareto_k.values > MAX_PARETO_K).sum()) for name in table.index]
    table = table.assign(high_k=high)[["elpd_loo", "se", "p_loo", "elpd_diff", "dse", "weight", "high_k"]]
    return table, {name: result.loo_i.values for name, result in results.items()}


def save_netcdf(data: InferenceData, path: str | os.PathLike[str]) -> Path:
    """Write ``data`` as NetCDF; the file appears complete or not at all.

    :raises DataError: if the folder doesn't exist.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise DataError(f"{target}: the folder {target.parent} doesn't exist; make it first")
    with written_aside(target) as partial, _quiet():
        data.to_netcdf(os.fspath(partial))
    return target


def load_netcdf(path: str | os.PathLike[str]) -> InferenceData:
    """Read what :func:`save_netcdf` wrote, wholly into memory, so that the file may be replaced afterwards.

    :raises DataError: if there is no such file, or it isn't NetCDF.
    """
    import arviz

    if not Path(path).is_file():
        raise DataError(f"{path}: no such file; a posterior is written by Posterior.save or the posterior command")
    try:
        with arviz.rc_context({"data.load": "eager"}):
            return arviz.from_netcdf(os.fspath(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read as a NetCDF file of ArviZ data ({error})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    # A constant variable has no R-hat and a short chain a poor one: both are reported as numbers, by our warnings.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield
