"""The generative model of a choice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pluralpref.errors import DataError
from pluralpref.models.strength import StrengthModel


@contextmanager
def weighting(weight: Tensor | None) -> Iterator[None]:
    """Scale the log-probabilities of the sites inside; a weight of 0, which Pyro's scale refuses, masks them."""
    if weight is None:
        yield
        return
    used = weight > 0
    with poutine.mask(mask=used), poutine.scale(scale=torch.where(used, weight, torch.ones_like(weight))):
        yield


class ChoiceData(NamedTuple):
    """What a preference model is conditioned on, checked: see :meth:`PreferenceModel.data`."""

    margins: Tensor  #: (pairs,), nats
    preferred: Tensor | None  #: (pairs,), in [0, 1]
    weight: Tensor | None  #: (pairs,), >= 0
    annotator: Tensor | None  #: (pairs,), codes 0 .. annotators-1
    context: Any
    scale: float = 1.0  #: how many such batches the data are made of


class PreferenceModel(torch.nn.Module):
    r"""How a choice comes about: a strength is drawn, then the answer is chosen through a logit.

    .. math::
        \theta \sim p(\theta), \qquad
        \beta_i \sim p(\beta \mid \theta), \qquad
        \mathrm{preferred}_i \sim \mathrm{Bernoulli}(\sigma(\beta_i h_i)).

    Without annotators every pair has a strength of its own (plate ``"pairs"``). With annotators the strengths
    live in plate ``"annotators"`` and a person's choices share one: the panel mixed logit. The global parameters
    :math:`\theta` are those of ``strength``. Sites: ``"beta"``, ``"preferred"``, and one for each parameter with
    a prior.

    :param strength: the model of :math:`\beta`.

    Reference: K. Train, *Discrete Choice Methods with Simulation*, 2nd ed., 2009, section 6.7 (panel data).
    """

    def __init__(self, strength: StrengthModel) -> None:
        super().__init__()
        self.strength = strength

    def forward(
        self,
        margins: Tensor,
        preferred: Tensor | None = None,
        weight: Tensor | None = None,
        annotator: Tensor | None = None,
        context: Any = None,
        scale: float = 1.0,
    ) -> Tensor:
        r"""Run the model once; under Pyro's handlers this conditions, replays, traces.

        :param margins: :math:`h`, shape (pairs,), nats.
        :param preferred: observed choices, 1 where the answer called chosen was preferred, a number in [0, 1] for
            a soft label; ``None`` draws them.
        :param weight: scales the log-probability of each choice, shape (pairs,), default 1.
        :param annotator: codes 0, 1, … of the person who chose, shape (pairs,), integers.
        :param context: passed to the strength model.
        :param scale: multiplies the log-probabilities of all local sites: a batch that stands for ``scale`` times as much
            data, as Pyro's plates scale subsamples.
        :returns: ``preferred``, shape (pairs,).
        :raises DataError: if a shape or value doesn't fit; the message names the argument.
        """
        data = self.data(margins, preferred, weight, annotator, context, scale)
        law = self.strength(data.context)
        with poutine.scale(scale=data.scale):
            return self._draw(data, law)

    def _draw(self, data: ChoiceData, law: dist.Distribution) -> Tensor:
        weighted = weighting(data.weight)
        pairs = pyro.plate("pairs", data.margins.shape[-1], dim=-1)
        if data.annotator is None:
            with pairs, weighted:
                beta = pyro.sample("beta", law)
                return self._choose(beta * data.margins, data.preferred)
        with pyro.plate("annotators", int(data.annotator.max()) + 1, dim=-1):
            beta = pyro.sample("beta", law)
        with pairs, weighted:
            return self._choose(beta[..., data.annotator] * data.margins, data.preferred)

    @staticmethod
    def _choose(logits: Tensor, preferred: Tensor | None) -> Tensor:
        # Bernoulli's own check would refuse soft labels; they were checked in `data`.
        return pyro.sample("preferred", dist.Bernoulli(logits=logits, validate_args=False), obs=preferred)

    @staticmethod
    def data(
        margins: Tensor,
        preferred: Tensor | None = None,
        weight: Tensor | None = None,
        annotator: Tensor | None = None,
        context: Any = None,
        scale: float = 1.0,
    ) -> ChoiceData:
        """The arguments of :meth:`forward`, checked.

        :raises DataError: if a shape or value doesn't fit; the message names the argument.
        """
        if margins.dim() != 1:
            raise DataError(f"margins must have shape (pairs,), got {tuple(margins.shape)}")
        for name, value in (("preferred", preferred), ("weight", weight), ("annotator", annotator)):
            if value is not None and value.shape != margins.shape:
                raise DataError(
                    f"{name} has shape {tuple(value.shape)} but there are {margins.shape[0]} margins: "
                    "one entry for each pair is needed"
                )
        if preferred is not None and not ((preferred >= 0) & (preferred <= 1)).all():
            row = int((~((preferred >= 0) & (preferred <= 1))).nonzero()[0])
            raise DataError(f"preferred[{row}]={preferred[row].item()}: must be a number in [0, 1]")
        if weight is not None and not ((weight >= 0) & torch.isfinite(weight)).all():
            row = int((~((weight >= 0) & torch.isfinite(weight))).nonzero()[0])
            raise DataError(f"weight[{row}]={weight[row].item()}: must be finite and not negative")
        if annotator is not None and (annotator.is_floating_point() or bool((annotator < 0).any())):
            raise DataError("annotator must hold integer codes 0, 1, …; map names to codes first")
        if not (0 < scale < float("inf")):
            raise DataError(f"scale={scale}: must be finite and greater than 0")
        return ChoiceData(margins, preferred, weight, annotator, context, scale)
