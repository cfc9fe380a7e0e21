"""The small maps on top of frozen embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """Take off the mean and divide by the standard deviation of each coordinate of the training embeddings.

    The first layer of what follows could do the same, so the models are the same; but language models' embeddings have
    coordinates of very different sizes, which gradient steps of one size don't suit.

    :param size: of the embeddings.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def learn(self, *embeddings: Tensor) -> None:
        """Take mean and standard deviation from (rows, size) embeddings; a constant coordinate is only centred."""
        rows = torch.cat(embeddings).double()
        deviation = rows.std(0, unbiased=False)
        center = rows.mean(0)
        # A coordinate that varies by rounding alone counts as constant.
        constant = deviation <= 1e-6 * center.abs()
        self.center.copy_(center)
        self.scale.copy_(torch.where(constant | (deviation == 0), 1.0, deviation))

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, standardised."""
        return (x - self.center) / self.scale


def projector(size: int, latent_dim: int, hidden_layers: int) -> nn.Sequential:
    """A linear map, or a perceptron with GELU whose hidden layers are ``latent_dim`` wide.

    The last layer starts smaller than torch's default, so that inner products of two outputs are of order 1 however many
    coordinates there are.

    :param size: of what goes in.
    :param latent_dim: of what comes out.
    :param hidden_layers: 0 for a linear map.
    """
    layers: list[nn.Module] = []
    for _ in range(hidden_layers):
        layers += [nn.Linear(size, latent_dim), nn.GELU()]
        size = latent_dim
    last = nn.Linear(size, latent_dim)
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(latent_dim**-0.25)
    return nn.Sequential(*layers, last)
