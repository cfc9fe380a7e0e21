"""A user's own Pyro function or module as a preference model."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Distribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints, transform_to

from pluralpref.distributions.generators import generators_kept
from pluralpref.errors import ConfigError
from pluralpref.models.preference import weighting
from pluralpref.models.quantiles import quantile


class TwoSiteModel(torch.nn.Module):
    r"""Any Pyro model with the two sites ``"beta"`` and ``"preferred"``, ready for the objective and the trainer.

    ::

        def annoyed_by_length(margins, preferred=None):
            loc = pyro.param("loc", torch.tensor(-2.0))
            scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
            with pyro.plate("pairs", len(margins)):
                beta = pyro.sample("beta", dist.LogNormal(loc, scale))
                pyro.sample("preferred", dist.Bernoulli(logits=beta * margins), obs=preferred)

    ``pyro.param`` statements of a function become parameters of this module, so they are in the optimiser and in
    checkpoints, and Pyro's global store stays as it was.

    :param model: a function or module called as ``model(margins, preferred)``, both of shape (pairs,). It has to
        broadcast over leading dimensions of ``beta``: the objective draws many at once.
    :raises ConfigError: if the model doesn't run on one zero margin, or lacks one of the sites.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__()
        self.name = getattr(model, "__name__", type(model).__name__)
        self.model = model
        self._links: dict[str, tuple[str, constraints.Constraint]] = {}
        missing = sorted({"beta", "preferred"} - set(self._trace_once().nodes))
        if missing:
            raise ConfigError(
                f"the Pyro model {self.name} has no site {' and no site '.join(map(repr, missing))}: a preference "
                "model samples 'beta' and observes 'preferred'"
            )

    def forward(self, margins: Tensor, preferred: Tensor | None = None, weight: Tensor | None = None) -> Any:
        """Run the model.

        :param margins: shape (pairs,), nats.
        :param preferred: observed choices in [0, 1], shape (pairs,), or ``None``.
        :param weight: scales the log-probability of each pair, shape (pairs,).
        """
        with pyro.settings.context(module_local_params=True), _LocalParams(self), weighting(weight):
            return self.model(margins, preferred)

    def law(self) -> Distribution:
        r"""The distribution of :math:`\beta` at one pair with margin 0."""
        return self._trace_once().nodes["beta"]["fn"]

    @property
    def mean(self) -> Tensor:
        r""":math:`E[\beta]`, detached."""
        return self.law().mean.detach().mean()

    @property
    def std(self) -> Tensor:
        r"""The standard deviation of :math:`\beta`, detached."""
        return self.law().stddev.detach().mean()

    @property
    def cv(self) -> Tensor:
        r"""The coefficient of variation of :math:`\beta`, detached."""
        return self.std / self.mean

    def quantile(self, q: float | Tensor) -> Tensor:
        r"""The quantile(s) of :math:`\beta` at level(s) ``q``, detached."""
        return quantile(self.law(), q)

    def _trace_once(self) -> poutine.Trace:
        # Where the parameters are: the trainer may have moved them.
        first = next(self.parameters(), None)
        one = torch.zeros(1, dtype=torch.float64, device=None if first is None else first.device)
        with generators_kept(), poutine.block():
            try:
                return poutine.trace(self).get_trace(one, torch.ones_like(one))
            except Exception as error:
                raise ConfigError(
                    f"the Pyro model {self.name} failed when called as model(margins, preferred) with one pair: "
                    f"{type(error).__name__}: {error}"
                ) from error


class _LocalParams(Messenger):
    """Serve ``pyro.param`` from a module's own parameters instead of the global store."""

    def __init__(self, owner: TwoSiteModel) -> None:
        super().__init__()
        self.owner = owner

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        if msg["value"] is not None or not msg["args"]:  # PyroModule serves its own
            return
        name = msg["name"]
        links = self.owner._links
        if name not in links:
            self._register(name, msg)
        attribute, constraint = links[name]
        unconstrained = getattr(self.owner, attribute)
        value = transform_to(constraint)(unconstrained)
        value.unconstrained = weakref.ref(unconstrained)
        msg["value"] = value

    def _register(self, name: str, msg: dict[str, Any]) -> None:
        if len(msg["args"]) < 2:
            raise ConfigError(f"pyro.param({name!r}) needs an initial value the first time it is called")
        initial = msg["args"][1]
        initial = initial() if callable(initial) else initial
        constraint = msg["kwargs"].get("constraint", constraints.real)
        start = transform_to(constraint).inv(torch.as_tensor(initial, dtype=torch.float64)).detach().clone()
        attribute = "param_" + name.replace(".", "__")
        self.owner.register_parameter(attribute, torch.nn.Parameter(start))
        self.owner._links[name] = (attribute, constraint)
