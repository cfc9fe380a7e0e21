"""The tests of the numerics notice when the numerics are broken on purpose."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MARGINAL = "pluralpref/inference/marginal"

# What is broken, in which file, by which replacement, and the tests that must fail.
MUTANTS = [
    (
        "one weight of the Gamma series, by 1e-11",
        "gamma.py",
        "weights.append(float(c / d))",
        "weights.append(float(c / d) * (1 + 1e-11 * (k == 5)))",
        "test_marginal_gamma.py",
    ),
    (
        "the sign of the margin in the closed form",
        "gamma.py",
        "wins = margins >= 0",
        "wins = margins <= 0",
        "test_marginal_gamma.py",
    ),
    (
        "the sign of the margin in the quadrature",
        "quadrature.py",
        "wins = (h >= 0).expand(shape)",
        "wins = (h <= 0).expand(shape)",
        "test_marginal_lognormal.py",
    ),
    (
        "the sign of the margin in the general rule",
        "any_density.py",
        "wins = (h >= 0).expand(shape)",
        "wins = (h <= 0).expand(shape)",
        "test_marginal_any_density.py",
    ),
    (
        "the sign of the margin in a mixture",
        "mixture.py",
        "torch.where((h >= 0).expand",
        "torch.where((h <= 0).expand",
        "test_marginal_mixture.py",
    ),
    (
        "the engine's product over a person's choices",
        "trapezoid.py",
        ".index_add_(0, self.index, values)",
        ".index_copy_(0, self.index, values)",
        "test_marginal_panel.py",
    ),
    (
        "the other methods' product over a person's choices",
        "panel.py",
        "return zeros.index_add(-1, self.panel, values)",
        "return zeros.index_copy(-1, self.panel, values)",
        "test_marginal_panel.py",
    ),
    (
        "the expectation inside the logarithm",
        "safe_math.py",
        "return torch.logsumexp(x, dim) - math.log(x.shape[dim])",
        "return x.mean(dim)",
        "test_marginal_monte_carlo.py",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file", "old", "new", "tests"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_a_broken_package_fails(tmp_path, name, file, old, new, tests):
    shutil.copytree(ROOT / "pluralpref", tmp_path / "pluralpref")
    shutil.copytree(ROOT / "tests", tmp_path / "tests")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    source = tmp_path / MARGINAL / file
    text = source.read_text()
    assert text.count(old) == 1, f"{name}: {file} has changed, so this mutant must be written anew"
    source.write_text(text.replace(old, new))
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/inference/{tests}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert run.returncode == 1, f"{name}: the tests passed, or didn't run\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}"
    assert "1 failed" in run.stdout
    print(f"{name}: {[line for line in run.stdout.splitlines() if line.startswith('FAILED')]}")
