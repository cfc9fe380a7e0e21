"""The command ``pluralpref families``."""

import json
import math

import pytest

from pluralpref.cli.main import main
from pluralpref.diagnostics import describe_family
from pluralpref.models import FAMILIES, GammaStrength, LogNormalStrength, WeibullStrength


def test_table_and_json(capsys):
    assert main(["families", "--family", "gamma", "latent_class", "covariate"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["family", "parameters", "mean", "cv", "pairs", "panels", "error", "K=16"]
    assert lines[1].startswith("gamma")
    assert "C Q M" in lines[1]
    assert main(["families", "--family", "gamma", "--beta", "2", "--strength_cv", "1.5", "--format", "json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == ["beta_mean", "beta_cv"]
    assert facts["mean"] == pytest.approx(2)
    assert facts["cv"] == pytest.approx(1.5)
    assert facts["methods"] == ["closed_form", "quadrature", "monte_carlo"]
    assert facts["error"] < 1e-12


@pytest.mark.slow
def test_all_families_keep_their_promise(capsys):
    assert main(["families", "--format", "json"]) == 0
    facts = {f["name"]: f for f in json.loads(capsys.readouterr().out)}
    assert list(facts) == [*FAMILIES, "covariate", "group"]
    for name, f in facts.items():
        assert f["error"] < 1e-11, name
        assert f["sampling_error"] > 100 * f["error"] or name in ("fixed", "fixed_learned", "latent_class")


def test_a_users_family(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_families.py").write_text(
        "import torch, pyro.distributions as dist\n"
        "from pyro.nn import PyroParam\n"
        "from torch.distributions import constraints\n"
        "from pluralpref.models import StrengthModel\n"
        "class BetaStrength(StrengthModel):\n"
        "    def __init__(self, a=2.0):\n"
        "        super().__init__()\n"
        "        self.a = PyroParam(torch.tensor(a, dtype=torch.float64), constraints.positive)\n"
        "    def forward(self, context=None):\n"
        "        return dist.Beta(self.a, torch.tensor(3.0, dtype=torch.float64))\n"
        "class Needy(BetaStrength):\n"
        "    def __init__(self, a):\n"
        "        super().__init__(a)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["families", "--family", "my_families:BetaStrength", "--format", "json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    assert facts["name"] == "my_families:BetaStrength"
    assert facts["methods"][0] == "quadrature"
    assert facts["error"] < 1e-9
    assert main(["families", "--family", "my_families:Needy"]) == 2
    assert "Needy() failed" in capsys.readouterr().err
    assert main(["families", "--family", "my_families:Missing"]) == 2
    assert "Missing" in capsys.readouterr().err
    assert main(["families", "--family", "math:floor"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family", "cauchy"], "unknown strength family 'cauchy'"),
        (["--family", "no_such_module:X"], "No module named 'no_such_module'"),
        (["--format", "yaml"], "--format yaml: choose one of table, json"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert main(["families", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_measured_error_finds_a_wrong_marginal(monkeypatch):
    from pluralpref.inference.marginal import dispatch
    from pluralpref.inference.marginal.dispatch import ClosedForm

    good = describe_family("gamma", GammaStrength(1.0, 0.5))
    function, when = dispatch._SINGLE[dispatch.torch.distributions.Gamma, ClosedForm]
    wrong = (lambda law, h, method: function(law, h * (1 + 1e-6), method), when)
    monkeypatch.setitem(dispatch._SINGLE, (dispatch.torch.distributions.Gamma, ClosedForm), wrong)
    assert describe_family("gamma", GammaStrength(1.0, 0.5)).error > 1e-7 > good.error


def test_sampling_error_is_that_of_sixteen_draws():
    # At h = -3/E: by hand from the law's own moments of sigmoid.
    import torch

    law = LogNormalStrength(1.0, 0.5).law()
    torch.manual_seed(0)
    p = torch.sigmoid(-3 * law.sample(torch.Size([200_000])))
    expected = float(p.std() / p.mean()) / math.sqrt(16)
    assert describe_family("x", LogNormalStrength(1.0, 0.5)).sampling_error == pytest.approx(expected, rel=0.2)
    assert describe_family("x", WeibullStrength(1.0, 0.5)).error < 1e-12
