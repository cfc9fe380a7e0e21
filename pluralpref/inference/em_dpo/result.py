"""The mixture that EM-DPO ends with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pluralpref.errors import DataError
from pluralpref.inference.em_dpo.e_step import annotator_codes, pair_log_likelihoods
from pluralpref.inference.em_dpo.prediction import log_shares_before, mixture_log_prob, mixture_metrics
from pluralpref.inference.em_dpo.record import RunRecord, class_folder, iteration_folder, read_responsibilities

MARGINS_NAME = "margins.safetensors"


def read_margins(policies: Sequence[Path], which: str) -> Tensor:
    """Margins under the policies of some folders, see :meth:`EMDPOResult.margins`."""
    found = [load_file(folder / MARGINS_NAME) for folder in policies]
    if which not in found[0]:
        raise DataError(f"the run has no margins of {which!r} pairs: there are {', '.join(found[0])}")
    return torch.stack([each[which] for each in found], dim=1)


@dataclass(frozen=True)
class EMDPOResult:
    """A mixture of K policies and its annotators.

    :param beta: DPO's, of every class.
    :param eta: (classes,) shares of the classes.
    :param annotators: names.
    :param responsibilities: (annotators, classes) posterior probabilities of the classes.
    :param log_likelihoods: of the training choices after each iteration, nats.
    :param policies: one folder for each class, to be loaded with ``from_pretrained``.
    """

    beta: float
    eta: Tensor
    annotators: tuple[str, ...]
    responsibilities: Tensor
    log_likelihoods: tuple[float, ...]
    policies: tuple[Path, ...]

    @classmethod
    def load(cls, output_dir: str | os.PathLike[str]) -> EMDPOResult:
        """Read the last complete iteration of a run.

        :raises DataError: if there is none.
        """
        record = RunRecord.read(output_dir)
        done = len(record.iterations)
        if not done:
            raise DataError(f"{output_dir}: no iteration is complete yet")
        annotators, gamma = read_responsibilities(iteration_folder(output_dir, done))
        return cls(
            beta=record.settings["beta"],
            eta=torch.tensor(record.iterations[-1].eta, dtype=torch.float64),
            annotators=annotators,
            responsibilities=gamma,
            log_likelihoods=tuple(each.log_likelihood for each in record.iterations),
            policies=tuple(class_folder(output_dir, done, k) for k in range(gamma.shape[1])),
        )

    def margins(self, which: str) -> Tensor:
        """Margins of the run's own pairs under the policies, (pairs, classes), nats, beta-free, in the order of the rows.

        :param which: ``"train"`` or ``"held_out"``.
        :raises DataError: if the run had no such pairs.
        """
        return read_margins(self.policies, which)

    def log_prob(
        self,
        margins: Any,
        annotator: Sequence[Any] | None = None,
        *,
        sequential: bool = False,
        preferred: Any = None,
        weight: Any = None,
    ) -> Tensor:
        r"""Log-probability that the chosen answer of each pair is preferred.

        :math:`\log \sum_k \gamma_{ak} \sigma(\beta h_{ik})` for annotators of the training set,
        :math:`\log \sum_k \eta_k \sigma(\beta h_{ik})` for anybody else.

        :param margins: (pairs, classes) under the policies, nats, beta-free.
        :param annotator: (pairs,) names; ``None``: nobody is known.
        :param sequential: also learn from an annotator's choices in the rows above; needs ``annotator``.
        :param preferred: (pairs,) in [0, 1], what there is to learn from them; default 1.
        :param weight: (pairs,) likewise; default 1.
        :returns: (pairs,), float64, nats.
        """
        return self._predict(margins, annotator, sequential, preferred, weight)[0]

    def metrics(
        self, margins: Any, annotator: Sequence[Any] | None = None, *, preferred: Any = None, weight: Any = None
    ) -> dict[str, float]:
        """``log_loss`` and ``accuracy`` of choices, see :func:`mixture_metrics`.

        With annotators also ``log_loss/sequential`` and ``accuracy/sequential``, in which every choice of a person is predicted
        with those in the rows above; ``annotators`` and ``annotators/known`` count them and those of the training set.
        """
        result = mixture_metrics(*self._predict(margins, annotator, False, preferred, weight), preferred, weight)
        if annotator is not None:
            more = mixture_metrics(*self._predict(margins, annotator, True, preferred, weight), preferred, weight)
            people = {str(name) for name in annotator}
            result |= {f"{name}/sequential": value for name, value in more.items()}
            result |= {
                "annotators": float(len(people)),
                "annotators/known": float(len(people & set(self.annotators))),
            }
        return result

    def _predict(
        self, margins: Any, annotator: Sequence[Any] | None, sequential: bool, preferred: Any, weight: Any
    ) -> tuple[Tensor, Tensor]:
        h = torch.as_tensor(margins, dtype=torch.float64)
        if h.dim() != 2 or h.shape[1] != len(self.eta):
            raise DataError(
                f"margins have shape {tuple(h.shape)}: expected (pairs, {len(self.eta)}), one column a class"
            )
        chosen, rejected = pair_log_likelihoods(h, self.beta), pair_log_likelihoods(-h, self.beta)
        shares = self.eta.log()
        if annotator is None:
            if sequential:
                raise DataError("sequential predictions need to know who chose: give annotator")
        else:
            codes, names = annotator_codes(annotator)
            if len(codes) != len(h):
                raise DataError(f"annotator has {len(codes)} entries but there are {len(h)} pairs")
            row = {name: i for i, name in enumerate(self.annotators)}
            gamma = self.responsibilities.log()
            start = torch.stack([gamma[row[name]] if name in row else shares for name in names])
            if sequential:
                seen = pair_log_likelihoods(h, self.beta, preferred=preferred, weight=weight)
                shares = log_shares_before(seen, codes, start)
            else:
                shares = start[codes]
        return mixture_log_prob(chosen, shares), mixture_log_prob(rejected, shares)
