"""Which method computes log E[sigmoid(beta h)] for which family: a table, and the rule that reads it.

The table works like :func:`torch.distributions.kl.register_kl`: functions are registered for a distribution class
and a method class, the class of the law and then its bases are looked up in turn, and the first that has an entry
is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent

from pluralpref.distributions.structure import log_shares
from pluralpref.errors import ConfigError, DataError, UnsupportedError
from pluralpref.inference.marginal.safe_math import promote


@dataclass(frozen=True)
class ClosedForm:
    """A formula without a numerical error beyond rounding."""


@dataclass(frozen=True)
class Quadrature:
    """Deterministic integration over log beta by the trapezoidal rule.

    :param tolerance: relative error of the probability that is asked for, in (0, 1). The number of nodes follows
        from it with a wide safety factor: at the default the error is near rounding.
    :param max_nodes: no more nodes than this for one integral; where more are needed and the error estimate is
        above ``tolerance``, a :class:`~pluralpref.errors.NumericsWarning` is issued.
    """

    tolerance: float = 1e-10
    max_nodes: int = 4096

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ConfigError(f"Quadrature(tolerance={self.tolerance}): give a number between 0 and 1.")
        if self.max_nodes < 16:
            raise ConfigError(f"Quadrature(max_nodes={self.max_nodes}): give at least 16 nodes.")


#: How draws may be laid out.
DESIGNS = ("iid", "antithetic", "stratified")


@dataclass(frozen=True)
class MonteCarlo:
    """The mean over ``num_samples`` draws of beta, differentiable in the law's parameters.

    The mean is unbiased; its logarithm is biased by about -Var(p_K)/(2 p^2), where p_K is the mean and p = E[sigmoid(beta
    h)]: most for the pairs that the law thinks least likely. Independent draws have Var(p_K) = Var(sigmoid)/K, and a
    root mean square error that falls like K^-1/2; ``"stratified"`` makes it fall like K^-3/2 for smooth laws. That is
    randomised quasi-Monte Carlo: in one dimension, K = 2^m points of a Sobol sequence with Owen's scrambling are one
    uniform point in each of K slices, which is a stratified sample. Antithetic draws help where sigmoid(beta h) is
    near linear in the quantile, and little in the tails.

    :param num_samples: the number K of draws for each pair (or, in a panel, for each annotator).
    :param design: ``"iid"``; ``"antithetic"``, pairs of quantiles q and 1 - q; ``"stratified"``, one draw in each of K
        slices of equal probability. All but the first need the law's ``icdf``.
    :param shared: the same draws for every pair, or every annotator. Errors then don't average out over pairs.
    :param seed: the same draws at every call, whatever the global generator's state, which is left alone. ``None``: new
        draws from the global generator each time.
    :param bias_correction: add s^2/(2 K m^2), m and s^2 the mean and sample variance of the K probabilities: an estimate
        of what the logarithm's curvature takes away (second-order delta method). The bias that is left is of order
        K^-2; where a few draws carry the mean (h far below 0, long panels) it is reduced, not removed. The result stays
        <= 0. For independent draws only, K >= 2.
    :raises ConfigError: for values out of range, and for a correction of draws that aren't independent.

    References: A. B. Owen, "Scrambled net variance for integrals of smooth functions", Annals of Statistics 25 (1997);
    K. Train, *Discrete Choice Methods with Simulation*, 2nd ed., 2009, chapter 9.
    """

    num_samples: int = 16
    design: str = "iid"
    shared: bool = False
    seed: int | None = None
    bias_correction: bool = False

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ConfigError(f"MonteCarlo(num_samples={self.num_samples}): give at least 1 draw.")
        if self.design not in DESIGNS:
            raise ConfigError(
                f"MonteCarlo(design={self.design!r}): choose one of {', '.join(map(repr, DESIGNS))} (a scrambled Sobol "
                "sequence is 'stratified' in one dimension)."
            )
        if self.design == "antithetic" and self.num_samples % 2:
            raise ConfigError(
                f"MonteCarlo({self.num_samples}, 'antithetic'): draws come in pairs; give an even number."
            )
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"MonteCarlo(seed={self.seed}): give an integer of at least 0, or None.")
        if self.bias_correction and self.design != "iid":
            raise ConfigError(
                f"MonteCarlo(design={self.design!r}, bias_correction=True): the correction is estimated from the "
                "variance of independent draws, and these aren't; use design='iid', or leave the correction out."
            )
        if self.bias_correction and self.num_samples < 2:
            raise ConfigError("MonteCarlo(num_samples=1, bias_correction=True): a variance needs at least 2 draws.")


Method = ClosedForm | Quadrature | MonteCarlo

_BY_NAME: dict[str, type] = {"closed_form": ClosedForm, "quadrature": Quadrature, "monte_carlo": MonteCarlo}
_NAME_OF = {cls: name for name, cls in _BY_NAME.items()}
# In this order "auto" looks for a method.
_PREFERENCE: tuple[type, ...] = (ClosedForm, Quadrature, MonteCarlo)

MarginalFunction = Callable[..., Tensor]
_F = TypeVar("_F", bound=MarginalFunction)
Condition = Callable[[Distribution], bool]
_Table = dict[tuple[type, type], tuple[MarginalFunction, Condition | None]]
_SINGLE: _Table = {}
_PANEL: _Table = {}


def register_marginal(family: type[Distribution], method: type, *, when: Condition | None = None) -> Callable[[_F], _F]:
    """Decorator: the function computes the marginal of one pair for ``family`` by ``method``.

    The function is called as ``f(law, margins, method)`` with ``law`` an instance of ``family`` (or of a subclass
    that has no entry of its own), ``margins`` a finite floating-point tensor, at least float32, that broadcasts with
    ``law.batch_shape``, and ``method`` an instance of the method class. It returns log E[sigmoid(beta h)] in nats,
    of shape ``broadcast(law.batch_shape, margins.shape)``, differentiable in margins and in the law's parameters.

    ::

        @register_marginal(MyFamily, ClosedForm)
        def _my_family(law, margins, method):
            ...

    :param family: a distribution class.
    :param method: :class:`ClosedForm`, :class:`Quadrature` or :class:`MonteCarlo`.
    :param when: tells for one law whether the function can be used; where it says no, base classes and less exact
        methods are tried.
    :raises ConfigError: if one of the first two is not such a class.
    """
    return _registrar(_SINGLE, family, method, when)


def register_panel_marginal(
    family: type[Distribution], method: type, *, when: Condition | None = None
) -> Callable[[_F], _F]:
    """Decorator: like :func:`register_marginal`, for several choices that share one beta.

    The function is called as ``f(law, problem, method)``, where ``problem`` is a
    :class:`~pluralpref.inference.marginal.panel.PanelProblem`.
    """
    return _registrar(_PANEL, family, method, when)


def _registrar(table: _Table, family: type, method: type, when: Condition | None) -> Callable[[_F], _F]:
    if not (isinstance(family, type) and issubclass(family, Distribution)):
        raise ConfigError(f"A marginal is registered for a distribution class, not for {family!r}.")
    if method not in _NAME_OF:
        raise ConfigError(f"The method class is ClosedForm, Quadrature or MonteCarlo, not {method!r}.")

    def decorate(function: _F) -> _F:
        table[family, method] = (function, when)
        return function

    return decorate


def available_methods(law: Distribution) -> tuple[str, ...]:
    """The names of the methods that exist for this law's pairs, the most exact first.

    :param law: a distribution of beta.
    :returns: a subset of ``("closed_form", "quadrature", "monte_carlo")``.
    """
    return _methods_in(_SINGLE, unwrap_law(law))


def available_panel_methods(law: Distribution) -> tuple[str, ...]:
    """The names of the methods that exist for panels with this law, the most exact first."""
    return _methods_in(_PANEL, unwrap_law(law))


def _methods_in(table: _Table, law: Distribution) -> tuple[str, ...]:
    return tuple(
        _NAME_OF[method]
        for method in _PREFERENCE
        if any(
            _find(table, cls, method, law) is not None and (cls is not Distribution or _can_draw(law, method))
            for cls in type(law).__mro__
        )
    )


def _can_draw(law: Distribution, method: type) -> bool:
    """What every distribution has by Monte Carlo needs draws that carry a gradient."""
    return method is not MonteCarlo or law.has_rsample


def _find(table: _Table, cls: type, method: type, law: Distribution) -> MarginalFunction | None:
    """The function of one entry, if there is one that can be used for this law."""
    function, when = table.get((cls, method), (None, None))
    return None if function is None or (when is not None and not when(law)) else function


def unwrap_law(law: Distribution) -> Distribution:
    """The distribution inside wrappers that only change shapes.

    :raises UnsupportedError: for a masked law or one over vectors.
    :raises ConfigError: if ``law`` is no distribution.
    """
    if not isinstance(law, Distribution):
        raise ConfigError(f"A law of beta is a distribution, not {type(law).__name__}.")
    while True:
        if isinstance(law, MaskedDistribution):
            raise UnsupportedError(
                "The law of beta is masked. A mask has no meaning inside an expectation over beta: mask the "
                "observation instead, for example MixedLogit(law, margins).mask(mask)."
            )
        if isinstance(law, Independent) and law.reinterpreted_batch_ndims == 0:
            law = law.base_dist
        elif isinstance(law, ExpandedDistribution):
            base = unwrap_law(law.base_dist)
            return base if base.batch_shape == law.batch_shape else base.expand(law.batch_shape)
        else:
            break
    if law.event_shape:
        raise UnsupportedError(
            f"{type(law).__name__} is a law over vectors (event shape {tuple(law.event_shape)}); beta is a number, so "
            "give a law with event shape (), without .to_event()."
        )
    return law


def resolve_method(law: Distribution, method: str | Method, *, panel: bool = False) -> tuple[MarginalFunction, Method]:
    """The function and the method instance for an unwrapped law.

    :raises ConfigError: if ``method`` is no name or instance of a method.
    :raises UnsupportedError: if there is none for this family.
    """
    table = _PANEL if panel else _SINGLE
    mro = type(law).__mro__
    if isinstance(method, str) and method == "auto":
        for cls in mro:
            for kind in _PREFERENCE:
                if (function := _find(table, cls, kind, law)) is not None:
                    instance = kind()
                    if cls is Distribution:
                        _require_rsample(law, instance)
                    return function, instance
        raise AssertionError("Monte Carlo is registered for every distribution")  # pragma: no cover
    if isinstance(method, str):
        if method not in _BY_NAME:
            names = ", ".join(repr(name) for name in ("auto", *_BY_NAME))
            raise ConfigError(
                f"method={method!r} is unknown; choose one of {names}, or an instance such as MonteCarlo(64)."
            )
        instance = _BY_NAME[method]()
    elif type(method) in _NAME_OF:
        instance = method
    else:
        raise ConfigError(f"method is a name or an instance of ClosedForm, Quadrature or MonteCarlo, not {method!r}.")
    for cls in mro:
        if (function := _find(table, cls, type(instance), law)) is not None:
            if cls is Distribution:
                _require_rsample(law, instance)
            return function, instance
    decorator = "register_panel_marginal" if panel else "register_marginal"
    kind_name = type(instance).__name__
    there_are = _methods_in(table, law) or ("none",)
    what = "panels (several choices that share one beta)" if panel else "pairs"
    raise UnsupportedError(
        f"{type(law).__name__} has no {_NAME_OF[type(instance)]} marginal for {what}; it has: "
        f"{', '.join(there_are)}. Choose one of these or method='auto', or add one: "
        f"@{decorator}({type(law).__name__}, {kind_name})."
    )


def _require_rsample(law: Distribution, method: Any) -> None:
    if isinstance(method, MonteCarlo) and not law.has_rsample:
        raise UnsupportedError(
            f"{type(law).__name__} has no reparameterised sampler (has_rsample is False): a Monte-Carlo marginal would "
            "silently lose the gradient of its parameters. Give the family a density (log_prob, and a support that "
            "torch.distributions.biject_to knows), which is integrated by quadrature; or rsample; or a method of its own with "
            f"@register_marginal({type(law).__name__}, ClosedForm)."
        )


def check_margins(margins: Tensor) -> Tensor:
    """``margins`` as a floating-point tensor, at least float32.

    :raises DataError: naming the first index and the count, if any are NaN.
    """
    if not isinstance(margins, Tensor):
        margins = torch.as_tensor(margins, dtype=torch.get_default_dtype())
    if not margins.is_floating_point():
        margins = margins.to(torch.get_default_dtype())
    margins = margins.to(promote(margins.dtype))
    # One reduction answers for the usual case; the rows are looked for only when something is wrong.
    if margins.numel() and bool(torch.isnan(margins.detach().sum())):
        bad = torch.isnan(margins.detach())
        if bool(bad.any()):
            first = tuple(bad.nonzero()[0].tolist())
            where = first[0] if len(first) == 1 else first
            raise DataError(
                f"{int(bad.sum())} of {margins.numel()} margins are NaN, the first at index {where}. Look at the "
                "log-probabilities of that pair, and leave it out or repair it."
            )
    return margins


def log_marginal(law: Distribution, margins: Tensor, method: str | Method = "auto") -> Tensor:
    r"""The log-probability that a random preference strength prefers the chosen answer, log E_beta[sigmoid(beta h)].

    Negate the margins for the log-probability of the other choice: log E[sigmoid(-beta h)] is accurate on its own,
    however small, while log(1 - E[sigmoid(beta h)]) would not be.

    :param law: the distribution of beta, batch shape broadcastable with ``margins``.
    :param margins: h, any shape, in nats. Infinite margins are allowed: they tell the share of people whose strength is
        positive (half of those at 0 added), or negative.
    :param method: ``"auto"`` (closed form where there is one, else quadrature, else Monte Carlo with 16 draws),
        ``"closed_form"``, ``"quadrature"``, ``"monte_carlo"``, or an instance of :class:`ClosedForm`,
        :class:`Quadrature`, :class:`MonteCarlo`.
    :returns: shape ``broadcast(law.batch_shape, margins.shape)``, nats; the dtype of margins and law promoted, at
        least float32. Differentiable twice in margins and in the law's parameters.
    :raises DataError: if a margin is NaN.
    :raises UnsupportedError: if the family has no such method.
    :raises ConfigError: if the method does not exist.
    """
    law = unwrap_law(law)
    margins = check_margins(margins)
    function, instance = resolve_method(law, method)
    infinite = torch.isinf(margins.detach())
    if not bool(infinite.any()):
        return function(law, margins, instance)
    value = function(law, torch.where(infinite, torch.zeros_like(margins), margins), instance)
    above, below = (share.to(value) for share in log_shares(law))
    limit = torch.where(margins.detach() > 0, above, below)
    return torch.where(infinite.expand(value.shape), limit.expand(value.shape), value)
