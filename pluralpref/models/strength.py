"""The base class of every model of preference strength."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Dirichlet, Distribution, HalfNormal, LogNormal, Normal, Uniform, constraints
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor
from torch.distributions import transform_to
from torch.distributions.utils import broadcast_all

from pluralpref.distributions.placement import on_device
from pluralpref.errors import ConfigError, UnsupportedError
from pluralpref.models.moments import choose_parameters
from pluralpref.models.quantiles import quantile
from pluralpref.models.serialization import PretrainedStrength, describe_arguments

#: Standard deviation of the default prior of log(mean of beta): a factor of seven up or down is one deviation.
PRIOR_LOG_MEAN_SCALE = 2.0
#: Scale of the default half-normal prior of the coefficient of variation of beta.
PRIOR_CV_SCALE = 1.5


class StrengthModel(PretrainedStrength, PyroModule):
    r"""A Pyro model of preference strength: the distribution of :math:`\beta` in a population of annotators.

    The choice model is :math:`P(y_w \succ y_l \mid \beta) = \sigma(\beta h)` with the beta-free margin :math:`h`
    in nats, so :math:`\beta` is one divided by nats (dimensionless). Subclasses define ``forward(context)``,
    which returns the distribution of :math:`\beta`, and hold their global parameters as
    :class:`~pyro.nn.PyroParam` (learned) or :class:`~pyro.nn.PyroSample` (given a prior)::

        class WeibullStrength(StrengthModel):
            def __init__(self, concentration=2.0, scale=0.1):
                super().__init__()
                self.concentration = PyroParam(torch.tensor(concentration), constraints.positive)
                self.scale = PyroParam(torch.tensor(scale), constraints.positive)

            def forward(self, context=None):
                return dist.Weibull(self.scale, self.concentration)

    Learned parameters stay in the module, never in Pyro's global parameter store, so two models side by side
    don't share values.

    References
    [1] MixDPO: mixed logit DPO, arXiv:2601.06180.
    [2] K. Train, *Discrete Choice Methods with Simulation*, 2nd ed., 2009, chapter 6 (mixed logit).
    """

    _pyro_params: Any

    #: The columns of a data set that :meth:`own_context` turns into a context; of families that use one.
    own_context_columns: tuple[str, ...] = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> StrengthModel:
        """Record the arguments of construction."""
        self = super().__new__(cls)
        self.__dict__["_arguments"] = (args, kwargs)
        return self

    def __init__(self, name: str = "") -> None:
        # Pyro decides at construction where a module's parameters live.
        with pyro.settings.context(module_local_params=True):
            super().__init__(name)

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self._arguments

    def __call__(self, context: Any = None) -> Distribution:
        """Run :meth:`forward` with the module's own parameters, whatever Pyro's global store holds."""
        with pyro.settings.context(module_local_params=True):
            return super().__call__(context)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # A module moves its parameters and buffers, but not what is inside of a prior.
        super()._apply(fn, recurse)
        device = fn(torch.empty(0, dtype=torch.float64)).device
        priors = self.__dict__["_pyro_samples"]
        for name, prior in priors.items():
            if isinstance(prior, torch.distributions.Distribution):
                priors[name] = on_device(prior, device)
        return self

    def forward(self, context: Any = None) -> Distribution:
        r"""The distribution of :math:`\beta`.

        :param context: ``None``, or whatever per-pair information the family uses (covariates, group indices).
        :returns: a distribution with batch shape ``()`` or ``(pairs,)``, event shape ``()``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(context=None)")

    # -- context -------------------------------------------------------------------------------------------------

    def own_context(self, columns: Mapping[str, Sequence[Any]]) -> Any:
        """What :meth:`forward` gets as ``context`` for a batch; defined by families that have context columns.

        :param columns: the values of each of ``own_context_columns``, one for each pair.
        """
        raise NotImplementedError(f"{type(self).__name__} has context columns but doesn't define own_context(columns)")

    def _context_source(self) -> StrengthModel:
        sources = ([self] if self.own_context_columns else []) + _outermost_sources(self)
        if len(sources) > 1:
            raise ConfigError(
                f"{type(self).__name__} is made of {len(sources)} strength models with a context of their own "
                f"({', '.join(type(s).__name__ for s in sources)}), of which only one can be filled from a data set's "
                "columns"
            )
        return sources[0] if sources else self

    @property
    def context_columns(self) -> tuple[str, ...]:
        """The columns that :meth:`make_context` reads; empty where the law is the same for all pairs.

        :raises ConfigError: if several of the models that this one is made of, side by side, have a context.
        """
        source = self._context_source()
        return source.own_context_columns if source is self else source.context_columns

    def make_context(self, columns: Mapping[str, Sequence[Any]]) -> Any:
        """The context of a batch from columns of a data set.

        :param columns: the values of each of ``context_columns``, one for each pair.
        :raises DataError: for values that can't be used, naming the column and the row.
        """
        return self._context_source().own_context(columns) if self.context_columns else None

    # -- the law as it stands ------------------------------------------------------------------------------------

    def law(self, context: Any = None, parameters: Mapping[str, Tensor] | None = None) -> Distribution:
        r"""The distribution of :math:`\beta` now, outside of any Pyro trace.

        Differentiable in the learned parameters. Parameters that have a prior take the value in ``parameters``,
        else the mean of their prior; ``parameters`` may carry leading dimensions of draws.

        :param context: passed to :meth:`forward`.
        :param parameters: values for parameters that have a prior, by name.
        :raises ConfigError: if ``parameters`` names something that has no prior.
        """
        given = dict(parameters or {})
        priors = self.priors()
        unknown = sorted(set(given) - set(priors))
        if unknown:
            raise ConfigError(
                f"{type(self).__name__}.law: {', '.join(unknown)} is no parameter with a prior; "
                f"those are: {', '.join(priors) or 'none'}"
            )
        values = {self._site(name): given.get(name, prior.mean) for name, prior in priors.items()}
        with poutine.block():
            return poutine.condition(self, data=values)(context)

    def _site(self, name: str) -> str:
        return f"{self._pyro_name}.{name}" if self._pyro_name else name

    @property
    def mean(self) -> Tensor:
        r""":math:`E[\beta]` of the law as it stands, detached."""
        return self.law().mean.detach()

    @property
    def std(self) -> Tensor:
        r"""The standard deviation of :math:`\beta` of the law as it stands, detached."""
        return self.law().stddev.detach()

    @property
    def cv(self) -> Tensor:
        r"""The coefficient of variation :math:`\mathrm{sd}(\beta)/E[\beta]`, detached.

        A free policy fixes :math:`\beta` up to scale only (:math:`(\beta, h) \to (c\beta, h/c)` leaves every
        probability as it is), so the cv is the measure of heterogeneity that can be compared between runs.
        """
        return self.std / self.mean

    def quantile(self, q: float | Tensor) -> Tensor:
        r"""The quantile(s) of :math:`\beta` at level(s) ``q``, detached.

        :param q: level(s) in (0, 1).
        :raises ConfigError: if a level is outside (0, 1).
        """
        return quantile(self.law(), q)

    # -- global parameters ---------------------------------------------------------------------------------------

    def parameter_names(self) -> list[str]:
        """Names of the global parameters, learned ones first, then those with a prior."""
        return [*self.learned(), *self.priors()]

    def _parts(self) -> Iterator[tuple[str, PyroModule]]:
        """(prefix of its parameters' names, module): this one, and those that it's made of."""
        for name, module in self.named_modules():
            if isinstance(module, PyroModule):
                yield (f"{name}." if name else ""), module

    def learned(self) -> dict[str, Tensor]:
        """The learned global parameters by name, as constrained values (still attached to the graph).

        Those of a strength model that this one is made of have its name before a dot.
        """
        named = {
            prefix + name: getattr(module, name) for prefix, module in self._parts() for name in module._pyro_params
        }
        plain = {
            name: value
            for name, value in self.named_parameters(recurse=True)
            if value.requires_grad and not name.endswith("_unconstrained")
        }
        return {**named, **plain}

    def priors(self) -> dict[str, Distribution]:
        """The priors of those global parameters that have one, by name."""
        return {
            prefix + name: prior if hasattr(prior, "sample") else prior(module)
            for prefix, module in self._parts()
            for name, prior in module.__dict__["_pyro_samples"].items()
        }

    def default_priors(self) -> dict[str, Distribution]:
        r"""Weakly informative priors for the learned parameters, used when a posterior is fitted.

        :math:`E[\beta] \sim \mathrm{LogNormal}(\log m, 2)` with :math:`m` the mean of the law as it stands, and
        :math:`\mathrm{cv} \sim \mathrm{HalfNormal}(1.5)`, which doesn't depend on where training ended. For a
        parameter of another name: what its family says (:meth:`own_default_priors`), else log-normal around its value
        with scale 1 if it's positive, normal around its value with scale 1 if it's real, uniform if it's bounded or a
        vector of shares.

        :raises UnsupportedError: for a parameter with another constraint; give it a prior yourself.
        """
        priors: dict[str, Distribution] = {}
        for prefix, module in self._parts():
            own = module.own_default_priors() if isinstance(module, StrengthModel) else {}
            for name, (constraint, _) in module._pyro_params.items():
                full = prefix + name
                priors[full] = (
                    own[name]
                    if name in own
                    else _default_prior(f"{type(self).__name__}.{full}", getattr(module, name), constraint)
                )
        return priors

    def own_default_priors(self) -> dict[str, Distribution]:
        """Default priors of the family's own parameters, by name, where the general rule doesn't suit them.

        Those of its parts are theirs to define. :meth:`default_priors` puts all together.
        """
        return {}

    def with_priors(self, priors: Mapping[str, Distribution] | None = None) -> StrengthModel:
        """A copy in which every learned parameter has a prior, for Bayesian inference.

        :param priors: priors by name; they come before :meth:`default_priors` and before priors set already.
        :raises ConfigError: if a name is no parameter of this model.
        """
        given = dict(priors or {})
        unknown = sorted(set(given) - set(self.parameter_names()))
        if unknown:
            raise ConfigError(
                f"priors for {', '.join(unknown)}: {type(self).__name__} has the parameters "
                f"{', '.join(self.parameter_names()) or 'none'}"
            )
        twin = copy.deepcopy(self)
        missing = [
            prefix + name
            for prefix, module in self._parts()
            for name in module._pyro_params
            if prefix + name not in given
        ]
        defaults = self.default_priors() if missing else {}
        for name in [*missing, *given]:
            owner, _, leaf = name.rpartition(".")
            setattr(twin.get_submodule(owner), leaf, PyroSample(given.get(name, defaults.get(name))))
        return twin

    # -- names of entries ----------------------------------------------------------------------------------------

    def own_parameter_coords(self) -> dict[str, dict[str, list[str]]]:
        """As :meth:`parameter_coords`, for the family's own parameters alone; defined by families that have vectors."""
        return {}

    def parameter_coords(self) -> dict[str, dict[str, list[str]]]:
        """What the entries of vector parameters are called: ArviZ's dims and coords.

        A dimension has the same labels wherever it's named. Where a part's labels differ from those of another, or its
        dimension would have the name of a parameter, ``chain`` or ``draw``, the dimension is called
        ``<part>.<dimension>``, or ``<dimension>_dim`` where that is taken as well.

        :returns: for each parameter with named entries, by its full name: dimension name to labels, in the order of the
            parameter's axes. Empty for a family of numbers alone.
        """
        taken: dict[str, list[str] | None] = dict.fromkeys(("chain", "draw", *self.parameter_names()))
        result: dict[str, dict[str, list[str]]] = {}
        for prefix, module in self._parts():
            if not isinstance(module, StrengthModel):
                continue
            for name, dimensions in module.own_parameter_coords().items():
                result[prefix + name] = named = {}
                for dimension, labels in dimensions.items():
                    free = dimension
                    if taken.get(free, labels) != labels:
                        free = prefix + dimension
                    while taken.get(free, labels) != labels:
                        free += "_dim"
                    taken[free] = named[free] = list(labels)
        return result

    # -- helpers for subclasses ----------------------------------------------------------------------------------

    def _declare(self, name: str, value: Any, constraint: constraints.Constraint = constraints.positive) -> None:
        """Make ``name`` a global parameter: a number is learned, a distribution is a prior."""
        if isinstance(value, torch.distributions.Distribution):
            setattr(self, name, PyroSample(value))
            return
        setattr(self, name, PyroParam(as_number(name, value, constraint), constraint))

    def _declare_moments_or_own(
        self, mean: Any, cv: Any, own: Mapping[str, tuple[Any, constraints.Constraint]]
    ) -> bool:
        """Declare ``beta_mean`` and ``beta_cv``, or the family's own parameters where those are given.

        :param own: (value, constraint) by name; a value of ``None`` means not given.
        :returns: ``True`` for moments.
        :raises ConfigError: as :func:`~pluralpref.models.moments.choose_parameters`.
        """
        values = {name: value for name, (value, _) in own.items()}
        if choose_parameters(type(self).__name__, mean, cv, **values):
            self._declare("beta_mean", 0.1 if mean is None else mean)
            self._declare("beta_cv", 0.5 if cv is None else cv)
            return True
        for name, (value, constraint) in own.items():
            self._declare(name, value, constraint)
        return False

    def extra_repr(self) -> str:
        """The learned values and the priors, as the family's constructor names them."""
        parts = [f"{name}={_short(value)}" for name, value in self.learned().items()]
        parts += [f"{name} ~ {describe_arguments(prior)}" for name, prior in self.priors().items()]
        return ", ".join(parts)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


