"""What several tests of marginals need."""

import pyro.distributions as dist
import pytest
import torch


def five_point_differences(function, x, step):
    """The derivative of ``function``'s Jacobian in each element of ``x`` (n,), stacked in front."""
    columns = []
    for i in range(len(x)):
        slopes = []
        for k in (-2, -1, 1, 2):
            y = x.clone()
            y[i] += k * step
            slopes.append(torch.autograd.functional.jacobian(function, y))
        columns.append((slopes[0] - 8 * slopes[1] + 8 * slopes[2] - slopes[3]) / (12 * step))
    return torch.stack(columns)


@pytest.fixture(scope="session")
def derivatives_of_jacobian():
    return five_point_differences


class OpaqueLaw(dist.TorchDistribution):
    """exp(scale * epsilon), without density, support or quantiles: all that is left is Monte Carlo."""

    has_rsample = True
    arg_constraints = {"scale": dist.constraints.positive}

    def __init__(self, scale):
        self.scale = scale
        super().__init__(scale.shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return OpaqueLaw(self.scale.expand(batch_shape))

    @property
    def mean(self):
        return torch.exp(self.scale**2 / 2)

    @property
    def variance(self):
        return torch.expm1(self.scale**2) * self.mean**2

    def rsample(self, sample_shape=()):
        shape = self._extended_shape(torch.Size(sample_shape))
        return torch.exp(self.scale * torch.randn(shape, dtype=self.scale.dtype))


@pytest.fixture(scope="session")
def opaque():
    return OpaqueLaw
