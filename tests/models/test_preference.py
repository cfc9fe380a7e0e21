"""The generative model of a choice."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.nn.functional import logsigmoid

from pluralpref.errors import DataError
from pluralpref.models import FixedStrength, GammaStrength, LogNormalStrength, PreferenceModel

MARGINS = torch.tensor([0.5, -1.0, 2.0, 3.0], dtype=torch.float64)
ONES = torch.ones(4, dtype=torch.float64)


def trace_of(model, *args, seed=0, **kwargs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    return trace


def test_each_pair_has_a_strength_of_its_own():
    trace = trace_of(PreferenceModel(LogNormalStrength(0.5, 1.0)), MARGINS, ONES)
    beta, preferred = trace.nodes["beta"], trace.nodes["preferred"]
    assert beta["value"].shape == (4,)
    assert len(set(beta["value"].tolist())) == 4
    assert [frame.name for frame in beta["cond_indep_stack"]] == ["pairs"]
    assert preferred["is_observed"]
    torch.testing.assert_close(preferred["log_prob"], logsigmoid(beta["value"] * MARGINS))
    expected = LogNormalStrength(0.5, 1.0).law().log_prob(beta["value"])
    torch.testing.assert_close(beta["log_prob"], expected.detach(), check_dtype=False)
    assert len(pyro.get_param_store()) == 0


def test_an_annotators_choices_share_a_strength():
    annotator = torch.tensor([1, 0, 1, 0])
    trace = trace_of(PreferenceModel(GammaStrength(0.5, 1.0)), MARGINS, ONES, annotator=annotator)
    beta, preferred = trace.nodes["beta"], trace.nodes["preferred"]
    assert beta["value"].shape == (2,)
    assert [frame.name for frame in beta["cond_indep_stack"]] == ["annotators"]
    assert [frame.name for frame in preferred["cond_indep_stack"]] == ["pairs"]
    torch.testing.assert_close(preferred["log_prob"], logsigmoid(beta["value"][annotator] * MARGINS))


def test_weights_scale_the_log_probability():
    weight = torch.tensor([0.5, 1.0, 2.5, 3.0], dtype=torch.float64)
    trace = trace_of(PreferenceModel(FixedStrength(0.3)), MARGINS, ONES, weight=weight)
    torch.testing.assert_close(trace.nodes["preferred"]["log_prob"], weight * logsigmoid(0.3 * MARGINS))
    # With annotators only the choices are weighted, the density of a person's strength is not.
    model, annotator = PreferenceModel(GammaStrength(0.5, 1.0)), torch.tensor([1, 0, 1, 0])
    heavy = trace_of(model, MARGINS, ONES, weight, annotator).nodes
    light = trace_of(model, MARGINS, ONES, None, annotator).nodes
    torch.testing.assert_close(heavy["beta"]["log_prob"], light["beta"]["log_prob"])
    torch.testing.assert_close(heavy["preferred"]["log_prob"], weight * light["preferred"]["log_prob"])


def test_a_weight_of_zero_switches_a_pair_off():
    weight = torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    trace = trace_of(PreferenceModel(FixedStrength(0.3)), MARGINS, ONES, weight=weight)
    torch.testing.assert_close(trace.nodes["preferred"]["log_prob"], weight * logsigmoid(0.3 * MARGINS))


def test_soft_labels():
    preferred = torch.tensor([0.0, 1.0, 0.25, 0.5], dtype=torch.float64)
    trace = trace_of(PreferenceModel(FixedStrength(0.3)), MARGINS, preferred)
    logits = 0.3 * MARGINS
    expected = preferred * logsigmoid(logits) + (1 - preferred) * logsigmoid(-logits)
    torch.testing.assert_close(trace.nodes["preferred"]["log_prob"], expected)


def test_choices_are_drawn_when_none_are_given():
    margins = torch.full((20_000,), 2.0, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = PreferenceModel(FixedStrength(0.5))(margins)
    assert set(drawn.tolist()) == {0.0, 1.0}
    # sigmoid(1) = 0.7311, standard error 0.0031
    assert drawn.mean().item() == pytest.approx(0.73106, abs=0.013)


def test_priors_are_sites_of_the_model():
    trace = trace_of(PreferenceModel(GammaStrength(mean=dist.LogNormal(0.0, 1.0), cv=0.5)), MARGINS, ONES)
    sites = [name for name, site in trace.nodes.items() if site["type"] == "sample" and "plate" not in str(site["fn"])]
    assert {"beta", "preferred"} < set(sites)
    assert any(name.endswith("beta_mean") for name in sites)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"margins": MARGINS[None]}, r"margins must have shape \(pairs,\), got \(1, 4\)"),
        ({"margins": MARGINS[0]}, r"margins must have shape \(pairs,\), got \(\)"),
        ({"preferred": ONES[:3]}, r"preferred has shape \(3,\) but there are 4 margins"),
        ({"weight": ONES[:, None]}, r"weight has shape \(4, 1\) but there are 4 margins"),
        ({"annotator": torch.zeros(5).long()}, r"annotator has shape \(5,\) but there are 4 margins"),
        ({"preferred": torch.tensor([1.0, 1.0, 1.5, 0.0])}, r"preferred\[2\]=1\.5: must be a number in \[0, 1\]"),
        ({"preferred": torch.tensor([1.0, float("nan"), 1.0, 0.0])}, r"preferred\[1\]=nan"),
        ({"weight": torch.tensor([1.0, 1.0, 1.0, -2.0])}, r"weight\[3\]=-2\.0: must be finite and not negative"),
        ({"weight": torch.tensor([float("inf"), 1.0, 1.0, 2.0])}, r"weight\[0\]=inf"),
        ({"annotator": torch.tensor([0.0, 1.0, 0.0, 1.0])}, "annotator must hold integer codes"),
        ({"annotator": torch.tensor([0, 1, -1, 1])}, "annotator must hold integer codes"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        PreferenceModel(FixedStrength(0.1))(**{"margins": MARGINS, **arguments})
