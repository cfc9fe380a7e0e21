"""The conformance kit finds what it is there to find: families with one fault each fail the test that is named."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroParam
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pluralpref.errors import UnsupportedError
from pluralpref.inference import ClosedForm, register_marginal
from pluralpref.models import StrengthModel
from pluralpref.testing import StrengthModelTests

NODES = torch.linspace(-25, 3, 1501, dtype=torch.float64).exp()


class Sound(dist.Weibull):
    """The law that the faulty ones below are derived from."""

    def __init__(self, scale, concentration, validate_args=None):
        super().__init__(scale, concentration, validate_args=validate_args)

    def sample(self, sample_shape=()):
        with torch.no_grad():
            return self.rsample(sample_shape)

    def expand(self, batch_shape, _instance=None):
        shape = torch.Size(batch_shape)
        return type(self)(self.scale.expand(shape), self.concentration.expand(shape))


class Family(StrengthModel):
    """A family without a fault, whose law is a class attribute."""

    law_class = Sound

    def __init__(self, scale=0.3, concentration=1.7):
        super().__init__()
        self._declare("scale", scale)
        self._declare("concentration", concentration)

    def forward(self, context=None):
        return self.law_class(self.scale, self.concentration)


class OtherSampler(Sound):
    def rsample(self, sample_shape=()):
        return 1.05 * super().rsample(sample_shape)


class OtherRsample(Sound):
    def rsample(self, sample_shape=()):
        return 1.05 * super().rsample(sample_shape)

    def sample(self, sample_shape=()):
        with torch.no_grad():
            return super().rsample(sample_shape)


class MissingFactor(Sound):
    def log_prob(self, value):
        return super().log_prob(value) - 0.05


class WrongCdf(Sound):
    def cdf(self, value):
        return super().cdf(value) ** 1.05


class WrongIcdf(Sound):
    def icdf(self, value):
        return super().icdf(value) * 1.001


class WrongMean(Sound):
    @property
    def mean(self):
        return 1.02 * super().mean


class WrongVariance(Sound):
    @property
    def variance(self):
        return 1.1 * super().variance


class SomeNegative(Sound):
    def rsample(self, sample_shape=()):
        drawn = super().rsample(sample_shape)
        return torch.where(drawn < 0.02, -drawn, drawn)


class InfiniteDraws(Sound):
    def rsample(self, sample_shape=()):
        drawn = super().rsample(sample_shape)
        return torch.where(drawn > 0.8, torch.inf, drawn)


class ForgetfulExpand(Sound):
    def expand(self, batch_shape, _instance=None):
        return self


class ExpandToAnotherLaw(Sound):
    def expand(self, batch_shape, _instance=None):
        wide = super().expand(batch_shape)
        return wide if tuple(batch_shape) == self.batch_shape else type(self)(wide.scale * 1.01, wide.concentration)


class ScaledGradient(torch.autograd.Function):
    """The identity with a gradient that is off by a thousandth."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 1.001 * gradient


class WrongGradient(Sound):
    def __init__(self, scale, concentration, validate_args=None):
        super().__init__(ScaledGradient.apply(scale), concentration)


def register(name, sign=1.0, factor=1.0, towards=1.0, overflow=1.0):
    """A law with a closed form of its own: a sum over many nodes, with a fault."""
    law_class = type(name, (Sound,), {})

    @register_marginal(law_class, ClosedForm)
    def _marginal(law, margins, method):
        h = sign * margins
        beta = NODES.reshape(-1, *(1,) * max(len(law.batch_shape), h.dim()))
        density = law.log_prob(beta).double() + beta.log()
        density = density - torch.logsumexp(density, 0)
        chance = torch.logsumexp(density + logsigmoid(beta * h), 0)
        chance = chance + 0 * (law.scale * overflow * overflow)
        return chance + math.log(factor) * (margins != 0) + math.log(towards) * (margins > 0)

    return law_class


