"""The conformance kit: does a strength family of your own keep the promises that the rest of the package relies on?"""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution

from pluralpref.distributions.generators import generators_kept
from pluralpref.distributions.structure import has_atoms
from pluralpref.errors import NumericsWarning
from pluralpref.inference.marginal import MonteCarlo, available_methods, log_marginal, log_marginal_panel
from pluralpref.inference.marginal.dispatch import available_panel_methods
from pluralpref.inference.mixdpo import MixDPO
from pluralpref.models import PreferenceModel, StrengthModel

_SEED = 20_261_125
#: Standard errors that a simulated value may be off: one in 300,000 by chance.
_STANDARD_ERRORS = 4.7
_DRAWS = 50_000
#: Pairs and steps of the training test: enough to move, few enough for laws that take milliseconds a call.
_PAIRS, _STEPS = 200, 12
_BINS = 12


class StrengthModelTests:
    """Tests that every :class:`~pluralpref.models.StrengthModel` should pass. Inherit and say how one is made::

        from pluralpref.testing import StrengthModelTests

        class TestWeibullStrength(StrengthModelTests):
            def make_strength(self):
                return WeibullStrength(concentration=2.0, scale=0.1)

    and run pytest. The assertions' messages say what is wrong and what to do. A test that can't apply (a family without
    a density, say) is skipped with its reason.

    Attributes to override:

    - ``margins``: the margins in nats at which probabilities are compared;
    - ``num_draws``: the draws of comparisons with simulation.
    """

    margins: tuple[float, ...] = (-60.0, -8.0, -1.0, -0.05, 0.05, 1.0, 8.0, 60.0)
    num_draws: int = _DRAWS

    def make_strength(self) -> StrengthModel:
        """A new strength model; the same parameter values at every call."""
        raise NotImplementedError("define make_strength(self) and return a new strength model")

    def make_context(self) -> Any:
        """The context of ``len(self.margins)`` pairs, for a family whose law differs from pair to pair.

        A tensor with the pairs first, or a tuple of contexts.
        """
        return None

    # -- the law -------------------------------------------------------------------------------------------------

    def test_law_is_a_distribution_of_numbers(self) -> None:
        """Event shape (), batch shape () or one law for each pair."""
        strength = self.make_strength()
        law = strength.law()
        assert isinstance(law, Distribution), f"forward must return a distribution, not {type(law).__name__}"
        assert law.event_shape == (), f"beta is a number, but the event shape is {tuple(law.event_shape)}"
        assert law.batch_shape == (), f"without a context the batch shape must be (), not {tuple(law.batch_shape)}"
        context = self.make_context()
        if context is not None:
            shape = strength.law(context).batch_shape
            assert shape == (len(self.margins),), f"with a context of {len(self.margins)} pairs: {tuple(shape)}"

    def test_law_expands(self) -> None:
        """Plates and draws of parameters need ``expand``."""
        law = self.make_strength().law()
        wide = law.expand(torch.Size((3, 2)))
        assert wide.batch_shape == (3, 2), f"expand((3, 2)) gave {tuple(wide.batch_shape)}"
        assert wide.sample(torch.Size([5])).shape == (5, 3, 2)
        if self._is_exact(law):
            value = log_marginal(law, torch.tensor(0.7, dtype=torch.float64))
            torch.testing.assert_close(log_marginal(wide, torch.tensor(0.7, dtype=torch.float64)), value.expand(3, 2))

    def test_draws_are_where_the_support_says(self) -> None:
        """Draws are finite numbers of the declared support; a positive law has no negative ones."""
        law = self.make_strength().law()
        draws = self._draws(law)
        assert bool(torch.isfinite(draws).all()), "some draws aren't finite"
        try:
            support: Any = law.support
        except NotImplementedError:
            _skip("the law declares no support")
        inside = support.check(draws)
        assert bool(inside.all()), f"{int((~inside).sum())} draws lie outside of the support {support}"

    def test_draws_follow_the_density(self) -> None:
        """The density integrates to the shares of draws between their quantiles."""
        law = self.make_strength().law()
        if has_atoms(law):
            _skip("a law with point masses has no density")
        edges = self._edges(law)
        try:
            shares = torch.stack([_integral(law, a, b) for a, b in itertools.pairwise(edges)])
        except NotImplementedError:
            _skip("the family has no log_prob; it can only be integrated by Monte Carlo")
        self._compare_shares(law, edges, shares, "exp(log_prob) integrates to")

    def test_draws_follow_the_distribution_function(self) -> None:
        """The same for ``cdf``, where there is one; ``icdf`` is its inverse."""
        law = self.make_strength().law()
        edges = self._edges(law)
        try:
            below = law.cdf(edges)
        except NotImplementedError:
            _skip("the family has no cdf")
        self._compare_shares(law, edges, below.diff(), "cdf gives")
        try:
            levels = torch.tensor([0.02, 0.5, 0.97], dtype=torch.float64)
            torch.testing.assert_close(law.cdf(law.icdf(levels)), levels, rtol=1e-6, atol=1e-8)
        except NotImplementedError:
            pass

    def test_reparameterised_draws_are_draws(self) -> None:
        """``rsample``, which Monte Carlo uses, has the law of ``sample``."""
        law = self.make_strength().law()
        if not law.has_rsample or has_atoms(law):
            _skip("no rsample, or nothing to compare")
        edges = self._edges(law)
        with self._seeded(), torch.no_grad():
            draws = law.rsample(torch.Size([self.num_draws])).double()
        shares = torch.stack([((draws > a) & (draws <= b)).double().mean() for a, b in itertools.pairwise(edges)])
        # Both sides are simulated.
        self._compare_shares(law, edges, shares, "rsample puts", spread=math.sqrt(2))

    def test_moments_are_those_of_draws(self) -> None:
        """``mean`` and ``cv``, where the fourth moment lets draws tell."""
        strength = self.make_strength()
        draws = self._draws(strength.law())
        mean, std = float(strength.mean), float(strength.std)
        if not (math.isfinite(mean) and math.isfinite(std)):
            _skip("the mean or the variance is infinite")
        error = float(draws.std()) / math.sqrt(len(draws))
        found = float(draws.mean())
        assert abs(found - mean) <= _STANDARD_ERRORS * error + 1e-9 * abs(mean), (
            f"the mean is {mean:.6g} but that of draws {found:.6g} +- {error:.2g}"
        )
        if std > 0:
            squared = (draws - mean) ** 2
            error = float(squared.std()) / math.sqrt(len(draws))
            found = float(squared.mean())
            assert abs(found - std**2) <= _STANDARD_ERRORS * error + 0.02 * std**2, (
                f"the variance is {std**2:.6g} but that of draws {found:.6g} +- {error:.2g}"
            )

    # -- choice probabilities ------------------------------------------------------------------------------------

    def test_probability_is_the_mean_over_draws(self) -> None:
        """What "auto" computes agrees with draws within their standard error, at every margin."""
        law = self.make_strength().law()
        h = self._margins()
        value = log_marginal(law, h) if self._is_exact(law) else self._by_draws(law, h)
        chosen = torch.sigmoid(self._draws(law).unsqueeze(-1) * h)
        self._compare_probabilities(value, chosen, "log_marginal")

    def test_panel_probability_is_the_mean_over_draws(self) -> None:
        """The same for two people who choose several times, each with one beta; one choice is the single pair."""
        law = self.make_strength().law()
        h = self._margins() / 20
        panel = torch.arange(len(h)) % 2
        draws = self._draws(law).unsqueeze(-1)
        chosen = torch.stack([torch.sigmoid(draws * h[panel == a]).prod(-1) for a in (0, 1)], -1)
        if available_panel_methods(law)[0] == "monte_carlo":
            torch.manual_seed(_SEED + 1)
            value = log_marginal_panel(law, h, panel, 2, method=MonteCarlo(50_000)).detach()
            assert ((value - chosen.mean(0).log()).abs() < 0.1).all()
            return
        self._compare_probabilities(log_marginal_panel(law, h, panel, 2), chosen, "log_marginal_panel")
        single = log_marginal_panel(law, h, torch.arange(len(h)), len(h))
        torch.testing.assert_close(single, log_marginal(law, h), rtol=1e-8, atol=1e-10)

    def test_the_two_choices_are_certain(self) -> None:
        """P(h) + P(-h) = 1, P(0) = 1/2; P increases in h unless some strengths are negative."""
        law = self.make_strength().law()
        if not self._is_exact(law):
            _skip("only Monte Carlo: holds up to its error")
        h = self._margins()
        total = log_marginal(law, h).exp() + log_marginal(law, -h).exp()
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-9)
        half = log_marginal(law, torch.zeros((), dtype=torch.float64)).exp()
        torch.testing.assert_close(half, torch.full_like(half, 0.5), rtol=0, atol=1e-9)
        if bool((self._draws(law) >= 0).all()):
            rising = log_marginal(law, h.sort().values).diff()
            assert bool((rising >= -1e-9).all()), "P(h) must not fall in h for nonnegative strengths"

    def test_probability_with_a_context(self) -> None:
        """Each pair gets its own law's probability, whatever its batch mates."""
        context = self.make_context()
        if context is None:
            _skip("the law is the same for all pairs")
        strength = self.make_strength()
        value = log_marginal(strength.law(context), self._margins())
        assert value.shape == (len(self.margins),)
        for i in range(len(self.margins)):
            alone = log_marginal(strength.law(_rows(context, slice(i, i + 1))), self._margins()[i : i + 1])
            torch.testing.assert_close(alone, value[i : i + 1], rtol=1e-9, atol=1e-12)

    # -- parameters ----------------------------------------------------------------------------------------------

    def test_gradients_are_those_of_differences(self) -> None:
        """The gradient of log P in every unconstrained parameter, in float64, against five-point differences."""
        strength = self.make_strength().double()
        h = self._margins()[1:-1]
        parameters = self._parameters(strength)
        if not parameters:
            _skip("nothing is learned")
        method = "auto" if self._is_exact(strength.law()) else MonteCarlo(64, seed=_SEED)
        context = self.make_context()
        context = None if context is None else _rows(context, slice(1, -1))

        def total() -> Tensor:
            return log_marginal(strength.law(context), h, method).sum()

        names = list(parameters)
        gradients = torch.autograd.grad(total(), list(parameters.values()), allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            parameter = parameters[name]
            assert gradient is not None, (
                f"log P doesn't depend on {name}: was it detached, or turned into a number, on its way into the law?"
            )
            for index in range(parameter.numel()):
                slope = _five_point(total, parameter, index)
                found = float(gradient.reshape(-1)[index])
                assert abs(found - slope) <= 1e-5 * (abs(slope) + 1e-3), (
                    f"d log P / d {name}[{index}] is {found:.9g}, but differences give {slope:.9g}"
                )

    def test_dtypes(self) -> None:
        """As float32 and float64, on every kind of device that is here, with finite gradients."""
        devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
        for device in devices:
            for dtype in (torch.float32, torch.float64):
                strength = self.make_strength().to(device=device, dtype=dtype)
                law = strength.law()
                drawn = law.sample()
                assert drawn.device.type == device, f"the law lives on {drawn.device.type} after .to({device!r})"
                value = log_marginal(law, self._margins().to(device=device, dtype=dtype))
                assert bool(torch.isfinite(value).all()), f"log P isn't finite in {dtype}"
                for name, parameter in self._parameters(strength).items():
                    (slope,) = torch.autograd.grad(value.sum(), parameter, retain_graph=True, allow_unused=True)
                    assert slope is None or bool(torch.isfinite(slope).all()), f"gradient of {name} in {dtype}"

    def test_state_dict_round_trip(self) -> None:
        """Moved parameters come back through ``state_dict``: nothing is kept outside of it."""
        moved, fresh = self.make_strength(), self.make_strength()
        _move(moved)
        fresh.load_state_dict(moved.state_dict())
        self._assert_same_law(moved, fresh)

    def test_files_round_trip(self) -> None:
        """``save_pretrained`` and ``from_pretrained``: constructor arguments that JSON knows, and all parameters."""
        moved = self.make_strength()
        _move(moved)
        with tempfile.TemporaryDirectory() as folder:
            moved.save_pretrained(folder)
            self._assert_same_law(moved, type(moved).from_pretrained(folder))

    def test_copies_and_pickles(self) -> None:
        """Deep copies and pickles have the same law, and parameters of their own."""
        moved = self.make_strength()
        _move(moved)
        for twin in (copy.deepcopy(moved), pickle.loads(pickle.dumps(moved))):
            self._assert_same_law(moved, twin)
            before = log_marginal(moved.law(), self._margins(), self._method(moved)).detach()
            _move(twin)
            after = log_marginal(moved.law(), self._margins(), self._method(moved)).detach()
            torch.testing.assert_close(before, after, rtol=0, atol=0)

    def test_priors_and_draws_of_parameters(self) -> None:
        """Every learned parameter gets a prior, and a draw of all parameters gives a law."""
        strength = self.make_strength()
        twin = strength.with_priors()
        parameters = self._parameters(strength)
        if parameters and not any(name.endswith("_unconstrained") for name in parameters):
            _skip("all parameters are plain torch ones without priors: the family trains, and fit_posterior refuses it")
        left = sorted(twin.learned())
        assert not left, f"no prior for {', '.join(left)}: declare it as a PyroParam"
        with self._seeded():
            values = {name: prior.sample() for name, prior in twin.priors().items()}
        law = twin.law(parameters=values)
        assert bool(torch.isfinite(law.sample()).all())

    def test_names_of_entries(self) -> None:
        """``parameter_coords`` names every entry of the parameters that it lists, each by a name of its own."""
        strength = self.make_strength()
        shapes = {name: value.shape for name, value in strength.learned().items()}
        shapes |= {name: prior.event_shape for name, prior in strength.priors().items()}
        seen: dict[str, list[str]] = {}
        for name, dimensions in strength.parameter_coords().items():
            assert name in shapes, f"parameter_coords names {name!r}, but the parameters are {', '.join(shapes)}"
            found = tuple(len(labels) for labels in dimensions.values())
            assert found == tuple(shapes[name]), (
                f"{name}: {found} labels for a parameter of shape {tuple(shapes[name])}"
            )
            for dimension, labels in dimensions.items():
                assert len(set(labels)) == len(labels), f"{name}: some labels of {dimension!r} are the same: {labels}"
                assert seen.setdefault(dimension, labels) == labels, f"{dimension!r} has other labels for {name}"

    # -- training ------------------------------------------------------------------------------------------------

    def test_training(self) -> None:
        """A dozen steps on choices lower the loss, move every parameter, and leave global state alone."""
        stored = len(pyro.get_param_store())
        strength = self.make_strength()
        parameters = [p for p in strength.parameters() if p.requires_grad]
        context = self.make_context()
        reference = strength.law(context)
        with self._seeded():
            h = torch.randn(_PAIRS, dtype=torch.float64) * 3 / float(self._draws(strength.law()).abs().mean())
            if context is not None:
                rows = torch.arange(_PAIRS) % len(self.margins)
                context = _rows(context, rows)
                reference = strength.law(context)
            beta = reference.sample(torch.Size(() if context is not None else (_PAIRS,))).double()
            preferred = torch.bernoulli(torch.sigmoid(3 * beta * h))
        if not parameters:
            _skip("nothing is learned")
        generator = torch.random.get_rng_state()
        start = [p.detach().clone() for p in parameters]
        objective = MixDPO("auto" if self._is_exact(strength.law()) else MonteCarlo(64, seed=_SEED))
        optimizer = torch.optim.Adam(parameters, lr=0.02)
        losses: list[float] = []
        model = PreferenceModel(strength)
        arguments = {} if context is None else {"context": context}
        for _ in range(_STEPS):
            optimizer.zero_grad()
            guide = _ConditionedGuide(strength)
            loss = objective.differentiable_loss(model, guide, h, preferred, **arguments)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert all(map(math.isfinite, losses)), f"the loss isn't finite: {losses}"
        assert losses[-1] < losses[0], f"{_STEPS} steps didn't lower the loss: {losses[0]:.6g} to {losses[-1]:.6g}"
        for name, parameter, before in zip(_names(strength), parameters, start, strict=True):
            moved = parameter.detach() != before
            assert bool(moved.any()), f"{name} didn't move: it has no gradient"
        assert torch.equal(generator, torch.random.get_rng_state()), "training changed torch's global generator"
        assert len(pyro.get_param_store()) == stored, "training wrote to Pyro's global parameter store"

    # -- helpers -------------------------------------------------------------------------------------------------

    def _margins(self) -> Tensor:
        return torch.tensor(self.margins, dtype=torch.float64)

    @staticmethod
    def _is_exact(law: Distribution) -> bool:
        methods = available_methods(law)
        assert methods, (
            f"{type(law).__name__} can't be integrated: give it a density (log_prob and support), or rsample, or register "
            "a method with pluralpref.inference.register_marginal"
        )
        return methods[0] != "monte_carlo"

    def _method(self, strength: StrengthModel) -> Any:
        return "auto" if self._is_exact(strength.law()) else MonteCarlo(64, seed=_SEED)

    @staticmethod
    @contextmanager
    def _seeded() -> Iterator[None]:
        with generators_kept(_SEED):
            yield

    def _draws(self, law: Distribution) -> Tensor:
        with self._seeded(), torch.no_grad():
            return law.sample(torch.Size([self.num_draws])).double().detach()

    def _by_draws(self, law: Distribution, h: Tensor) -> Tensor:
        with torch.no_grad():
            return log_marginal(law, h, MonteCarlo(50_000, seed=_SEED + 1))

    @staticmethod
    def _parameters(strength: StrengthModel) -> dict[str, Tensor]:
        return {name: p for name, p in strength.named_parameters() if p.requires_grad}

    def _edges(self, law: Distribution) -> Tensor:
        return self._draws(law).quantile(torch.linspace(0.02, 0.98, _BINS + 1, dtype=torch.float64)).unique()

    def _compare_shares(self, law: Distribution, edges: Tensor, shares: Tensor, what: str, spread: float = 1.0) -> None:
        # Other draws than those that the edges were taken from.
        with generators_kept(_SEED + 2), torch.no_grad():
            draws = law.sample(torch.Size([self.num_draws])).double()
        shares = shares.detach()
        # Together first: a constant that is missing everywhere hides in the bins' own errors.
        intervals = [(edges[0], edges[-1], shares.sum()), *zip(edges[:-1], edges[1:], shares, strict=True)]
        for left, right, expected in intervals:
            found = float(((draws > left) & (draws <= right)).double().mean())
            share = float(expected)
            error = spread * math.sqrt(max(share * (1 - share), 1e-4) / self.num_draws)
            assert abs(found - share) <= _STANDARD_ERRORS * error + 1e-6, (
                f"between {float(left):.4g} and {float(right):.4g} {what} {share:.5f} of the mass, but "
                f"{found:.5f} +- {error:.5f} of the draws lie there"
            )

    def _compare_probabilities(self, value: Tensor, chosen: Tensor, what: str) -> None:
        probability = value.detach().exp()
        mean, error = chosen.mean(0), chosen.std(0) / math.sqrt(self.num_draws)
        # A tail that the draws don't reach has an error that they don't show.
        off = (probability - mean).abs() - _STANDARD_ERRORS * error - 20 / self.num_draws * chosen.amax(0)
        worst = int(off.argmax())
        tolerance = 1e-9 if math.isfinite(float(off.max())) else 0.0
        assert float(off.max()) <= tolerance, (
            f"{what} number {worst} gives a probability of {float(probability[worst]):.6g}, draws give "
            f"{float(mean[worst]):.6g} +- {float(error[worst]):.2g}: density and sampler are of different laws"
        )

    def _assert_same_law(self, one: StrengthModel, other: StrengthModel) -> None:
        values = [log_marginal(s.law(), self._margins(), self._method(s)).detach() for s in (one, other)]
        torch.testing.assert_close(*values, rtol=0, atol=0)


class _ConditionedGuide:
    """Point values for parameters with a prior: one draw, the same each time."""

    def __init__(self, strength: StrengthModel) -> None:
        self.strength = strength

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        for name, prior in self.strength.priors().items():
            with StrengthModelTests._seeded():
                value = prior.sample()
            pyro.sample(self.strength._site(name), pyro.distributions.Delta(value).to_event(prior.event_dim))


def _skip(reason: str) -> Any:
    import pytest

    pytest.skip(reason)


def _rows(context: Any, rows: Any) -> Any:
    """The context of some of the pairs."""
    return tuple(_rows(part, rows) for part in context) if isinstance(context, tuple) else context[rows]


def _names(strength: StrengthModel) -> list[str]:
    return [name for name, p in strength.named_parameters() if p.requires_grad]


@torch.no_grad()
def _move(strength: StrengthModel) -> None:
    """Every parameter a little away from where it was constructed."""
    for k, parameter in enumerate(strength.parameters()):
        parameter.add_(0.1 + 0.01 * k)


def _five_point(function: Any, parameter: Tensor, index: int, step: float = 1e-3) -> float:
    flat = parameter.detach().reshape(-1)
    start = float(flat[index])
    values = []
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", NumericsWarning)
        for k in (-2, -1, 1, 2):
            flat[index] = start + k * step
            values.append(float(function()))
        flat[index] = start
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)


def _integral(law: Distribution, a: Tensor, b: Tensor, count: int = 2001) -> Tensor:
    """The density's integral over [a, b] by Simpson's rule."""
    x = torch.linspace(float(a), float(b), count, dtype=torch.float64)
    density = law.log_prob(x).detach().exp().double()
    weights = torch.full_like(x, 2.0)
    weights[1::2] = 4.0
    weights[0] = weights[-1] = 1.0
    return (weights * density).sum() * (x[1] - x[0]) / 3
