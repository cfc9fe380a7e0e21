"""A PAL model: the reward of people given by weights, the training people's weights, and the law of strength."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pluralpref.errors import DataError, UnsupportedError
from pluralpref.inference.mixed_logit import MixedLogit
from pluralpref.inference.pal.config import PalConfig
from pluralpref.inference.pal.data import PalPairs
from pluralpref.inference.pal.ideal_point import IdealPoint
from pluralpref.inference.pal.preference_mapping import PreferenceMapping
from pluralpref.inference.pal.reward import PalReward
from pluralpref.models import StrengthModel


class Pal(nn.Module):
    r"""People's choices by a mixture of prototypes: :math:`P_i(c \succ r) = E_\beta[\sigma(\beta (u_i(c) - u_i(r)))]`.

    :param config: K, the variant and the sizes.
    :param annotators: the training people; the weights of person i are the softmax of row i of :attr:`logits`, which
        starts at 0: a person starts as the mean of all prototypes.
    :param size: of the answers' embeddings.
    :param prompt_size: of the prompts' embeddings; not needed for PAL-A.
    :param strength: the law of :math:`\beta`. The utilities' scale is learned, so the law's mean isn't identified: its
        form and cv are.
    :raises UnsupportedError: for a strength model with priors, or one that depends on columns of the data.
    """

    def __init__(
        self, config: PalConfig, annotators: Sequence[str], size: int, prompt_size: int | None, strength: StrengthModel
    ) -> None:
        super().__init__()
        if strength.priors():
            raise UnsupportedError(
                "PAL takes point values of the strength's parameters: give numbers instead of priors"
            )
        if strength.context_columns:
            raise UnsupportedError(
                f"PAL takes one law of strength for everybody: {type(strength).__name__} depends on columns of the data"
            )
        self.config = config
        self.annotators = tuple(annotators)
        self.prompt_size = prompt_size
        sizes = (config.num_prototypes, config.latent_dim, config.hidden_layers)
        self.reward: PalReward
        if config.variant == "a":
            self.reward = IdealPoint(size, *sizes)
        else:
            if prompt_size is None:
                raise DataError(
                    "PAL-B needs embeddings 'prompt': its preferences depend on them (PAL-A can do without)"
                )
            self.reward = PreferenceMapping(size, prompt_size, *sizes)
        self.logits = nn.Parameter(torch.zeros(len(self.annotators), config.num_prototypes))
        self.strength = strength
        #: One dict for each epoch, or evaluation of L-BFGS: ``epoch``, ``loss`` (nats a pair) and, with early stopping,
        #: ``held_out_loss``.
        self.history: list[dict[str, float]] = []

    @property
    def num_prototypes(self) -> int:
        """K."""
        return self.config.num_prototypes

    @property
    def weights(self) -> Tensor:
        """The training people's weights, (people, K) float32, without gradient."""
        return self.logits.detach().softmax(1)

    def losses(self, pairs: PalPairs) -> Tensor:
        r""":math:`-y \log P - (1 - y) \log(1 - P)` of each pair, (pairs,) float64 nats, with each one's own annotator's weights.

        :param pairs: their annotators' codes are rows of :attr:`logits`.
        """
        weights = self.logits.softmax(1)[pairs.annotator]
        margins = self.reward.per_pair(self.reward.represent(pairs), weights)
        return self.pair_losses(margins, pairs.preferred)

    def pair_losses(self, margins: Tensor, preferred: Tensor) -> Tensor:
        """Losses of margins, (pairs,) float64; infinite where a margin isn't finite."""
        margins = margins.double()
        if not bool(torch.isfinite(margins).all()):
            return torch.full_like(margins, math.inf)
        return -MixedLogit(self.strength, margins, validate_args=False).log_prob(preferred)

    def codes(self, pairs: PalPairs) -> Tensor:
        """Which training person each pair's annotator is, (pairs,).

        :raises DataError: without annotators, or for one who isn't among the training people, naming the row.
        """
        if pairs.annotator is None:
            raise DataError("the pairs have no annotators: give them, or predict for unknown people")
        place: dict[Any, int] = {name: i for i, name in enumerate(self.annotators)}
        of_code = torch.tensor([place.get(name, -1) for name in pairs.names], dtype=torch.int64)
        found = of_code[pairs.annotator]
        unknown = (found < 0).nonzero().flatten().tolist()
        if unknown:
            name = pairs.names[int(pairs.annotator[unknown[0]])]
            raise DataError(
                f"row {unknown[0]}: annotator {name!r} is not among the {len(self.annotators)} training people: fit weights "
                "to some choices of theirs (fit_person), or predict for unknown people (predict_unknown)"
            )
        return found
