"""The pairs of an evaluation, kept until all batches of all processes are through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pluralpref.data.collate import POSITION
from pluralpref.errors import UnsupportedError
from pluralpref.inference.metrics import PairMetrics
from pluralpref.inference.trained_strength import TrainedStrength
from pluralpref.likelihood import PairLogps


class NumberedPairs(Dataset[Any]):
    """A data set whose rows say where in it they stand, under the name that the collator passes on.

    :param pairs: has a length; its rows are dicts.
    """

    def __init__(self, pairs: Any) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {**self.pairs[place], POSITION: place}

    def __getitems__(self, places: Sequence[int]) -> list[dict[str, Any]]:
        """A batch, read at once where the data set can."""
        read = getattr(self.pairs, "__getitems__", None)
        rows = [self.pairs[place] for place in places] if read is None else read(list(places))
        return [{**row, POSITION: place} for row, place in zip(rows, places, strict=True)]


class EvaluatedPairs:
    """What is known of every evaluated pair, once.

    Results that are sums over batches depend on the batches where people's choices belong together; and several processes
    evaluate some pairs twice, to have equally many batches each.
    """

    def __init__(self) -> None:
        self._parts: list[dict[str, Any]] = []

    def clear(self) -> None:
        """Forget everything."""
        self._parts.clear()

    def add(self, policy: PairLogps, reference: PairLogps, margins: Tensor, inputs: Mapping[str, Any]) -> None:
        """Add a batch.

        :param inputs: the collated batch: weight, preferred, and where there are such positions, annotator names, groups,
            columns of contexts.
        """
        columns = {
            "policy_chosen": policy.chosen,
            "policy_rejected": policy.rejected,
            "reference_chosen": reference.chosen,
            "reference_rejected": reference.rejected,
            "margins": margins,
            **{name: inputs[name] for name in ("weight", "preferred", POSITION) if name in inputs},
        }
        self._parts.append(
            {
                "tensors": {name: value.detach().cpu() for name, value in columns.items()},
                "names": inputs.get("annotator_names"),
                "groups": inputs.get("groups", {}),
                "context": inputs.get("context_columns", {}),
            }
        )

    def merge(self, gather: Any = None) -> dict[str, Any]:
        """All pairs, each once; in the order of the data set where several processes share them.

        :param gather: makes one list of the parts of all processes, whose pairs have positions (:class:`NumberedPairs`).
        :returns: ``tensors`` by name (pairs,), ``names`` or ``None``, ``groups`` and ``context``, lists by column.
        :raises UnsupportedError: if several processes share pairs without positions.
        """
        parts = self._parts if gather is None else gather(self._parts)
        tensors = {name: torch.cat([part["tensors"][name] for part in parts]) for name in parts[0]["tensors"]}
        lists: dict[str, dict[str, list[Any]]] = {
            kind: {name: [v for part in parts for v in part[kind][name]] for name in parts[0][kind]}
            for kind in ("groups", "context")
        }
        names = None if parts[0]["names"] is None else [name for part in parts for name in part["names"]]
        if gather is None:
            return {"tensors": tensors, "names": names, **lists}
        if POSITION not in tensors:
            raise UnsupportedError(
                "several processes can't evaluate a data set without a length, since some of its pairs are given to two of them: "
                "give a datasets.Dataset, or evaluate in one process"
            )
        first = {position: place for place, position in reversed(list(enumerate(tensors[POSITION].tolist())))}
        kept = [first[position] for position in sorted(first)]
        return {
            "tensors": {name: value[kept] for name, value in tensors.items()},
            "names": None if names is None else [names[i] for i in kept],
            **{kind: {n: [v[i] for i in kept] for n, v in columns.items()} for kind, columns in lists.items()},
        }

    @torch.no_grad()
    def compute(
        self,
        trained: TrainedStrength,
        *,
        num_pairs: int,
        loss_column: str | None = None,
        rewards: bool = False,
        device: torch.device | str = "cpu",
        gather: Any = None,
    ) -> dict[str, float]:
        """The metrics of all pairs together, everything that an annotator chose as one where they are panels.

        :param num_pairs: of the training set, over which priors are spread in the loss.
        :param loss_column: whose values are the groups of the loss, if it has any.
        :param rewards: as for :class:`PairMetrics`.
        """
        found = self.merge(gather)
        pairs = {name: value.to(device) for name, value in found["tensors"].items()}
        margins, weight, preferred = pairs["margins"], pairs["weight"], pairs["preferred"]
        metrics = PairMetrics(rewards)
        metrics.update(
            PairLogps(pairs["policy_chosen"], pairs["policy_rejected"]),
            PairLogps(pairs["reference_chosen"], pairs["reference_rejected"]),
            margins,
            weight,
            preferred,
            trained.mean(),
            found["groups"],
        )
        context = trained.make_context(found["context"])
        groups = None if loss_column is None else found["groups"][loss_column]
        loss, total = trained.loss(margins, preferred, weight, num_pairs, found["names"], context, groups=groups)
        metrics.add("loss", loss, total)
        return metrics.compute()