def _outermost_sources(module: torch.nn.Module) -> list[StrengthModel]:
    """The strength models inside ``module`` that have context columns and aren't part of another one that has."""
    found: list[StrengthModel] = []
    for child in module.children():
        if isinstance(child, StrengthModel) and child.own_context_columns:
            found.append(child)
        else:
            found += _outermost_sources(child)
    return found


def as_number(name: str, value: Any, constraint: constraints.Constraint) -> Tensor:
    """``value`` as a float64 tensor, checked against ``constraint``.

    Strength parameters are a handful of numbers, so float64 costs nothing and keeps the law exact.

    :raises ConfigError: if it isn't a finite number or violates the constraint; the message says what is allowed.
    """
    try:
        (number,) = broadcast_all(torch.as_tensor(value, dtype=torch.float64))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}={value!r}: give a number (learned) or a Pyro distribution (a prior)") from error
    if not torch.isfinite(number).all():
        raise ConfigError(f"{name}={value!r}: must be finite")
    if not constraint.check(number).all():
        wanted = "must be greater than 0" if constraint is constraints.positive else f"violates {constraint}"
        raise ConfigError(f"{name}={value!r}: {wanted}")
    # A round trip through the link shows values that it can't represent (1e-320, say) before training does.
    link = transform_to(constraint)
    if not torch.isfinite(link.inv(number)).all():
        raise ConfigError(f"{name}={value!r}: too extreme to be learned")
    return number.detach().clone()


