"""Sampling whose random numbers belong to the prompt, not to the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from pluralpref.errors import InferenceError


def row_uniforms(seed: int, stream: int, prompt_ids: Sequence[int], steps: int) -> Tensor:
    """Uniform numbers, (rows, steps) float64: a function of seed, stream and prompt alone, longer for more steps."""
    rows = [np.random.default_rng([seed, stream, number]).random(steps) for number in prompt_ids]
    return torch.from_numpy(np.stack(rows))


class SeededSampling(LogitsProcessor):
    """Leaves one token possible in each row: the quantile of its distribution at the row's own uniform number.

    With next-token probabilities p after the ``warpers`` and the uniform number u of row and step, the token is the
    first k with p_1 + … + p_k > u: a draw from p. ``torch.multinomial`` would deal out one generator's numbers among the
    rows, so that an answer would depend on which others are in its batch and how long they are. Here batch mates change
    p by rounding only, and so the token only where u falls within rounding of a boundary.

    :param uniforms: (rows, steps), or ``None`` to leave the choice of the most probable token to the caller.
    :param width: tokens in a padded prompt.
    :param warpers: temperature, top-k and the like, in the order in which they apply.
    """

    def __init__(self, uniforms: Tensor | None, width: int, warpers: Sequence[LogitsProcessor] = ()) -> None:
        self.uniforms, self.width, self.warpers = uniforms, width, list(warpers)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override,unused-ignore]
        """Scores of the next token, (rows, vocabulary).

        :raises InferenceError: for logits that aren't numbers.
        """
        if not bool(torch.isfinite(scores.max(-1).values).all()):
            raise InferenceError(
                "the policy's logits aren't finite: its weights are damaged, or its dtype is too narrow"
            )
        if self.uniforms is None:
            return scores
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        # In float64: over a large vocabulary a float32 sum is off by more than rare tokens' probabilities.
        cumulative = scores.double().softmax(-1).cumsum(-1)
        step = min(input_ids.shape[1] - self.width, self.uniforms.shape[1] - 1)
        u = self.uniforms[:, step].to(scores.device) * cumulative[:, -1]
        token = (cumulative <= u.unsqueeze(-1)).sum(-1).clamp_max(scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, token.unsqueeze(-1), 0.0)
