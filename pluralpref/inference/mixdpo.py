"""The objective: choices with the strength integrated out, as a Pyro ELBO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.infer.util import torch_item
from pyro.poutine.messenger import Messenger
from pyro.util import warn_if_nan
from torch import Tensor

from pluralpref.distributions.generators import generators_kept
from pluralpref.errors import ConfigError, UnsupportedError
from pluralpref.inference.contexts import base_and_factor
from pluralpref.inference.marginal import MonteCarlo, log_marginal_panel
from pluralpref.inference.marginal.draws import draw_strengths
from pluralpref.inference.marginal.monte_carlo import log_average
from pluralpref.inference.mixed_logit import MixedLogit
from pluralpref.models import ChoiceData, PreferenceModel


class MixDPO(ELBO):
    r"""Mixed logit DPO: :math:`-\log E_\beta[\sigma(\beta h)]` summed over pairs, plus what priors add.

    .. math::
        L = -\sum_i w_i \log E_{\beta \mid \theta}[\sigma(\beta h_i)]
            + E_{q(\theta)}[\log q(\theta) - \log p(\theta)], \qquad \theta \sim q .

    The expectation stands inside the logarithm. :math:`E_\beta[-\log\sigma(\beta h)]` would be linear in
    :math:`p(\beta)`, its optimum a point mass, and the spread would vanish on any data.

    With a :class:`~pluralpref.models.PreferenceModel` the integral over :math:`\beta` is exact where its family
    allows. Any other Pyro model with the sites ``"beta"`` and ``"preferred"`` is integrated by K draws:
    :math:`\beta` is replaced by K draws in a new dimension on the left, and the likelihood of ``"preferred"`` is
    averaged over them. Where the model puts ``"preferred"`` in plates that ``"beta"`` isn't in, these are the
    repeated choices that share a :math:`\beta`; they are multiplied before the average.

    Works in :class:`pyro.infer.SVI` (``loss=MixDPO()``), as a module (``MixDPO()(model, guide)``) and in the
    trainer. The value is a sum over pairs, in nats.

    :param method: ``"auto"`` (the most exact one that there is), ``"closed_form"``, ``"quadrature"``,
        ``"monte_carlo"``, or an instance of a method.
    :param num_samples: K. Giving it asks for Monte Carlo; ``None`` leaves the choice to ``method``.
    :param num_particles: draws from the guide of the global parameters.
    :param max_plate_nesting: of the model, guessed by one run if not given.
    :raises ConfigError: if ``num_samples`` is less than 1 or contradicts ``method``.

    References
    [1] MixDPO: mixed logit DPO, arXiv:2601.06180 (K = 16 for LogNormal).
    [2] K. Train, *Discrete Choice Methods with Simulation*, 2nd ed., 2009, sections 6.6 and 10.2.
    """

    def __init__(
        self,
        method: Any = "auto",
        *,
        num_samples: int | None = None,
        num_particles: int = 1,
        max_plate_nesting: float = float("inf"),
    ) -> None:
        super().__init__(num_particles=num_particles, max_plate_nesting=max_plate_nesting)
        if num_samples is not None and method not in ("auto", "monte_carlo"):
            raise ConfigError(
                f"num_samples={num_samples} has no effect on method={method!r}: leave one of them out "
                "(num_samples is the number of Monte Carlo draws)"
            )
        if num_samples is not None:
            method = MonteCarlo(num_samples)
        elif method == "monte_carlo":
            method = MonteCarlo()
        self.method = method

    # -- Pyro's interface ----------------------------------------------------------------------------------------

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The loss as a tensor with its graph.

        :param model: a :class:`~pluralpref.models.PreferenceModel`, or any Pyro model with the two sites.
        :param guide: of the global parameters that have a prior; a function that does nothing if there are none.
        :param args: the model's and the guide's arguments, likewise ``kwargs``.
        :raises UnsupportedError: if beta can't be integrated out of this model; the message says why.
        """
        total: Any = 0.0
        for _ in range(self.num_particles):
            total = total + self._particle(model, guide, args, kwargs) / self.num_particles
        warn_if_nan(total, "loss")
        return total

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The loss as a number."""
        with torch.no_grad():
            return torch_item(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The loss as a number, with its gradients added to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if isinstance(loss, Tensor) and loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return torch_item(loss)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("MixDPO integrates beta out, so there is no trace of all sites")

    # -- one particle --------------------------------------------------------------------------------------------

    def _particle(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        for name, site in guide_trace.nodes.items():
            if site["type"] == "sample" and not site["is_observed"] and not getattr(site["fn"], "has_rsample", False):
                raise UnsupportedError(
                    f"guide site {name!r} has distribution {type(site['fn']).__name__}, whose draws carry no gradient; "
                    "use a reparameterised one, e.g. pyro.infer.autoguide.AutoNormal"
                )
        if isinstance(model, PreferenceModel):
            model_trace, likelihood = self._collapsed(model, guide_trace, args, kwargs)
        else:
            model_trace, likelihood = self._sampled(model, guide, guide_trace, args, kwargs)
        integrated_out = {"beta", "preferred"}
        model_trace.compute_log_prob(lambda name, site: name not in integrated_out)
        guide_trace.compute_log_prob()
        globals_: Any = 0.0
        for trace, sign in ((model_trace, 1.0), (guide_trace, -1.0)):
            for name, site in trace.nodes.items():
                if site["type"] == "sample" and name not in integrated_out:
                    globals_ = globals_ + sign * site["log_prob_sum"]
        return -(likelihood + globals_)

    def _collapsed(self, model: PreferenceModel, guide_trace: Any, args: Any, kwargs: Any) -> tuple[Any, Tensor]:
        data: ChoiceData = model.data(*args, **kwargs)
        with poutine.trace() as tracer, poutine.replay(trace=guide_trace):
            law = model.strength(data.context)
        y = torch.ones_like(data.margins) if data.preferred is None else data.preferred.to(data.margins.dtype)
        if data.annotator is not None:
            law, margins = _one_law(law, data.margins)
            panels = int(data.annotator.max()) + 1
            values = log_marginal_panel(
                law, margins, data.annotator, panels, weight=data.weight, preferred=y, method=self.method
            )
            return tracer.trace, data.scale * values.sum()
        values = MixedLogit(law, data.margins, self.method).log_prob(y)
        return tracer.trace, data.scale * (values if data.weight is None else data.weight * values).sum()

    def _sampled(self, model: Any, guide: Any, guide_trace: Any, args: Any, kwargs: Any) -> tuple[Any, Tensor]:
        method = MonteCarlo() if self.method == "auto" else self.method
        if not isinstance(method, MonteCarlo):
            raise UnsupportedError(
                f"method {self.method!r} needs a PreferenceModel, whose logits are known to be beta * margin; "
                f"{getattr(model, 'name', type(model).__name__)} is integrated by Monte Carlo (num_samples=K)"
            )
        if self.max_plate_nesting == float("inf"):
            # The guess runs the model; its draws mustn't shift the generator, or a resumed run would differ.
            with generators_kept():
                self._guess_max_plate_nesting(model, guide, args, kwargs)
        draws = _DrawStrengths(method, int(self.max_plate_nesting))
        with poutine.trace() as tracer, draws, poutine.replay(trace=guide_trace):
            model(*args, **kwargs)
        nodes = tracer.trace.nodes
        for name in ("beta", "preferred"):
            if name not in nodes or nodes[name]["type"] != "sample":
                raise UnsupportedError(f"the model has no sample site {name!r}; MixDPO needs 'beta' and 'preferred'")
        return tracer.trace, _log_average(nodes["beta"], nodes["preferred"], draws.dim, method)


def _one_law(law: Any, margins: Tensor) -> tuple[Any, Tensor]:
    """The law of the strength that a person's choices share, and margins that its factors have gone into.

    :raises UnsupportedError: where laws differ from pair to pair in more than their scale.
    """
    if law.batch_shape.numel() == 1:
        return law, margins
    split = base_and_factor(law)
    if split is None:
        raise UnsupportedError(
            f"the law of beta ({type(law).__name__}) differs from pair to pair in more than its scale, so there is no one "
            "beta that a person's choices share: leave annotators out, or use a strength that is scaled by its columns"
        )
    return split[0], margins * split[1]


class _DrawStrengths(Messenger):
    """Replace the value of site ``beta`` by K draws along a new dimension left of all plates."""

    def __init__(self, method: MonteCarlo, max_plate_nesting: int) -> None:
        super().__init__()
        self.method = method
        self.nesting = max_plate_nesting
        self.dim = -1 - max_plate_nesting

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] != "beta":
            return
        fn = msg["fn"]
        if not fn.has_rsample:
            raise UnsupportedError(
                f"site 'beta' has distribution {type(fn).__name__} without rsample, so Monte Carlo can't pass gradients "
                "to its parameters; use a reparameterised distribution, or a StrengthModel whose family has a closed form"
            )
        padding = (1,) * (self.nesting - len(fn.batch_shape))
        msg["value"] = draw_strengths(fn, self.method, padding)


def _log_average(beta: Any, preferred: Any, dim: int, method: MonteCarlo) -> Tensor:
    beta_frames = {frame.name for frame in beta["cond_indep_stack"]}
    frames = {frame.name: frame.dim for frame in preferred["cond_indep_stack"] if frame.vectorized}
    if beta_frames - set(frames):
        raise UnsupportedError(
            f"site 'beta' is in plate {', '.join(sorted(beta_frames - set(frames)))} but 'preferred' isn't, so which "
            "choices share a beta is unknown: nest the plates, or use PreferenceModel with annotator codes"
        )
    repeated = [d for name, d in frames.items() if name not in beta_frames]
    fn, y = preferred["fn"], preferred["value"]
    scale = preferred["scale"]
    hard = bool(((y == 0) | (y == 1)).all())

    def log_prob(value: Tensor) -> Tensor:
        result = fn.log_prob(value)
        lead = -dim - result.dim()  # the draws' dimension is missing if 'preferred' doesn't depend on beta
        result = result[(None,) * lead] if lead > 0 else result
        mask = preferred.get("mask")
        return result if mask is None else torch.where(torch.as_tensor(mask), result, torch.zeros_like(result))

    def average(values: Tensor) -> Tensor:
        return log_average(values.movedim(dim, 0), method)

    one, zero = torch.ones_like(y), torch.zeros_like(y)
    if repeated:
        joint = scale * (log_prob(y) if hard else y * log_prob(one) + (1 - y) * log_prob(zero))
        return average(joint.sum(repeated, keepdim=True)).sum()
    if hard:
        values = average(log_prob(y))
    else:
        values = y * average(log_prob(one)) + (1 - y) * average(log_prob(zero))
    return (scale * values).sum()