SumOverNodes = register("SumOverNodes")
FlippedSign = register("FlippedSign", sign=-1.0)
OnePercentOff = register("OnePercentOff", factor=0.99)
OverflowsInFloat32 = register("OverflowsInFloat32", overflow=1e30)
OneSideOff = register("OneSideOff", towards=1 - 1e-6)


class VectorLaw(Family):
    def forward(self, context=None):
        return super().forward().expand([1]).to_event(1)


class BatchOfOne(Family):
    def forward(self, context=None):
        return super().forward().expand([1])


class ReturnsANumber(Family):
    def forward(self, context=None):
        return super().forward().mean


class Detached(Family):
    def forward(self, context=None):
        return self.law_class(self.scale, self.concentration.detach())


class AsFloat(Family):
    def forward(self, context=None):
        return self.law_class(self.scale, torch.tensor(float(self.concentration.detach()), dtype=torch.float64))


class CachedParameter(Family):
    """Keeps the value that a parameter had at construction."""

    def __init__(self, scale=0.3, concentration=1.7):
        super().__init__(scale, concentration)
        self.kept = self.scale.detach().clone()

    def forward(self, context=None):
        return self.law_class(self.kept, self.concentration)


class StateOutside(Family):
    """Counts its calls in an attribute that isn't saved, and the law depends on the count."""

    def __init__(self, scale=0.3, concentration=1.7):
        super().__init__(scale, concentration)
        self.calls = 0

    def forward(self, context=None):
        self.calls += 1
        return self.law_class(self.scale * (1 + 0.01 * self.calls), self.concentration)


_NUMBER_OF_MODELS = iter(range(10**6))


class DependsOnConstruction(Family):
    """What differs from model to model is neither an argument nor in the state dict."""

    def __init__(self, scale=0.3, concentration=1.7):
        super().__init__(scale, concentration)
        self.factor = 1 + 0.01 * next(_NUMBER_OF_MODELS)

    def forward(self, context=None):
        return self.law_class(self.scale * self.factor, self.concentration)


class SharedWithCopies(Family):
    def __deepcopy__(self, memo):
        return self


class IgnoresItsArgument(Family):
    """``saved`` isn't set again from the file: the constructor reads it from somewhere else."""

    power = 1.0

    def __init__(self, scale=0.3, concentration=1.7):
        super().__init__(scale, concentration)
        self.power_of_this_one = type(self).power
        type(self).power += 0.1

    def forward(self, context=None):
        return self.law_class(self.scale, self.concentration * self.power_of_this_one)


class DrawsInForward(Family):
    def forward(self, context=None):
        torch.rand(1)
        return super().forward()


class WritesToTheStore(Family):
    """Before ``forward``, where Pyro itself would refuse it."""

    def __call__(self, context=None):
        pyro.get_param_store().setdefault("stray", torch.tensor(1.0))
        return super().__call__(context)


class NoDefaultPrior(Family):
    def __init__(self):
        StrengthModel.__init__(self)
        self.opposite = PyroParam(torch.tensor(-0.3, dtype=torch.float64), constraints.less_than(0.0))
        self._declare("concentration", 1.7)

    def forward(self, context=None):
        return self.law_class(-self.opposite, self.concentration)


class PlainParameter(Family):
    def __init__(self):
        super().__init__()
        self.log_factor = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, context=None):
        return self.law_class(self.scale * self.log_factor.exp(), self.concentration)


class Unused(Family):
    def __init__(self):
        super().__init__()
        self._declare("extra", 1.0)


class WrongNames(Family):
    """Two classes by their names, and an entry of ``parameter_coords`` that doesn't fit."""

    coords = {}

    def __init__(self):
        super().__init__()
        self._declare("shares", [0.4, 0.6], constraints.simplex)

    def own_parameter_coords(self):
        return {"shares": {"class": ["a", "b"]}, **self.coords}


class TooFewNames(WrongNames):
    coords = {"shares": {"class": ["a"]}}


class NamesOfAnother(WrongNames):
    coords = {"share": {"class": ["a", "b"]}}


