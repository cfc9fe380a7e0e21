"""How the tokens of a batch of pairs are laid out for the body of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Layout = Literal["padded", "batched", "ragged"]
#: The time of a token relative to a padded batch's, with prompts and answers of equal lengths (benchmarks/layouts.py): what is
#: asked of a layout to be taken for faster.
_COST: dict[Layout, float] = {"padded": 1.0, "batched": 1.17, "ragged": 1.14}
_GPU_COST: dict[Layout, float] = {"padded": 1.0, "batched": 1.08, "ragged": 1.2}
#: What a batch costs a GPU besides, in tokens: starting kernels takes as long for few tokens as for many.
_GPU_FIXED: dict[Layout, int] = {"padded": 0, "batched": 300, "ragged": 1000}


@dataclass(frozen=True)
class SharedRows:
    """Pairs in rows with one copy of each prompt, and which positions predict the answers' tokens.

    :param input_ids: (rows, length) int64.
    :param position_ids: (rows, length); the rejected answer's go on from the end of the prompt.
    :param lengths: (pairs, 3) lengths of prompt, chosen and rejected answer, on the CPU.
    :param predictors: (tokens,) places in the flattened rows whose next token is scored: of all chosen answers, then of all
        rejected ones.
    :param targets: (tokens,) the scored tokens' ids.
    :param scored: (2 pairs, longest answer) bool, which entries of a dense array these are, row by row.
    """

    input_ids: Tensor
    position_ids: Tensor
    lengths: Tensor
    predictors: Tensor
    targets: Tensor
    scored: Tensor


def choose_layout(lengths: Tensor, *, shared: bool = False, device: str = "cpu") -> Layout:
    """The layout that takes the least time.

    Padding costs tokens, and so does a second copy of the prompts; but a token of a shared row takes longer, since its
    attention is pieced together.

    :param lengths: (pairs, 3) lengths of prompt, chosen and rejected answer.
    :param shared: leave padded rows out of the choice.
    :param device: the type of the device that the batch is run on.
    """
    tokens = layout_tokens(lengths)
    if shared:
        del tokens["padded"]
    if device == "cpu":
        return min(tokens, key=lambda layout: tokens[layout] * _COST[layout])
    return min(tokens, key=lambda layout: tokens[layout] * _GPU_COST[layout] + _GPU_FIXED[layout])


def layout_tokens(lengths: Tensor) -> dict[Layout, int]:
    """How many tokens the body of the model runs in each layout, padding included.

    :param lengths: (pairs, 3) lengths of prompt, chosen and rejected answer.
    """
    prompt, chosen, rejected = lengths.unbind(1)
    return {
        "padded": 2 * len(lengths) * int((prompt + torch.maximum(chosen, rejected)).max()),
        "batched": len(lengths) * int(lengths.sum(1).max()),
        "ragged": int(lengths.sum()),
    }


def shared_rows(input_ids: Tensor, lengths: Tensor, layout: Layout) -> SharedRows:
    """Rows with one copy of each prompt from padded ones.

    :param input_ids: (2 pairs, length), padded on the right: all chosen rows, then all rejected rows.
    :param lengths: (pairs, 3) of prompt, chosen and rejected answer, on the CPU; no length is 0.
    :param layout: ``"ragged"`` or ``"batched"``.
    """
    pairs = lengths.shape[0]
    prompt, chosen, rejected = lengths.unbind(1)
    total = lengths.sum(1)
    width = int(total.max())
    place = torch.arange(width)
    real = place < total[:, None]
    in_rejected = place >= (prompt + chosen)[:, None]
    position = torch.where(in_rejected, place - chosen[:, None], place).clamp(max=input_ids.shape[1] - 1)
    # Where each token stands in the padded rows.
    source = (torch.arange(pairs)[:, None] + pairs * in_rejected) * input_ids.shape[1] + position
    if layout == "ragged":
        source, position = source[real].unsqueeze(0), position[real].unsqueeze(0)
        start = torch.cat([total.new_zeros(1), total.cumsum(0)[:-1]])
    else:
        position = torch.where(real, position, 0)
        start = torch.arange(pairs) * width
    step = torch.arange(max(int(chosen.max()), int(rejected.max())))
    scored = step < torch.cat([chosen, rejected])[:, None]
    # An answer's first token is predicted by the prompt's last one, wherever the answer stands.
    last = start + prompt - 1
    before = torch.cat([last, last + chosen])[:, None] + step
    before[:, 0] = torch.cat([last, last])
    device = input_ids.device
    flat = input_ids.reshape(-1)
    row = torch.arange(2 * pairs)[:, None] * input_ids.shape[1]
    target = row + torch.cat([prompt, prompt])[:, None] + step
    return SharedRows(
        flat[source.to(device)],
        position.to(device),
        lengths,
        before[scored].to(device),
        flat[target[scored].to(device)],
        scored.to(device),
    )
