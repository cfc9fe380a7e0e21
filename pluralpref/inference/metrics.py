"""Metrics of training and evaluation as sums and counts over pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pluralpref.likelihood import PairLogps


class PairMetrics:
    r"""Weighted sums over pairs; the mean of any division into batches is the same.

    ``rewards/*`` are :math:`E[\beta]` times log-ratios, as TRL's are beta times log-ratios; ``margins`` is the
    beta-free margin in nats. A pair with margin exactly 0 is a tie: no win, counted under ``rewards/ties``.

    :param rewards: a reward model is trained, whose rewards are no log-probabilities: there are no ``logps/*``.
    """

    def __init__(self, rewards: bool = False) -> None:
        self.rewards = rewards
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, float] = defaultdict(float)

    def add(self, name: str, values: Tensor, weight: Tensor) -> None:
        """Add ``values`` (pairs,) under ``name``, weighted."""
        self.sums[name] += float((values.detach().double() * weight).sum())
        self.counts[name] += float(weight.sum())

    def update(
        self,
        policy: PairLogps,
        reference: PairLogps,
        margins: Tensor,
        weight: Tensor,
        preferred: Tensor,
        mean_beta: Tensor,
        groups: Mapping[str, Sequence[str]],
    ) -> None:
        """Add a batch; all tensors (pairs,), log-probabilities and margins in nats."""
        h = margins.detach()
        beta = mean_beta.to(h.device)
        columns = {
            "rewards/chosen": beta * (policy.chosen.detach() - reference.chosen),
            "rewards/rejected": beta * (policy.rejected.detach() - reference.rejected),
            "rewards/margins": beta * h,
            # A label below 1/2 says that the answer called rejected was preferred.
            "rewards/accuracies": torch.where(preferred >= 0.5, h > 0, h < 0),
            "rewards/ties": h == 0,
            "margins": h,
        }
        if not self.rewards:
            columns |= {"logps/chosen": policy.chosen.detach(), "logps/rejected": policy.rejected.detach()}
        # At once: a GPU is waited for at every transfer.
        *moved, weight = torch.stack([value.to(h.dtype) for value in (*columns.values(), weight)]).cpu().double()
        values = dict(zip(columns, moved, strict=True))
        for name, value in values.items():
            self.add(name, value, weight)
        for column, names in groups.items():
            for name in dict.fromkeys(names):
                rows = torch.tensor([value == name for value in names])
                self.add(f"group/{column}={name}/rewards/accuracies", values["rewards/accuracies"][rows], weight[rows])

    def state(self) -> tuple[dict[str, float], dict[str, float]]:
        """(sums, counts)."""
        return dict(self.sums), dict(self.counts)

    def merge(self, states: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> None:
        """Become the sum of several processes' states."""
        self.reset()
        for sums, counts in states:
            for name, value in sums.items():
                self.sums[name] += value
                self.counts[name] += counts[name]

    def compute(self) -> dict[str, float]:
        """The means so far."""
        return {name: total / self.counts[name] for name, total in self.sums.items() if self.counts[name] > 0}

    def reset(self) -> None:
        """Forget everything."""
        self.sums.clear()
        self.counts.clear()
