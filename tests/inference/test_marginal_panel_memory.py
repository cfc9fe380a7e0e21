"""How the memory of panels grows with their number of choices, by the peak of a process of its own."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import pyro.distributions as dist, torch
from pluralpref.inference.marginal import MonteCarlo, log_marginal_panel

law_name, annotators, choices, backward = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "backward"
torch.set_num_threads(1)
scale = torch.tensor(0.6, dtype=torch.float64, requires_grad=backward)
weibull = law_name == "weibull"
law = dist.Weibull(scale, torch.ones_like(scale) * 1.5) if weibull else dist.LogNormal(scale - 1.5, scale)
method = MonteCarlo(16) if law_name == "draws" else "quadrature"

def evaluate(annotators, choices):
    # Rows out of order: sorting them is part of the cost.
    panel = torch.arange(annotators * choices) * 7919 % annotators
    h = torch.linspace(-8, 9, len(panel)).requires_grad_(backward)
    value = log_marginal_panel(law, h, panel, annotators, method=method)
    if backward:
        value.sum().backward()
        assert bool(torch.isfinite(h.grad).all())
    assert bool(torch.isfinite(value).all()) and value.shape == (annotators,)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

evaluate(10, 10)
before = peak()
evaluate(annotators, choices)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("law", "annotators", "choices", "mode", "blocks", "each"),
    [
        ("lognormal", 8000, 1000, "forward", 256, 80),
        ("lognormal", 5000, 1000, "backward", 256, 100),
        ("draws", 8000, 1000, "forward", 256, 40),
        ("draws", 8000, 1000, "backward", 512, 160),
        ("weibull", 700, 1000, "forward", 256, 120),
        ("weibull", 300, 1000, "backward", 512, 160),
    ],
)
def test_bytes_for_each_choice(law, annotators, choices, mode, blocks, each):
    """So many bytes for each choice, its 12 of input included, beside ``blocks`` MiB for arrays of a fixed size.

    10^8 choices, 10^5 annotators with 10^3 each, then take 4 to 12 GB forward and at most 16 GB with the gradient.
    """
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, law, str(annotators), str(choices), mode],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    used = int(run.stdout)
    allowed = blocks * 2**20 + each * annotators * choices
    assert used <= allowed, f"{used / 2**20:.0f} MiB instead of {allowed / 2**20:.0f}"