class OneNameTwice(WrongNames):
    coords = {"shares": {"class": ["a", "a"]}}


class OpaqueLaw(dist.TorchDistribution):
    """Only draws, without a gradient."""

    arg_constraints = {}
    has_rsample = False

    def __init__(self, scale):
        self.scale = scale
        super().__init__(scale.shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return type(self)(self.scale.expand(batch_shape))

    def sample(self, sample_shape=()):
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            return self.scale * torch.rand(shape, dtype=self.scale.dtype)


class Opaque(Family):
    def forward(self, context=None):
        return OpaqueLaw(self.scale * self.concentration)


class ByPair(Family):
    """One law a pair; a context in logs."""

    def forward(self, context=None):
        if context is None:
            return super().forward()
        return self.law_class(self.scale * context.exp(), self.concentration.expand(context.shape))


class LooksAtBatchMates(ByPair):
    def forward(self, context=None):
        return super().forward(None if context is None else context - context.mean() / 10)


class OneLawForAll(ByPair):
    def forward(self, context=None):
        return Family.forward(self)


class Uphill(Family):
    """The loss rises along its own gradient."""

    def forward(self, context=None):
        return self.law_class(_Backwards.apply(self.scale), _Backwards.apply(self.concentration))


class _Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def kit(family, context=None):
    """The conformance tests of ``family``, as a user writes them."""

    class Kit(StrengthModelTests):
        def make_strength(self):
            return family()

        def make_context(self):
            return context

    return Kit()


def with_law(law_class):
    name = law_class.__name__ + "Family"
    # Pickle looks for it in this module.
    return globals().setdefault(name, type(name, (Family,), {"law_class": law_class, "__module__": __name__}))


def by_pair():
    return torch.linspace(-1, 1, len(StrengthModelTests.margins), dtype=torch.float64)


#: What is broken, the test that has to say so, and its message.
MUTANTS = {
    "sampler": (with_law(OtherSampler), "draws_follow_the_density", r"exp\(log_prob\) integrates to"),
    "sampler and cdf": (with_law(OtherSampler), "draws_follow_the_distribution_function", "cdf gives"),
    "sampler and marginal": (with_law(OtherSampler), "probability_is_the_mean_over_draws", "of different laws"),
    "sampler and panel": (with_law(OtherSampler), "panel_probability_is_the_mean_over_draws", "of different laws"),
    "sampler and moments": (with_law(OtherSampler), "moments_are_those_of_draws", "the mean is"),
    "rsample": (with_law(OtherRsample), "reparameterised_draws_are_draws", "rsample"),
    "density": (with_law(MissingFactor), "draws_follow_the_density", r"exp\(log_prob\) integrates to"),
    "cdf": (with_law(WrongCdf), "draws_follow_the_distribution_function", "cdf gives"),
    "icdf": (with_law(WrongIcdf), "draws_follow_the_distribution_function", "not close"),
    "mean": (with_law(WrongMean), "moments_are_those_of_draws", "the mean is"),
    "variance": (with_law(WrongVariance), "moments_are_those_of_draws", "the variance is"),
    "support": (with_law(SomeNegative), "draws_are_where_the_support_says", "outside of the support"),
    "infinite draws": (with_law(InfiniteDraws), "draws_are_where_the_support_says", "aren't finite"),
    "no distribution": (ReturnsANumber, "law_is_a_distribution_of_numbers", "must return a distribution, not Tensor"),
    "event shape": (VectorLaw, "law_is_a_distribution_of_numbers", r"event shape is \(1,\)"),
    "batch shape": (BatchOfOne, "law_is_a_distribution_of_numbers", r"must be \(\), not \(1,\)"),
    "expand": (with_law(ForgetfulExpand), "law_expands", r"expand\(\(3, 2\)\) gave \(\)"),
    "expand to another law": (with_law(ExpandToAnotherLaw), "law_expands", "not close"),
    "flipped sign": (with_law(FlippedSign), "probability_is_the_mean_over_draws", "of different laws"),
    "falling in h": (with_law(FlippedSign), "the_two_choices_are_certain", "must not fall in h"),
    "one percent": (with_law(OnePercentOff), "the_two_choices_are_certain", "not close"),
    "one percent, draws": (with_law(OnePercentOff), "probability_is_the_mean_over_draws", "of different laws"),
    "one side": (with_law(OneSideOff), "the_two_choices_are_certain", "not close"),
    "detached": (Detached, "gradients_are_those_of_differences", "depend on concentration_unconstrained"),
    "as a float": (AsFloat, "gradients_are_those_of_differences", "depend on concentration_unconstrained"),
    "as a float, training": (AsFloat, "training", "concentration_unconstrained didn't move"),
    "gradient": (with_law(WrongGradient), "gradients_are_those_of_differences", "but differences give"),
    "cached": (CachedParameter, "gradients_are_those_of_differences", "depend on scale_unconstrained"),
    "unused": (Unused, "gradients_are_those_of_differences", "depend on extra_unconstrained"),
    "state outside": (DependsOnConstruction, "state_dict_round_trip", "not equal"),
    "constructor": (IgnoresItsArgument, "files_round_trip", "not equal"),
    "copies": (SharedWithCopies, "copies_and_pickles", "not equal"),
    "state outside, copies": (StateOutside, "copies_and_pickles", "not equal"),
    "global generator": (DrawsInForward, "training", "changed torch's global generator"),
    "parameter store": (WritesToTheStore, "training", "Pyro's global parameter store"),
    "plain parameter": (PlainParameter, "priors_and_draws_of_parameters", "declare it as a PyroParam"),
    "too few names": (TooFewNames, "names_of_entries", r"shares: \(1,\) labels for a parameter of shape \(2,\)"),
    "names of another": (NamesOfAnother, "names_of_entries", "names 'share', but the parameters are scale, conc"),
    "one name twice": (OneNameTwice, "names_of_entries", "some labels of 'class' are the same"),
    "uphill": (Uphill, "training", "didn't lower the loss"),
    "single precision": (with_law(OverflowsInFloat32), "dtypes", "isn't finite in torch.float32"),
    "cannot be integrated": (Opaque, "probability_is_the_mean_over_draws", "log_prob and support.*register_marginal"),
}


@pytest.fixture(autouse=True)
def _nothing_global():
    pyro.clear_param_store()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        yield
    pyro.clear_param_store()


def run(family, test, context=None):
    getattr(kit(family, context), f"test_{test}")()


@pytest.mark.parametrize("fault", MUTANTS)
def test_a_fault_is_found(fault):
    family, test, message = MUTANTS[fault]
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        run(family, test)


SOUND = {"quadrature": Family, "closed form": with_law(SumOverNodes)}


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("test", sorted({test for _, test, _ in MUTANTS.values()}))
def test_a_sound_family_passes(name, test):
    run(SOUND[name], test)


CONTEXT = by_pair()


@pytest.mark.parametrize(
    ("family", "test", "message"),
    [
        (LooksAtBatchMates, "probability_with_a_context", "not close"),
        (OneLawForAll, "law_is_a_distribution_of_numbers", "with a context of 8 pairs"),
    ],
)
def test_a_fault_with_a_context_is_found(family, test, message):
    run(ByPair, test, CONTEXT)
    with pytest.raises(AssertionError, match=message):
        run(family, test, CONTEXT)


def test_a_parameter_without_a_default_prior_says_which():
    with pytest.raises(UnsupportedError, match=r"no default prior for NoDefaultPrior\.opposite"):
        run(NoDefaultPrior, "priors_and_draws_of_parameters")


def test_what_does_not_apply_is_skipped_with_its_reason():
    for test, reason in (("probability_with_a_context", "the same for all pairs"),):
        with pytest.raises(pytest.skip.Exception, match=reason):
            run(Family, test)


def test_a_case_without_make_strength_says_so():
    with pytest.raises(NotImplementedError, match="define make_strength"):
        StrengthModelTests().test_law_expands()
