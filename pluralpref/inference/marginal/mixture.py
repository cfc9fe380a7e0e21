r"""Laws made of other laws: finite mixtures, and a law times a constant.

.. math::
    E_\beta[\sigma(\beta h)] = \sum_k w_k \, E_{\beta_k}[\sigma(\beta_k h)], \qquad
    E_X[\sigma(c X h)] = P_X(c h) .

Every component is integrated by the best method that it has itself, so a mixture of point masses (latent classes) and
Gammas has a closed form, and one with a log-normal component is as exact as that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, MixtureSameFamily, TransformedDistribution

from pluralpref.distributions import MixtureGeneral
from pluralpref.distributions.structure import factor_of, parts_of
from pluralpref.errors import UnsupportedError
from pluralpref.inference.marginal.dispatch import (
    ClosedForm,
    Condition,
    Method,
    MonteCarlo,
    Quadrature,
    available_methods,
    available_panel_methods,
    log_marginal,
    register_marginal,
    register_panel_marginal,
    resolve_method,
)
from pluralpref.inference.marginal.panel import PanelProblem
from pluralpref.inference.marginal.safe_math import absolute, complete, log1mexp, promote, working_dtype

_LOG_HALF = -math.log(2.0)


def choose_for_part(law: Distribution, method: Method, *, panel: bool = False) -> Method:
    """The method for one part: the one asked for, or the closed form of a part that has nothing else exact."""
    names = (available_panel_methods if panel else available_methods)(law)
    return ClosedForm() if isinstance(method, Quadrature) and "quadrature" not in names else method


def mixed(weights: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """Log sum_k w_k P_k."""
    return torch.logsumexp(
        torch.stack(torch.broadcast_tensors(*(w + v for w, v in zip(weights, values, strict=True)))), 0
    )


def _mixture(law: Distribution, margins: Tensor, method: Method) -> Tensor:
    parts = parts_of(law)
    assert parts is not None
    weights, components = parts
    methods = [choose_for_part(c, method) for c in components]
    dtype = promote(margins.dtype, weights[0].dtype)
    h = margins.to(working_dtype(margins.device))
    weights = [w.to(h.dtype) for w in weights]

    def side(x: Tensor) -> Tensor:
        return mixed(weights, [log_marginal(c, x, m) for c, m in zip(components, methods, strict=True)])

    _refuse_correction(law, method)
    if isinstance(method, MonteCarlo):  # other draws for the other side, so nothing would be gained below
        return side(h).to(dtype)
    # As everywhere, the improbable side is the one that's summed: 1 - P would lose it.
    magnitude = absolute(h)
    against = side(-magnitude)
    if bool((against.detach() > _LOG_HALF + 1e-12).any()):  # more people hold the opposite preference
        against, winning = complete(against, side(magnitude))
    else:
        winning = log1mexp(against)
    return torch.where((h >= 0).expand(against.shape), winning, against).to(dtype)


def _refuse_correction(law: Distribution, method: Method) -> None:
    if isinstance(method, MonteCarlo) and method.bias_correction:
        raise UnsupportedError(
            f"bias_correction isn't available for {type(law).__name__}: its parts would be corrected one by one, which is "
            "too much. Leave it out, or take method='auto', which is exact where the parts can be"
        )


def _mixture_panel(law: Distribution, problem: PanelProblem, method: Method) -> Tensor:
    _refuse_correction(law, method)
    parts = parts_of(law)
    assert parts is not None
    values = []
    for component in parts[1]:
        function, chosen = resolve_method(component, choose_for_part(component, method, panel=True), panel=True)
        values.append(function(component, problem, chosen))
    dtype = promote(*(v.dtype for v in values))
    return mixed([w.to(dtype) for w in parts[0]], [v.to(dtype) for v in values])


def _scaled(law: Any, margins: Tensor, method: Method) -> Tensor:
    factor: Any = factor_of(law)
    dtype = promote(margins.dtype, factor.dtype) if isinstance(factor, Tensor) else margins.dtype
    base = getattr(law, "unscaled", law.base_dist)
    return log_marginal(base, margins.to(dtype) * factor, method)


def _scaled_panel(law: Any, problem: PanelProblem, method: Method) -> Tensor:
    factor: Any = factor_of(law)
    dtype = promote(problem.margins.dtype, factor.dtype) if isinstance(factor, Tensor) else problem.margins.dtype
    each = torch.as_tensor(factor)
    if each.numel() > 1:  # one for each panel
        factor = each.index_select(0, problem.panel)
    turned = replace(problem, margins=problem.margins.to(dtype) * factor)
    base = getattr(law, "unscaled", law.base_dist)
    function, chosen = resolve_method(base, method, panel=True)
    return function(base, turned, chosen).expand(problem.shape)


def _parts_have(methods: Callable[[Distribution], tuple[str, ...]], *names: str) -> Condition:
    """Whether a mixture can be taken apart, each part has one of the methods, and some part the first of them."""

    def condition(law: Distribution) -> bool:
        parts = parts_of(law)
        if parts is None:
            return False
        found = [set(methods(component)) for component in parts[1]]
        return all(set(names) & have for have in found) and any(names[0] in have for have in found)

    return condition


def _base_has(methods: Callable[[Distribution], tuple[str, ...]], name: str, *, panel: bool) -> Condition:
    def condition(law: Any) -> bool:
        factor = factor_of(law)
        if factor is None:
            return False
        each = torch.as_tensor(factor)
        # Draws of a factor would need margins for each draw.
        fits = not panel or each.numel() == 1 or each.dim() == 1
        return fits and name in methods(law.base_dist)

    return condition


_NAMES: dict[type, tuple[str, ...]] = {
    ClosedForm: ("closed_form",),
    Quadrature: ("quadrature", "closed_form"),
    MonteCarlo: ("monte_carlo",),
}

for _family in (MixtureGeneral, MixtureSameFamily):
    for _kind, _names in _NAMES.items():
        register_marginal(_family, _kind, when=_parts_have(available_methods, *_names))(_mixture)
        register_panel_marginal(_family, _kind, when=_parts_have(available_panel_methods, *_names))(_mixture_panel)
for _kind in (ClosedForm, Quadrature):
    _name = _NAMES[_kind][0]
    register_marginal(TransformedDistribution, _kind, when=_base_has(available_methods, _name, panel=False))(_scaled)
    register_panel_marginal(TransformedDistribution, _kind, when=_base_has(available_panel_methods, _name, panel=True))(
        _scaled_panel
    )