def _default_prior(name: str, value: Tensor, constraint: constraints.Constraint) -> Distribution:
    """A weakly informative prior for a parameter that stands at ``value``; see ``default_priors``."""
    value = value.detach().double()
    leaf = name.rpartition(".")[2]
    prior: Distribution
    if constraint is constraints.simplex:
        return Dirichlet(torch.ones_like(value))
    if leaf == "beta_mean":
        prior = LogNormal(value.log(), PRIOR_LOG_MEAN_SCALE)
    elif leaf == "beta_cv" and constraint is constraints.positive:
        prior = HalfNormal(torch.full_like(value, PRIOR_CV_SCALE))
    elif constraint in (constraints.positive, constraints.softplus_positive, constraints.nonnegative):
        prior = LogNormal(value.log(), 1.0)
    elif isinstance(constraint, type(constraints.unit_interval)):
        low, high = (torch.as_tensor(bound).to(value) for bound in (constraint.lower_bound, constraint.upper_bound))
        prior = Uniform(low.expand_as(value), high.expand_as(value))
    elif constraint is constraints.real:
        prior = Normal(value, torch.ones_like(value))
    else:
        raise UnsupportedError(
            f"no default prior for {name} with constraint {constraint}: pass priors={{'{leaf}': ...}}"
        )
    return prior.to_event(value.dim()) if value.dim() else prior


def _short(value: Tensor) -> str:
    value = value.detach()
    if value.numel() == 1:
        return f"{value.item():.4g}"
    if value.numel() > 6:
        return f"tensor{tuple(value.shape)}"
    return "[" + ", ".join(f"{v:.4g}" for v in value.flatten().tolist()) + "]"
