"""Many laws on one table by matrix products, against the rule for one law; and scaled laws as laws of their family."""

import pyro.distributions as dist
import pytest
import torch

from pluralpref.distributions import MixtureGeneral, Scaled, negate
from pluralpref.distributions.absorb import absorbed
from pluralpref.inference.interpolated_panels import interpolate_panels
from pluralpref.inference.shared_nodes import shared_log_marginals
from pluralpref.inference.tabulated_laws import tabulated_log_marginal

PEOPLE, CHOICES = 300, 8


def number(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(scope="module")
def table():
    generator = torch.Generator().manual_seed(8)
    h = 2 * torch.randn(PEOPLE * CHOICES, generator=generator, dtype=torch.float64) + 0.5
    return interpolate_panels(h, torch.arange(PEOPLE).repeat_interleave(CHOICES), PEOPLE)


def lognormal(mean, cv):
    spread = torch.log1p(cv**2)
    return dist.LogNormal(mean.log() - spread / 2, spread.sqrt())


def gamma(mean, cv):
    return dist.Gamma(cv**-2, cv**-2 / mean)


def weibull(mean, cv):
    concentration = cv**-1.086  # Justus' approximation: its cv needn't be exact here
    return dist.Weibull(mean / torch.exp(torch.lgamma(1 + 1 / concentration)), concentration)


def opposed(mean, cv):
    law = lognormal(mean, cv)
    shares = torch.stack([torch.full_like(mean, 0.85), torch.full_like(mean, 0.15)], -1)
    return MixtureGeneral(dist.Categorical(shares), [law, negate(law)])


def classes(mean, cv):
    shares = torch.stack([torch.full_like(mean, 0.3), torch.full_like(mean, 0.7)], -1)
    points = [dist.Delta(mean), dist.Delta(mean * (1 + cv))]
    return MixtureGeneral(dist.Categorical(shares), points)


FAMILIES = {"lognormal": lognormal, "gamma": gamma, "weibull": weibull, "opposed": opposed, "classes": classes}
CVS = (1e-3, 0.01, 0.05, 0.2, 0.6, 1.0, 2.0, 5.0)


def shared(table, law):
    rows = law.batch_shape[0]
    out = torch.full((rows, table.num_people), 7.0, dtype=torch.float64)
    for people, terms in shared_log_marginals(table, law):
        out[:, people] = terms
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_agrees_with_one_law_at_a_time(family, table):
    means, cvs = (x.reshape(-1, 1) for x in torch.meshgrid(number(0.05, 1.0, 20.0), number(*CVS), indexing="ij"))
    found = shared(table, FAMILIES[family](means, cvs))
    alone = torch.stack(
        [tabulated_log_marginal(table, FAMILIES[family](m, c)) for m, c in zip(means, cvs, strict=True)]
    )
    left_out = found.isnan()
    # A law is left to the other rule as a whole where no grid resolves it: laws of ordinary width always are resolved.
    ordinary = ((cvs >= 0.05) & (cvs <= 1.0))[:, 0]
    assert not left_out[ordinary].any()
    difference = torch.where(left_out, torch.zeros_like(found), found - alone)
    assert difference.abs().max() < 1e-6
    assert difference.sum(1).abs().max() < 1e-4


WIDE = {
    # Shape 0.05: a quarter of its mass lies below e^-28, where the table begins.
    "gamma": (dist.Gamma, [(0.01, 0.05), (0.02, 0.05), (0.05, 0.05), (0.1, 1.0), (0.3, 20.0)]),
    "below the table": (dist.LogNormal, [(-30.0, 0.3), (-20.0, 2.0), (-32.0, 3.0)]),
    "above the table": (dist.LogNormal, [(20.0, 3.0), (17.0, 1.0)]),
    "wide": (dist.LogNormal, [(0.0, 2.0), (0.0, 3.5), (1.0, 5.0)]),
    "half-cauchy": (dist.HalfCauchy, [(0.01,), (1.0,), (1e3,)]),
    "heavy on both sides": (dist.InverseGamma, [(0.1, 0.5), (1.0, 1.0), (10.0, 3.0)]),
    "exponential": (dist.Exponential, [(1e-5,), (1.0,), (1e8,), (1e12,)]),
}


def compare(table, family, parameters):
    """(what the products give, what one law at a time gives), both (laws, people)."""
    columns = torch.tensor(parameters, dtype=torch.float64)
    found = shared(table, family(*columns.T.unsqueeze(-1)))
    return found, torch.stack([tabulated_log_marginal(table, family(*row.unsqueeze(-1))) for row in columns])


@pytest.mark.parametrize("name", WIDE)
def test_laws_that_reach_beyond_the_table(name, table):
    found, alone = compare(table, *WIDE[name])
    # A law whose mass lies beyond both ends, or above the table, may be left to the other rule, for everybody.
    left_out = found.isnan()
    assert torch.equal(left_out.any(1), left_out.all(1))
    assert name in ("above the table", "wide", "heavy on both sides") or not left_out.any()
    difference = torch.where(left_out, torch.zeros_like(found), found - alone)
    assert difference.abs().max() < 1e-6
    assert difference.sum(1).abs().max() < 1e-4


OPEN = {
    "narrow laws against steep choices": (dist.LogNormal, [(3.0, 0.1), (3.0, 0.2)]),
    "narrow gamma laws": (dist.Gamma, [(100.0, 8.0), (70.0, 1.0)]),
    "a density with a kink": (dist.Beta, [(2.3, 1.75), (2.3, 2.0)]),
    "mass beyond both ends": (dist.LogNormal, [(0.0, 12.0), (0.0, 20.0)]),
}


@pytest.mark.parametrize("name", OPEN)
def test_laws_whose_integrals_are_not_resolved(name, table):
    found, alone = compare(table, *OPEN[name])
    difference = torch.where(found.isnan(), torch.zeros_like(found), found - alone)
    assert difference.abs().max() < 1e-6


def test_what_no_grid_resolves_is_reported_for_everybody(table):
    """The finest grid has 213 nodes for each unit of log beta; a spread of 1e-3 is a fifth of their distance."""
    found = shared(table, lognormal(number(1.0, 1.0, 1.0)[:, None], number(0.5, 1e-3, 0.3)[:, None]))
    assert found.isnan().all(1).tolist() == [False, True, False]
    assert found.isnan().any(1).tolist() == [False, True, False]


def test_what_underflows_is_reported_for_whom_it_does(table):
    """The second choice is only possible for strengths near 1e-8, where the law has a density of e^-1000."""
    h = number(0.1, -1e9, 3.0)
    three = interpolate_panels(h, torch.arange(3), 3)
    found = shared(three, lognormal(number(150.0)[:, None], number(0.5)[:, None]))
    assert found.isnan().tolist() == [[False, True, False]]
    alone = tabulated_log_marginal(three, lognormal(number(150.0), number(0.5)))
    assert torch.isfinite(alone).all()
    assert alone[1] < -700


def test_blocks_of_people_are_everybody_once(table, monkeypatch):
    law = gamma(number(0.5, 1.0)[:, None], number(0.5, 1.5)[:, None])
    whole = shared(table, law)
    monkeypatch.setattr("pluralpref.inference.shared_nodes._LARGEST_BLOCK", 40_000)
    blocks = list(shared_log_marginals(table, law))
    assert len(blocks) > 1
    assert [row for people, _ in blocks for row in range(*people.indices(PEOPLE))] == list(range(PEOPLE))
    torch.testing.assert_close(torch.cat([terms for _, terms in blocks], 1), whole, rtol=1e-12, atol=1e-12)


def test_opposed_laws_see_choices_the_other_way_round(table):
    law = gamma(number(0.5, 2.0)[:, None], number(0.5, 1.5)[:, None])
    mirrored = shared(table.opposed(), law)
    torch.testing.assert_close(shared(table, negate(law)), mirrored, rtol=0, atol=0)
    assert (mirrored - shared(table, law)).abs().max() > 1


SCALABLE = {
    "lognormal": dist.LogNormal(number(0.3), number(0.7)),
    "gamma": dist.Gamma(number(1.3), number(0.7)),
    "exponential": dist.Exponential(number(1.3)),
    "lognormal in a mixture": MixtureGeneral(
        dist.Categorical(number([0.3, 0.7])), [dist.LogNormal(number(0.3), number(0.7)), dist.Gamma(number(2.0), number(1.0))]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCALABLE)
@pytest.mark.parametrize("factor", [number(3.0), number(0.5, 2.0, 7.0)], ids=["one", "batch"])
def test_absorbed_is_an_equal_law(name, factor):
    scaled = Scaled(SCALABLE[name], factor)
    plain = absorbed(scaled)
    assert type(plain) is type(absorbed(SCALABLE[name]))
    assert plain.batch_shape == scaled.batch_shape
    x = number(0.03, 0.4, 1.0, 6.0)[:, None]
    expected = SCALABLE[name].log_prob(x / factor) - factor.log()
    torch.testing.assert_close(plain.log_prob(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(plain.mean, SCALABLE[name].mean * factor, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(plain.variance, SCALABLE[name].variance * factor**2, rtol=1e-12, atol=1e-12)


def test_absorbed_keeps_the_digits_of_a_python_number():
    plain = absorbed(Scaled(dist.Gamma(number(2.0), number(1.0)), 0.2))
    torch.testing.assert_close(plain.rate, number(5.0), rtol=1e-12, atol=0)


def test_absorbed_points_mixtures_of_points_and_nested_factors():
    point = absorbed(Scaled(dist.Delta(number(2.0)), number(0.5, 3.0)))
    assert isinstance(point, dist.Delta)
    assert point.v.tolist() == [1.0, 6.0]
    twice = absorbed(Scaled(Scaled(dist.Gamma(number(2.0), number(1.0)), 3.0), number(0.5, 2.0)))
    assert isinstance(twice, dist.Gamma)
    torch.testing.assert_close(twice.rate, 1 / number(1.5, 6.0))
    spike = MixtureGeneral(
        dist.Categorical(number([0.3, 0.7])), [dist.Delta(number(0.0)), dist.Exponential(number(2.0))]
    )  # fmt: skip
    parts = absorbed(Scaled(spike, 4.0)).component_distributions
    assert [type(part) for part in parts] == [dist.Delta, dist.Exponential]
    assert parts[1].rate.tolist() == [0.5]


def test_absorbed_leaves_other_laws_alone():
    weibull_law, normal = dist.Weibull(number(1.0), number(2.0)), dist.Normal(number(1.0), number(2.0))
    for law in (weibull_law, normal, Scaled(weibull_law, 2.0), Scaled(normal, 2.0), dist.Gamma(1.0, 1.0)):
        assert absorbed(law) is law
    for factor in (-1.0, number(2.0, -3.0)):
        turned = Scaled(dist.Gamma(number(2.0), number(1.0)), factor)
        assert absorbed(turned) is turned
