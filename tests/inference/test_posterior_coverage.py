"""Whether 95% intervals hold the truth in 95% of data sets, with truths drawn from the priors."""

import warnings

import pyro.distributions as dist
import pytest
import torch

from pluralpref.errors import IdentificationWarning, InferenceError, NumericsWarning
from pluralpref.inference import fit_posterior
from pluralpref.models import GammaStrength, LogNormalStrength

DATA_SETS = 200


def number(value):
    return torch.tensor(value, dtype=torch.float64)


MOMENTS = {"beta_mean": dist.LogNormal(number(0.0), number(0.4)), "beta_cv": dist.HalfNormal(number(0.8))}
FAMILIES = {"lognormal": (LogNormalStrength, MOMENTS), "gamma": (GammaStrength, MOMENTS)}
#: (people, choices of each)
DESIGNS = {"singles": (300, 1), "panel": (40, 8)}


@pytest.mark.slow
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("family", FAMILIES)
def test_intervals_cover_truths_from_the_prior(family, design):
    """Truths from the prior make the coverage 95% exactly, averaged over them, whatever the size of the data sets.

    A binomial share of 200 has a standard deviation of 1.5%; the bounds leave 3.2 of these below and 2.3 above.
    """
    strength_class, priors = FAMILIES[family]
    people, choices = DESIGNS[design]
    code = torch.arange(people).repeat_interleave(choices)
    covered = {"beta_mean": 0, "beta_cv": 0}
    refused = 0
    for seed in range(DATA_SETS):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1000 + seed)
            law = strength_class().with_priors(priors).law(parameters={n: p.sample() for n, p in priors.items()})
            beta = law.sample((people,)).double()[code]
            margins = 2 * torch.randn(len(code), dtype=torch.float64)
            preferred = torch.bernoulli(torch.sigmoid(beta * margins))
        truth = {"beta_mean": float(law.mean), "beta_cv": float(law.stddev / law.mean)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NumericsWarning)  # few proposals
            warnings.simplefilter("ignore", IdentificationWarning)
            try:
                posterior = fit_posterior(
                    strength_class(), margins, annotator=None if choices == 1 else code, preferred=preferred,
                    priors=priors, method="laplace", num_samples=250, num_proposals=1000, seed=seed, progress_bar=False,
                )  # fmt: skip
            except InferenceError:
                refused += 1
                continue
        for name, value in truth.items():
            low, high = posterior.interval(name, 0.95, kind="eti")
            covered[name] += low <= value <= high
    assert refused <= 0.02 * DATA_SETS
    for name, count in covered.items():
        assert 0.90 <= count / (DATA_SETS - refused) <= 0.985, (name, count, refused)
