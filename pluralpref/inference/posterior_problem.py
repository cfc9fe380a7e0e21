"""The collapsed model of a set of choices: global parameters with priors, every strength integrated out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Distribution
from torch import Tensor

from pluralpref.errors import ConfigError, UnsupportedError
from pluralpref.inference.choices import Choices
from pluralpref.inference.interpolated_likelihood import interpolate_choices
from pluralpref.inference.interpolated_panels import InterpolatedPanels, interpolate_panels
from pluralpref.inference.marginal import MonteCarlo, Quadrature, available_methods, log_marginal, log_marginal_panel
from pluralpref.inference.marginal.dispatch import Method, available_panel_methods, unwrap_law
from pluralpref.inference.marginal.quadrature import has_log_family
from pluralpref.inference.mixed_logit import MixedLogit
from pluralpref.inference.tabulated_laws import GENERAL_TOLERANCE, can_tabulate, tabulated_log_marginal
from pluralpref.models import StrengthModel

#: Draws of beta for each pair or annotator where a family can only be integrated by Monte Carlo.
MONTE_CARLO_DRAWS = 256
#: Draws for the moments of a family that doesn't know its own.
_MOMENT_DRAWS = 4096
_COMMON_SEED = 20_260_106
#: Elements (draws times pairs) that one vectorised evaluation may have; keeps its memory in the tens of megabytes.
_CHUNK_ELEMENTS = 400_000


class PosteriorProblem:
    r"""The posterior :math:`p(\theta \mid y) \propto p(\theta) \prod_a E_{\beta \mid \theta} \prod_{j \in a} P(y_j)`.

    What every method of inference gets: a Pyro model (call it), and the likelihood of many draws at once.

    :param strength: the model of beta; its learned parameters get priors.
    :param choices: the checked data. With annotators, a person's choices share one beta.
    :param priors: by parameter name; they override :meth:`StrengthModel.default_priors`.
    :raises ConfigError: if nothing is left to infer.
    :raises UnsupportedError: if a parameter can't be given a prior, or the law differs from pair to pair.
    """

    def __init__(
        self, strength: StrengthModel, choices: Choices, priors: Mapping[str, Distribution] | None = None
    ) -> None:
        if not isinstance(strength, StrengthModel):
            raise ConfigError(
                f"fit_posterior needs a StrengthModel, not {type(strength).__name__}: derive a class with "
                "forward(context) that returns the distribution of beta"
            )
        if strength.context_columns:
            raise UnsupportedError(
                f"{type(strength).__name__} has a law for each {' and '.join(strength.context_columns)}; a posterior needs "
                "one law for the population: fit each part of the data by itself"
            )
        self.strength = strength
        self.choices = choices
        self.twin = strength.with_priors(priors)
        left = sorted(self.twin.learned())
        if left:
            raise UnsupportedError(
                f"{type(strength).__name__}: {', '.join(left)} has no prior, so it would stay fixed: declare it as a "
                "PyroParam, or pass priors={...}"
            )
        self.priors: dict[str, Distribution] = self.twin.priors()
        if not self.priors:
            raise ConfigError(
                f"{strength!r} has no parameter to infer: fit FixedStrength(..., learned=True) for one common "
                "strength, or LogNormalStrength or GammaStrength for its distribution"
            )
        law = self.twin.law()
        if law.batch_shape.numel() != 1:
            raise UnsupportedError(
                f"{type(strength).__name__} gives a law with batch shape {tuple(law.batch_shape)} without a context; "
                "a posterior needs one law for the population, batch shape ()"
            )
        self.method: str | Method = "auto"
        methods = available_methods(law) if choices.annotator is None else available_panel_methods(law)
        #: How beta is integrated out, for the record.
        self.marginal_name = methods[0]
        if methods[0] == "quadrature" and not has_log_family(unwrap_law(law)):
            self.method = Quadrature(tolerance=GENERAL_TOLERANCE)
        if methods[0] == "monte_carlo":
            self.method = MonteCarlo(MONTE_CARLO_DRAWS)
            self.marginal_name = f"monte_carlo, {MONTE_CARLO_DRAWS} common random draws"
        # Monte-Carlo noise differs from pair to pair, so it can't be interpolated.
        self.reduced = None if self.is_panel or methods[0] == "monte_carlo" else interpolate_choices(choices)
        self.table = self._tabulate() if can_tabulate(law) else None

    @property
    def names(self) -> list[str]:
        """The inferred parameters."""
        return list(self.priors)

    @property
    def is_panel(self) -> bool:
        """Whether choices are grouped by annotator."""
        return self.choices.annotator is not None

    @property
    def num_units(self) -> int:
        """The number of independent factors of the likelihood: annotators, or pairs where those are unknown."""
        return self.choices.num_annotators if self.is_panel else self.choices.num_pairs

    def __call__(self) -> None:
        """The Pyro model: sites for the parameters and, observed, ``"preferred"`` (or a factor for each panel)."""
        law = self.twin()
        data = self.choices
        if self.reduced is not None:
            # The same sum over pairs as below to about 1e-6 nats, at a cost that doesn't grow with their number.
            nodes = self.reduced.nodes
            terms = (
                log_marginal(law, nodes, self.method) if self.table is None else tabulated_log_marginal(self.table, law)
            )
            pyro.factor("preferred", (self.reduced.coefficients * terms).sum())
            return
        if not self.is_panel:
            scale = 1.0 if data.weight is None else data.weight
            with pyro.plate("pairs", data.num_pairs), poutine.scale(scale=scale), self._common_random_numbers():
                pyro.sample("preferred", MixedLogit(law, data.margins, self.method), obs=data.preferred)
                return
        if self.table is not None:
            terms = tabulated_log_marginal(self.table, law)
        else:
            with self._common_random_numbers():
                terms = self._panel(law)
        with pyro.plate("annotators", data.num_annotators):
            pyro.factor("preferred", terms)

    def _tabulate(self) -> InterpolatedPanels | None:
        if self.reduced is not None:
            nodes = self.reduced.nodes
            return interpolate_panels(nodes, torch.arange(nodes.shape[0]), nodes.shape[0])
        data = self.choices
        if data.annotator is None:
            return None
        return interpolate_panels(data.margins, data.annotator, data.num_annotators, data.weight, data.preferred)

    def log_prior(self, draws: Mapping[str, Tensor]) -> Tensor:
        """Log p(theta), (S,), of draws (S, ...) by name; in the parameters' own space, without Jacobians."""
        total: Any = 0.0
        for name, prior in self.priors.items():
            terms = prior.log_prob(draws[name])
            total = total + terms.reshape(terms.shape[0], -1).sum(-1)
        return total

    def laws(self, draws: Mapping[str, Tensor]) -> Iterator[tuple[int, int, Distribution]]:
        """:func:`laws_of_draws` in blocks that suit the number of pairs."""
        return laws_of_draws(self.twin, draws, max(1, _CHUNK_ELEMENTS // max(self.choices.num_pairs, 1)))

    @torch.no_grad()
    def log_likelihood(self, draws: Mapping[str, Tensor]) -> Tensor:
        """The log-likelihood of each unit under each draw, (S, units), nats, weights included.

        :param draws: (S, ...) by parameter name.
        """
        total = next(iter(draws.values())).shape[0]
        # Half the bytes for what may be the largest array; 1e-7 of a nat or two is far below the sampling error.
        out = torch.empty(total, self.num_units, dtype=torch.float32)
        if self.is_panel and self.table is not None:
            for start, _, law in laws_of_draws(self.twin, draws, 1):
                out[start] = tabulated_log_marginal(self.table, law)
            return out
        for start, stop, law in self.laws(draws):
            with self._common_random_numbers():
                out[start:stop] = self._panel(law) if self.is_panel else self._single(law)
        return out

    def _single(self, law: Distribution) -> Tensor:
        data = self.choices
        terms = MixedLogit(law, data.margins, self.method).log_prob(data.preferred)
        return terms if data.weight is None else terms * data.weight

    def _panel(self, law: Distribution) -> Tensor:
        data = self.choices
        assert data.annotator is not None
        return log_marginal_panel(
            law,
            data.margins,
            data.annotator,
            data.num_annotators,
            weight=data.weight,
            preferred=data.preferred,
            method=self.method,
        )

    @torch.no_grad()
    def probability(self, draws: Mapping[str, Tensor], margins: Tensor) -> Tensor:
        r"""E[sigmoid(beta h)] of another person for given margins, (S, pairs)."""
        blocks = []
        for _, _, law in self.laws(draws):
            with self._common_random_numbers():
                blocks.append(log_marginal(law, margins, self.method).exp())
        return torch.cat(blocks)

    @torch.no_grad()
    def moments(self, draws: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and coefficient of variation of beta's law under each draw, (S,) both.

        From 4,096 draws made with common random numbers where the law doesn't know its moments.
        """
        means, cvs = [], []
        for _, _, law in self.laws(draws):
            try:
                mean, std = law.mean, law.stddev
            except NotImplementedError:
                with _fixed_seed():
                    beta = law.sample(torch.Size([_MOMENT_DRAWS])).double()
                mean, std = beta.mean(0), beta.std(0)
            shape = law.batch_shape
            means.append(mean.expand(shape)[:, 0].double())
            cvs.append((std / mean).expand(shape)[:, 0].double())
        return torch.cat(means), torch.cat(cvs)

    @contextmanager
    def _common_random_numbers(self) -> Iterator[None]:
        # The same draws at every evaluation make a Monte-Carlo likelihood a smooth, repeatable function.
        if isinstance(self.method, MonteCarlo):
            with _fixed_seed():
                yield
        else:
            yield


def laws_of_draws(
    twin: StrengthModel, draws: Mapping[str, Tensor], block: int
) -> Iterator[tuple[int, int, Distribution]]:
    """(start, stop, law) over blocks of draws, the law with batch shape (stop - start, 1).

    Families that don't broadcast over draws are run draw by draw.

    :param twin: a strength model in which every parameter has a prior.
    :param draws: (S, ...) by parameter name.
    :param block: the number of draws at a time.
    """
    total = next(iter(draws.values())).shape[0]
    for start in range(0, total, block):
        stop = min(start + block, total)
        law = _vectorised_law(twin, {name: value[start:stop].unsqueeze(1) for name, value in draws.items()})
        if law is not None and tuple(law.batch_shape) == (stop - start, 1) and not law.event_shape:
            yield start, stop, law
            continue
        for row in range(start, stop):
            single = twin.law(parameters={name: value[row] for name, value in draws.items()})
            yield row, row + 1, single.expand(torch.Size((1, 1)))


def _vectorised_law(twin: StrengthModel, part: Mapping[str, Tensor]) -> Distribution | None:
    try:
        return twin.law(parameters=part)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None


@contextmanager
def _fixed_seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_COMMON_SEED)
        yield
