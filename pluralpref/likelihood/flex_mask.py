"""Which tokens of a row of pairs see which, in the form that FlexAttention takes.

What a token sees are two runs of neighbouring tokens: of its own text up to itself, and, in a rejected answer, of the prompt,
which lies before the chosen answer. A sliding window shortens both.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

#: Of prompt, chosen and rejected answer, for each pair of a row.
Lengths = tuple[tuple[int, ...], ...]

_BLOCK = 128


def padded_width(length: int) -> int:
    """The length to which a row is padded: of the block size 128 times 1, 2, 3, 4, 6, 8, 12 ..., the first that it fits in.

    At most two kernels for every doubling of the length; a row grows by half or, if it is short, by a block at most.
    """
    blocks = -(-length // _BLOCK)
    power = 1 << (blocks - 1).bit_length()
    between = 3 * power // 4
    return _BLOCK * (between if blocks <= between else power)


def visible_runs(lengths: Lengths, width: int, window: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """What each token of a row sees: tokens ``first`` to itself, and ``prompt_first`` up to, but without, ``prompt_stop``.

    :returns: first, prompt_first and prompt_stop, each (width,) int64. Past the pairs' ends a token sees itself. A run that
        stops where it begins, or before, is empty.
    """
    table = torch.tensor(lengths)
    total = table.sum(1)
    start, prompt, chosen = (x.repeat_interleave(total) for x in (total.cumsum(0) - total, table[:, 0], table[:, 1]))
    place = torch.arange(width)
    here = place[: len(start)]
    split = start + prompt + chosen
    in_rejected = here >= split
    earliest = here - (width if window is None else window) + 1
    first, prompt_first, prompt_stop = place.clone(), torch.zeros_like(place), torch.zeros_like(place)
    first[: len(here)] = torch.maximum(torch.where(in_rejected, split, start), earliest)
    prompt_stop[: len(here)] = torch.where(in_rejected, start + prompt, 0)
    # The chosen answer in between doesn't count as distance.
    prompt_first[: len(here)] = torch.where(in_rejected, torch.maximum(start, earliest - chosen), 0)
    return first, prompt_first, prompt_stop


@lru_cache(maxsize=8)
def row_mask(lengths: Lengths, width: int, window: int | None, device: torch.device) -> BlockMask:
    """The mask of a row of pairs that is padded to ``width``, a multiple of 128; one for all layers.

    Which blocks are seen in part and which as a whole is counted from the runs, without the square mask itself.
    """
    with torch.inference_mode(False):
        first, prompt_first, prompt_stop = (x.to(device, torch.int32) for x in visible_runs(lengths, width, window))

        def sees(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            # All that differs between batches is in tensors, so that nothing is compiled again.
            return ((kv >= first[q]) & (kv <= q)) | ((kv >= prompt_first[q]) & (kv < prompt_stop[q]))

        left = torch.arange(0, width, _BLOCK, dtype=torch.int32, device=device)

        def overlap(begin: Tensor, stop: Tensor) -> Tensor:
            shared = torch.minimum(stop[:, None], left + _BLOCK) - torch.maximum(begin[:, None], left)
            return shared.clamp_min(0)

        itself = torch.arange(width, dtype=torch.int32, device=device)
        seen = overlap(first, itself + 1) + overlap(prompt_first, prompt_stop)
        seen = seen.reshape(len(left), _BLOCK, len(left)).sum(1)
        whole = seen == _BLOCK**2
        return BlockMask.from_kv_blocks(
            *_in_order((seen > 0) & ~whole), *_in_order(whole), BLOCK_SIZE=_BLOCK, mask_mod=sees
        )


def _in_order(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which: first those it has, in the order of the row."""
    flags = blocks.to(torch.int32)[None, None]
    return flags.sum(-1, dtype=torch.int32), flags.argsort(dim=-1, descending=True, stable=True).to(torch.int32)
