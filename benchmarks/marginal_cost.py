"""What the marginal log-probability costs for each margin, forward and backward, by method; interleaved, medians.

    python benchmarks/marginal_cost.py [--margins 100000] [--rounds 21]

Every round runs each method once on the same margins, in a fresh random order, so that slow moments of the machine hit
all alike. Laws have float64 numbers as parameters, as learned strengths do; gradients flow to them and to the margins.
A ratio is taken within a round: printed are the median over rounds and, in brackets, the 10 % and 90 % quantiles.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pluralpref.inference.marginal import ClosedForm, MonteCarlo, Quadrature, log_marginal

PLAIN, DRAWS = "logsigmoid(beta h)", "LogNormal, Monte Carlo K=16"


def methods() -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Functions of margins and two positive parameters, whose laws have about the mean 0.5 and the cv 0.7."""

    def lognormal(method):
        return lambda h, a, b: log_marginal(dist.LogNormal(-b, a), h, method)

    def gamma(method):
        return lambda h, a, b: log_marginal(dist.Gamma(3 * a, 4 * b), h, method)

    def weibull(method):
        return lambda h, a, b: log_marginal(dist.Weibull(0.6 * b, 2 * a), h, method)

    return {
        PLAIN: lambda h, a, b: logsigmoid(a * b * h),
        DRAWS: lognormal(MonteCarlo(16)),
        "Gamma, Monte Carlo K=16": gamma(MonteCarlo(16)),
        "Gamma, closed form": gamma(ClosedForm()),
        "Gamma, quadrature": gamma(Quadrature()),
        "LogNormal, quadrature": lognormal(Quadrature()),
        "LogNormal, quadrature 1e-6": lognormal(Quadrature(1e-6)),
        "Weibull, general rule": weibull(Quadrature()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--margins", type=int, default=100_000, help="margins in one call")
    parser.add_argument("--rounds", type=int, default=21, help="rounds that are timed")
    arguments = parser.parse_args()
    if arguments.margins < 1 or arguments.rounds < 1:
        parser.error("--margins and --rounds are at least 1")
    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.float64):
        times = measure(arguments.margins, arguments.rounds, dtype)
        print(f"\n{arguments.margins} {str(dtype).removeprefix('torch.')} margins, {arguments.rounds} rounds")
        print(f"{'':<28}{'ns a margin':>12}{'/ plain':>9}{'':15}{'/ Monte Carlo':>13}")
        for name, seconds in times.items():
            nanoseconds = 1e9 * torch.tensor(seconds).median().item() / arguments.margins
            ratios = "".join(ratio(seconds, times[base]) for base in (PLAIN, DRAWS))
            print(f"{name:<28}{nanoseconds:>12.0f}{ratios}")


def measure(count: int, rounds: int, dtype: torch.dtype) -> dict[str, list[float]]:
    """Seconds of each round, by method."""
    torch.manual_seed(0)
    h = (4 * torch.randn(count, dtype=torch.float64)).to(dtype).requires_grad_()
    a, b = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.6, 0.9))
    functions = methods()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(rounds + 2):
        for name in random.Random(round_).sample(list(functions), len(functions)):
            started = time.perf_counter()
            gradients = torch.autograd.grad(functions[name](h, a, b).sum(), (h, a, b))
            seconds = time.perf_counter() - started
            assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients), name
            if round_ >= 2:  # the first ones fill caches
                times[name].append(seconds)
    return times


def ratio(seconds: list[float], base: list[float]) -> str:
    """Median and spread of the ratios within rounds."""
    ratios = torch.tensor(seconds) / torch.tensor(base)
    low, high = torch.quantile(ratios, torch.tensor([0.1, 0.9])).tolist()
    return f"{ratios.median().item():>9.2f} {f'[{low:.2f}, {high:.2f}]':<14}"


if __name__ == "__main__":
    main()
