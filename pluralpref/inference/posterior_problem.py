"""The collapsed model of a set of choices: global parameters with priors, every strength integrated out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Distribution
from torch import Tensor

from pluralpref.distributions.generators import generators_kept
from pluralpref.errors import ConfigError, UnsupportedError
from pluralpref.inference.choices import Choices, rows_among
from pluralpref.inference.contexts import Contexts, base_and_factor, people_by_context
from pluralpref.inference.interpolated_likelihood import InterpolatedChoices, both_sides, interpolate_choices
from pluralpref.inference.interpolated_panels import InterpolatedPanels, interpolate_panels
from pluralpref.inference.marginal import MonteCarlo, Quadrature, available_methods, log_marginal, log_marginal_panel
from pluralpref.inference.marginal.dispatch import Method, available_panel_methods, unwrap_law
from pluralpref.inference.marginal.quadrature import has_log_family
from pluralpref.inference.mixed_logit import MixedLogit
from pluralpref.inference.shared_nodes import shared_log_marginals
from pluralpref.inference.tabulated_laws import GENERAL_TOLERANCE, can_tabulate, tabulated_log_marginal
from pluralpref.models import StrengthModel

#: Draws of beta for each pair or annotator where a family can only be integrated by Monte Carlo.
MONTE_CARLO_DRAWS = 256
#: Draws for the moments of a family that doesn't know its own.
_MOMENT_DRAWS = 4096
_COMMON_SEED = 20_260_106
#: Elements (draws times pairs) that one vectorised evaluation may have; keeps its memory in the tens of megabytes.
_CHUNK_ELEMENTS = 400_000
#: People with more different contexts than this are integrated directly, without tables.
MOST_CELLS = 64
#: More choices than this aren't integrated anew for each of thousands of evaluations.
MOST_DIRECT_CHOICES = 200_000
#: Annotators with more than so many times the median number of choices have tables of their own: theirs are finer.
_HEAVY = 16
#: Choices in one piece of the twice differentiable likelihood.
_PIECE_PAIRS = 50_000
#: So few single choices have a table of their own where they can't be reduced to fewer nodes.
_FEW_PAIRS = 2000
#: Laws in one matrix product.
_LAWS_AT_ONCE = 1000


@dataclass(frozen=True)
class Cell:
    """Annotators with one context, and so one law.

    :param people: their codes, (people,).
    :param context: with one row; ``None`` where there is no context.
    :param table: what a strength makes of their choices.
    :param weight: the coefficient of each term, (people,); ``None`` for ones.
    """

    people: Tensor
    context: Any
    table: InterpolatedPanels
    weight: Tensor | None = None


class PosteriorProblem:
    r"""The posterior :math:`p(\theta \mid y) \propto p(\theta) \prod_a E_{\beta \mid \theta} \prod_{j \in a} P(y_j)`.

    What every method of inference gets: a Pyro model (call it), the log joint density of one set of parameters (once
    differentiable and fast, or twice differentiable), and the likelihood of many draws at once.

    :param strength: the model of beta; its learned parameters get priors.
    :param choices: the checked data. With annotators, a person's choices share one beta. Where the strength reads columns
        (groups, covariates), they are taken from the choices' groups and covariates.
    :param priors: by parameter name; they override :meth:`StrengthModel.default_priors`.
    :raises ConfigError: if nothing is left to infer.
    :raises DataError: if a column that the strength reads isn't there.
    :raises UnsupportedError: if a parameter can't be given a prior, or a context that changes between the choices of one
        person does more than scale beta.
    """

    def __init__(
        self, strength: StrengthModel, choices: Choices, priors: Mapping[str, Distribution] | None = None
    ) -> None:
        if not isinstance(strength, StrengthModel):
            raise ConfigError(
                f"fit_posterior needs a StrengthModel, not {type(strength).__name__}: derive a class with "
                "forward(context) that returns the distribution of beta"
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
        self.contexts = Contexts(strength, choices) if strength.context_columns else None
        self.method: str | Method = "auto"
        methods = available_methods(law) if self.is_independent else available_panel_methods(law)
        #: How beta is integrated out, for the record.
        self.marginal_name = methods[0]
        if methods[0] == "quadrature" and not has_log_family(unwrap_law(law)):
            self.method = Quadrature(tolerance=GENERAL_TOLERANCE)
        if methods[0] == "monte_carlo":
            self.method = MonteCarlo(MONTE_CARLO_DRAWS)
            self.marginal_name = f"monte_carlo, {MONTE_CARLO_DRAWS} common random draws"
        if (
            self.contexts is not None
            and self.contexts.varies
            and base_and_factor(self.law({}, self.contexts.of_pairs)) is None
        ):
            raise UnsupportedError(
                f"{type(strength).__name__}: {self.contexts.describe_varying()}, and what changes with it is more than the "
                "scale of beta, so there is no one beta that the person's choices share: leave annotator out, or use a "
                "strength that is scaled by its columns (GroupStrength or CovariateStrength outermost)"
            )
        # Monte-Carlo noise differs from pair to pair, so it can't be interpolated.
        exact = methods[0] != "monte_carlo"
        alone = self.is_independent
        self.reduced = interpolate_choices(choices, self._cells_of_pairs()) if alone and exact else None
        tabulated = can_tabulate(law)
        #: Sets of annotators with one law each; of nodes in place of pairs where choices are independent.
        self.cells: list[Cell] = []
        if tabulated and not alone:
            self.cells = self._tabulate_people()
        elif tabulated and self.reduced is not None:
            self.cells = self._tabulate_nodes(self.reduced)
        elif tabulated and self.contexts is None and choices.num_pairs <= _FEW_PAIRS:
            # Weights and soft labels belong outside of a single choice's expectation.
            h, weight = both_sides(choices)
            self.cells = self._tabulate_nodes(InterpolatedChoices(h, weight, torch.zeros(len(h), dtype=torch.int64)))

    @property
    def names(self) -> list[str]:
        """The inferred parameters."""
        return list(self.priors)

    @property
    def is_panel(self) -> bool:
        """Whether choices are grouped by annotator."""
        return self.choices.annotator is not None

    @property
    def is_independent(self) -> bool:
        """Whether every pair is a factor of the likelihood: no annotators, or each with a single hard choice of weight 1.

        A weight, or a soft label, is inside of the expectation for an annotator and outside of it for a pair.
        """
        data = self.choices
        if data.annotator is None:
            return True
        return not data.repeated and data.weight is None and bool(((data.preferred == 0) | (data.preferred == 1)).all())

    @property
    def costs_every_choice(self) -> bool:
        """Whether one evaluation of the likelihood integrates all choices anew."""
        return not self.cells and self.reduced is None

    @property
    def is_too_large(self) -> bool:
        """Whether a method that evaluates the likelihood thousands of times is out of the question."""
        return self.costs_every_choice and self.choices.num_pairs > MOST_DIRECT_CHOICES

    @property
    def why_no_table(self) -> str:
        """What stands against a table of the choices, where there is none; for messages."""
        if not can_tabulate(self.twin.law()):
            return f"{type(self.strength).__name__} has no density that a table serves"
        if self.contexts is not None and self.contexts.varies:
            return self.contexts.describe_varying()
        if self.contexts is not None and self.contexts.num_cells > MOST_CELLS:
            return f"its columns have {self.contexts.num_cells:,} different values, more than {MOST_CELLS}"
        return f"a table for {self.num_units:,} {'annotators' if self.is_panel else 'pairs'} takes too much memory"

    @property
    def num_units(self) -> int:
        """The number of independent factors of the likelihood: annotators, or pairs where those are unknown."""
        return self.choices.num_annotators if self.is_panel else self.choices.num_pairs

    def law(self, values: Mapping[str, Tensor], context: Any = None) -> Distribution:
        """The law of beta under given parameters (others at their priors' means)."""
        return self.twin.law(context, parameters=values)

    # -- one set of parameters -----------------------------------------------------------------------------------

    def __call__(self) -> None:
        """The Pyro model: sites for the parameters and, observed, ``"preferred"`` (or a factor for all choices)."""
        values = {name: pyro.sample(name, prior) for name, prior in self.priors.items()}
        data = self.choices
        if not self.is_independent or self.reduced is not None:
            pyro.factor("preferred", self.log_likelihood_at(values))
            return
        law = self.law(values, None if self.contexts is None else self.contexts.of_pairs)
        scale = 1.0 if data.weight is None else data.weight
        with pyro.plate("pairs", data.num_pairs), poutine.scale(scale=scale), self._common_random_numbers():
            pyro.sample("preferred", MixedLogit(law, data.margins, self.method), obs=data.preferred)

    def log_joint(self, values: Mapping[str, Tensor]) -> Tensor:
        """Log p(theta) + log p(choices | theta), once differentiable."""
        with pyro.validation_enabled(False):
            return self.log_prior_at(values) + self.log_likelihood_at(values)

    def log_prior_at(self, values: Mapping[str, Tensor]) -> Tensor:
        """Log p(theta), in the parameters' own space, without Jacobians."""
        return torch.stack([prior.log_prob(values[name]).sum().double() for name, prior in self.priors.items()]).sum()

    def log_likelihood_at(self, values: Mapping[str, Tensor]) -> Tensor:
        """Log p(choices | theta), nats, by tables where there are any; once differentiable."""
        if self.cells:
            terms = (tabulated_log_marginal(cell.table, self.law(values, cell.context)) for cell in self.cells)
            weights: Iterator[Any] = (1.0 if cell.weight is None else cell.weight for cell in self.cells)
            return torch.stack([(w * x).sum() for w, x in zip(weights, terms, strict=True)]).sum()
        if self.reduced is not None:
            (smooth,) = self.smooth_pieces()
            return smooth(values)
        with self._common_random_numbers():
            return (self._single(values) if self.is_independent else self._panel(values)).sum()

    def smooth_pieces(self) -> list[Callable[[Mapping[str, Tensor]], Tensor]]:
        """Functions of theta that add up to the log-likelihood, twice differentiable, each of bounded memory."""
        if self.reduced is not None:
            nodes, coefficients = self.reduced.nodes, self.reduced.coefficients
            context = None if self.contexts is None else self.contexts.rows(self.reduced.cell)
            return [lambda values: (coefficients * log_marginal(self.law(values, context), nodes, self.method)).sum()]
        if self.is_independent:
            size = _PIECE_PAIRS
            parts = [torch.arange(i, min(i + size, self.num_units)) for i in range(0, self.num_units, size)]
            return [lambda values, part=part: self._single(values, part).sum() for part in parts]  # type: ignore[misc]
        assert self.choices.annotator is not None
        counts = torch.bincount(self.choices.annotator, minlength=self.num_units).cumsum(0)
        blocks = (counts - 1).div(_PIECE_PAIRS, rounding_mode="floor")
        return [
            lambda values, people=people: self._panel(values, people).sum()  # type: ignore[misc]
            for people in ((blocks == block).nonzero()[:, 0] for block in blocks.unique())
        ]

    def _single(self, values: Mapping[str, Tensor], pairs: Tensor | slice = slice(None)) -> Tensor:
        data = self.choices
        context = None if self.contexts is None else self.contexts.take_pairs(pairs)
        with self._common_random_numbers():
            law = self.law(values, context)
            terms = MixedLogit(law, data.margins[pairs], self.method).log_prob(data.preferred[pairs])
        return terms if data.weight is None else terms * data.weight[pairs]

    def _panel(self, values: Mapping[str, Tensor], people: Tensor | None = None) -> Tensor:
        """The terms of all annotators, or of some, by direct integration."""
        data = self.choices
        assert data.annotator is not None
        chosen, code, count = _rows_of(data.annotator, people, data.num_annotators)
        margins, law = data.margins[chosen], None
        if self.contexts is None:
            law = self.law(values)
        else:
            varies = self.contexts.varies
            context = self.contexts.take_pairs(chosen) if varies else self.contexts.take_people(people)
            law = self.law(values, context)
            if (split := base_and_factor(law)) is not None:
                law, factor = split
                margins = margins * (factor if varies else factor[code])
        with self._common_random_numbers():
            return log_marginal_panel(
                law,
                margins,
                code,
                count,
                weight=None if data.weight is None else data.weight[chosen],
                preferred=data.preferred[chosen],
                method=self.method,
            )

    def terms_of(self, values: Mapping[str, Tensor], units: Tensor) -> Tensor:
        """The log-likelihood of some pairs or annotators, (units,), by direct integration."""
        return self._panel(values, units) if self.is_panel else self._single(values, units)

    def law_of_units(self, values: Mapping[str, Tensor]) -> tuple[Distribution, Tensor | None]:
        """(the law of each unit's beta, the factor of each pair where a person's contexts vary), for one theta."""
        if self.contexts is None:
            return self.law(values), None
        if not self.is_panel:
            return self.law(values, self.contexts.of_pairs), None
        if not self.contexts.varies:
            return self.law(values, self.contexts.take_people(None)), None
        split = base_and_factor(self.law(values, self.contexts.of_pairs))
        assert split is not None
        return split

    # -- tables --------------------------------------------------------------------------------------------------

    def _cells_of_pairs(self) -> Tensor | None:
        return None if self.contexts is None else self.contexts.cell_of_pair

    def _tabulate_people(self) -> list[Cell]:
        data = self.choices
        assert data.annotator is not None
        if self.contexts is not None and (self.contexts.varies or self.contexts.num_cells > MOST_CELLS):
            return []
        cells = []
        for people, context in self._people_by_table():
            chosen, code, count = _rows_of(data.annotator, people, data.num_annotators)
            weight = None if data.weight is None else data.weight[chosen]
            table = interpolate_panels(data.margins[chosen], code, count, weight, data.preferred[chosen])
            if table is None:
                return []
            cells.append(Cell(people, context, table))
        return cells

    def _people_by_table(self) -> Iterator[tuple[Tensor, Any]]:
        """Sets of annotators with one context and similar numbers of choices: the busiest sets the distance of the nodes."""
        data = self.choices
        assert data.annotator is not None
        total = torch.bincount(data.annotator, data.weight, minlength=data.num_annotators).double()
        usual = float(total[total > 0].median()) if bool((total > 0).any()) else 1.0
        size = (total / usual).clamp_min(1).log() / math.log(_HEAVY)
        for people, context in people_by_context(self.contexts, data.num_annotators):
            sizes = size[people].floor()
            for one in sizes.unique():
                yield people[sizes == one], context

    def _tabulate_nodes(self, reduced: InterpolatedChoices) -> list[Cell]:
        count = 1 if self.contexts is None else self.contexts.num_cells
        if count > MOST_CELLS:
            return []
        cells = []
        for cell in range(count):
            nodes = (reduced.cell == cell).nonzero()[:, 0]
            context = None if self.contexts is None else self.contexts.rows(torch.tensor([cell]))
            table = interpolate_panels(reduced.nodes[nodes], torch.arange(len(nodes)), len(nodes))
            if table is None:
                return []
            cells.append(Cell(nodes, context, table, reduced.coefficients[nodes]))
        return cells

    # -- many draws ----------------------------------------------------------------------------------------------

    def log_prior(self, draws: Mapping[str, Tensor]) -> Tensor:
        """Log p(theta), (S,), of draws (S, ...) by name; in the parameters' own space, without Jacobians."""
        total: Any = 0.0
        for name, prior in self.priors.items():
            terms = prior.log_prob(draws[name])
            total = total + terms.reshape(terms.shape[0], -1).sum(-1)
        return total

    def laws(self, draws: Mapping[str, Tensor]) -> Iterator[tuple[int, int, Distribution]]:
        """:func:`laws_of_draws` without a context, in blocks that suit the number of pairs."""
        return laws_of_draws(self.twin, draws, max(1, _CHUNK_ELEMENTS // max(self.choices.num_pairs, 1)))

    @torch.no_grad()
    def log_likelihood(self, draws: Mapping[str, Tensor]) -> Tensor:
        """The log-likelihood of each unit under each draw, (S, units), nats, weights included.

        :param draws: (S, ...) by parameter name.
        """
        total = next(iter(draws.values())).shape[0]
        # Half the bytes for what may be the largest array; 1e-7 of a nat or two is far below the sampling error.
        out = torch.empty(total, self.num_units, dtype=torch.float32)
        for rows, people, terms in self._terms(draws):
            out[rows, people] = terms.float()
        return out

    @torch.no_grad()
    def total_log_likelihood(self, draws: Mapping[str, Tensor]) -> Tensor:
        """The log-likelihood of all choices under each draw, (S,), nats."""
        total = torch.zeros(next(iter(draws.values())).shape[0], dtype=torch.float64)
        if self.cells:
            for cell in self.cells:
                for rows, people, terms in self._terms_of_cell(cell, draws):
                    total[rows] += terms.sum(1) if cell.weight is None else terms @ cell.weight[people]
            return total
        if self.reduced is None:
            for rows, _, terms in self._terms(draws):
                total[rows] += terms.sum(1)
            return total
        nodes = self.reduced.nodes
        context = None if self.contexts is None else self.contexts.rows(self.reduced.cell)
        for start, stop, law in laws_of_draws(
            self.twin, draws, max(1, _CHUNK_ELEMENTS // len(nodes)), context, len(nodes)
        ):
            total[start:stop] = log_marginal(law, nodes, self.method) @ self.reduced.coefficients
        return total

    def _terms(self, draws: Mapping[str, Tensor]) -> Iterator[tuple[slice, Any, Tensor]]:
        """(draws, units, terms) in blocks that together are everything, once."""
        count = next(iter(draws.values())).shape[0]
        if self.is_independent:
            data = self.choices
            units: Any = slice(None) if data.annotator is None else data.annotator
            context = None if self.contexts is None else self.contexts.of_pairs
            block = max(1, _CHUNK_ELEMENTS // data.num_pairs)
            for start, stop, law in laws_of_draws(self.twin, draws, block, context, data.num_pairs):
                with self._common_random_numbers():
                    terms = MixedLogit(law, data.margins, self.method).log_prob(data.preferred)
                yield slice(start, stop), units, terms if data.weight is None else terms * data.weight
        elif self.cells:
            for cell in self.cells:
                for rows, people, terms in self._terms_of_cell(cell, draws):
                    yield rows, cell.people[people], terms
        else:
            for row in range(count):
                values = {name: value[row] for name, value in draws.items()}
                yield slice(row, row + 1), slice(None), self._panel(values).reshape(1, -1)

    def _terms_of_cell(self, cell: Cell, draws: Mapping[str, Tensor]) -> Iterator[tuple[slice, slice, Tensor]]:
        """(draws, people of the cell, terms) in blocks."""
        for start, stop, law in laws_of_draws(self.twin, draws, _LAWS_AT_ONCE, cell.context, 1):
            alone: dict[int, Tensor] = {}
            for people, terms in shared_log_marginals(cell.table, law):
                for row in terms.isnan().any(1).nonzero()[:, 0].tolist():
                    if row not in alone:
                        values = {name: value[start + row] for name, value in draws.items()}
                        alone[row] = tabulated_log_marginal(cell.table, self.law(values, cell.context))
                    terms[row] = alone[row][people]
                yield slice(start, stop), people, terms

    @torch.no_grad()
    def probability(self, draws: Mapping[str, Tensor], margins: Tensor) -> Tensor:
        r"""E[sigmoid(beta h)] of another person for given margins, (S, pairs)."""
        blocks = []
        for _, _, law in self.laws(draws):
            with self._common_random_numbers():
                blocks.append(log_marginal(law, margins, self.method).exp())
        return torch.cat(blocks)

    @torch.no_grad()
    def moments(self, draws: Mapping[str, Tensor], context: Any = None, width: int = 1) -> tuple[Tensor, Tensor]:
        """Mean and coefficient of variation of beta's law under each draw, (S,) both; with a context (S, width).

        From 4,096 draws made with common random numbers where the law doesn't know its moments.
        """
        means, cvs = [], []
        block = max(1, _CHUNK_ELEMENTS // max(self.choices.num_pairs, width))
        for start, stop, law in laws_of_draws(self.twin, draws, block, context, width):
            try:
                mean, std = law.mean, law.stddev
            except NotImplementedError:
                with _fixed_seed():
                    beta = law.sample(torch.Size([_MOMENT_DRAWS])).double()
                mean, std = beta.mean(0), beta.std(0)
            shape = (stop - start, width)
            means.append(mean.expand(shape).double())
            cvs.append((std / mean).expand(shape).double())
        mean, cv = torch.cat(means), torch.cat(cvs)
        return (mean[:, 0], cv[:, 0]) if context is None else (mean, cv)

    @contextmanager
    def _common_random_numbers(self) -> Iterator[None]:
        # The same draws at every evaluation make a Monte-Carlo likelihood a smooth, repeatable function.
        if isinstance(self.method, MonteCarlo):
            with _fixed_seed():
                yield
        else:
            yield


def _rows_of(annotator: Tensor, people: Tensor | None, count: int) -> tuple[Any, Tensor, int]:
    """(rows of the pairs, codes 0, 1, … of their annotators, number of annotators) of some people, or of all."""
    if people is None or people.shape[0] == count:
        return slice(None), annotator, count
    return *rows_among(annotator, people, count), people.shape[0]


def laws_of_draws(
    twin: StrengthModel, draws: Mapping[str, Tensor], block: int, context: Any = None, width: int = 1
) -> Iterator[tuple[int, int, Distribution]]:
    """(start, stop, law) over blocks of draws, the law with batch shape (stop - start, 1), or ``width`` with a context.

    Families that don't broadcast over draws are run draw by draw.

    :param twin: a strength model in which every parameter has a prior.
    :param draws: (S, ...) by parameter name.
    :param block: the number of draws at a time.
    :param context: passed to the model; has ``width`` rows.
    """
    total = next(iter(draws.values())).shape[0]
    width = 1 if context is None else width
    for start in range(0, total, block):
        stop = min(start + block, total)
        part = {name: value[start:stop].unsqueeze(1) for name, value in draws.items()}
        law = _vectorised_law(twin, part, context)
        if law is not None and tuple(law.batch_shape) == (stop - start, width) and not law.event_shape:
            yield start, stop, law
            continue
        for row in range(start, stop):
            single = twin.law(context, parameters={name: value[row] for name, value in draws.items()})
            shape = (1, width if single.batch_shape.numel() == width else 1)
            yield row, row + 1, single if tuple(single.batch_shape) == shape else single.expand(torch.Size(shape))


def _vectorised_law(twin: StrengthModel, part: Mapping[str, Tensor], context: Any) -> Distribution | None:
    try:
        return twin.law(context, parameters=part)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None


def _fixed_seed() -> AbstractContextManager[None]:
    return generators_kept(_COMMON_SEED)
