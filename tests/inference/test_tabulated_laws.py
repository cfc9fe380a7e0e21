"""Any law on the table of people's choices, against direct integration."""

import pyro.distributions as dist
import pytest
import torch

from pluralpref.distributions import MixtureGeneral, PositiveNormal, negate
from pluralpref.errors import NumericsWarning
from pluralpref.inference import fit_posterior, log_marginal_panel
from pluralpref.inference.interpolated_panels import interpolate_panels
from pluralpref.inference.tabulated_laws import can_tabulate, tabulated_log_marginal
from pluralpref.models import LatentClassStrength

PEOPLE = 30


def choices(scale, soft):
    generator = torch.Generator().manual_seed(4)
    h = scale * torch.randn(300, generator=generator, dtype=torch.float64)
    index = torch.randint(PEOPLE - 1, (300,), generator=generator)  # one person without a choice
    weight = 2 * torch.rand(300, generator=generator, dtype=torch.float64)
    preferred = torch.rand(300, generator=generator, dtype=torch.float64)
    return h, index, (weight, preferred) if soft else (None, None)


LAWS = {
    "weibull": lambda a, b: dist.Weibull(a, 1 + b),
    "narrow weibull": lambda a, b: dist.Weibull(a, 40 * b),
    "wide inverse gamma": lambda a, b: dist.InverseGamma(0.5 + b, a),
    "positive normal": lambda a, b: PositiveNormal(a - 1, b),
    "uniform": lambda a, b: dist.Beta(1 + a, b),
    "point": lambda a, b: dist.Delta(a * b),
    "classes": lambda a, b: dist.MixtureSameFamily(
        dist.Categorical(logits=torch.stack([a, b])), dist.Delta(torch.stack([a, a + b]))
    ),
    "zero-inflated": lambda a, b: MixtureGeneral(
        dist.Categorical(logits=torch.stack([b, a])), [dist.Delta(torch.zeros_like(a)), dist.Gamma(a, b)]
    ),
    "opposed": lambda a, b: MixtureGeneral(
        dist.Categorical(logits=torch.stack([a, b])), [dist.Weibull(a, 2 * b), negate(dist.LogNormal(a, b))]
    ),
}


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("scale", [0.3, 50.0])
@pytest.mark.parametrize("soft", [False, True])
def test_agrees_with_direct_integration(name, scale, soft):
    h, index, columns = choices(scale, soft)
    table = interpolate_panels(h, index, PEOPLE, *columns)
    values = []
    for tabulated in (True, False):
        a, b = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (1.3, 0.7))
        law = LAWS[name](a, b)
        assert can_tabulate(law)
        if tabulated:
            terms = tabulated_log_marginal(table, law)
        else:
            terms = log_marginal_panel(law, h, index, PEOPLE, *columns)
        assert terms.shape == (PEOPLE,)
        values.append((terms.detach(), torch.stack(torch.autograd.grad(terms.sum(), (a, b)))))
    (found, slopes), (expected, true_slopes) = values
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(slopes, true_slopes, rtol=1e-6, atol=1e-6)


def test_laws_of_one_draw():
    h, index, _ = choices(1.0, False)
    table = interpolate_panels(h, index, PEOPLE)
    for name, build in LAWS.items():
        if name in ("classes", "zero-inflated", "opposed"):
            continue
        one = build(torch.tensor(1.3, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64))
        wide = tabulated_log_marginal(table, one.expand(torch.Size((1, 1))))
        torch.testing.assert_close(wide, tabulated_log_marginal(table, one), rtol=1e-9, atol=1e-9)


def test_what_has_no_place_on_the_table(opaque):
    assert not can_tabulate(dist.Normal(0.0, 1.0))
    assert not can_tabulate(opaque(torch.tensor(1.0)))
    assert can_tabulate(dist.Delta(torch.tensor(-1.0)))


@pytest.mark.slow
def test_the_classes_of_people_are_found():
    """Two classes, indifferent and decided: everybody's own strength is that of a class, mostly the right one."""
    torch.manual_seed(3)
    people, each = 40, 30
    index = torch.arange(people).repeat_interleave(each)
    beta = torch.where(torch.arange(people) < 20, 0.05, 3.0).double()
    h = torch.randn(people * each, dtype=torch.float64) * 2
    preferred = torch.bernoulli(torch.sigmoid(beta[index] * h))
    with pytest.warns(NumericsWarning):  # few draws
        posterior = fit_posterior(
            LatentClassStrength(values=[0.1, 1.0]),
            h,
            annotator=index,
            preferred=preferred,
            num_samples=80,
            num_warmup=80,
            num_chains=2,
            progress_bar=False,
        )
    own = torch.as_tensor(posterior.draws("beta_annotator")).flatten(0, 1)
    assert (own[:, :20] < 0.5).double().mean() > 0.95
    assert (own[:, 20:] > 1.0).double().mean() > 0.95
    shares = torch.as_tensor(posterior.draws("shares")).flatten(0, 1).mean(0)
    assert 0.3 < float(shares[0]) < 0.7
