"""EM-DPO: a mixture of policies for annotators who belong to classes that nobody observed."""

from __future__ import annotations

import copy
import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor, nn

from pluralpref.atomic import folder_written_aside
from pluralpref.data import RowReport
from pluralpref.errors import ConfigError, DataError, PluralPrefWarning
from pluralpref.inference.config import MixDPOConfig
from pluralpref.inference.em_dpo.e_step import (
    annotator_codes,
    initial_responsibilities,
    observed_log_likelihood,
    pair_log_likelihoods,
    responsibilities,
)
from pluralpref.inference.em_dpo.m_step import MIN_WEIGHT, class_options, class_weights, train_class
from pluralpref.inference.em_dpo.policies import load_policy_into
from pluralpref.inference.em_dpo.record import (
    RECORD_NAME,
    Iteration,
    RunRecord,
    class_folder,
    iteration_folder,
    read_responsibilities,
    write_responsibilities,
)
from pluralpref.inference.em_dpo.result import MARGINS_NAME, EMDPOResult, read_margins
from pluralpref.inference.em_dpo.scoring import PairScorer
from pluralpref.inference.em_dpo.settings import check_options, check_policy, data_settings, run_settings

logger = logging.getLogger(__name__)

BASE_NAME = "base"


class EMDPO:
    r"""Trains K policies for K latent classes of annotators by expectation maximisation.

    E-step: :math:`\gamma_{ak} \propto \eta_k \prod_{i \in a} \sigma(\beta h_{ik})` and
    :math:`\eta_k = \frac{1}{A} \sum_a \gamma_{ak}`; M-step: the policy of class k is trained by DPO with each pair weighted by
    :math:`\gamma_{ak}` of its annotator. It begins with an M-step on responsibilities drawn at random.

    Only one policy is in memory and in training at a time; the others are in ``output_dir/iteration-N/class-K``. The
    reference stands beside it at the beginning, when its log-probabilities are computed once for all. A run that was killed
    goes on from its last complete class, and within a class from its last checkpoint.

    :param policy: the model that all classes start from, which is copied and left as it is; or a function without arguments
        that makes it, so that no second one is in memory.
    :param beta: DPO's, the same for every class.
    :param num_classes: K >= 1; 1 is plain DPO.
    :param iterations: M-steps of each class, and E-steps.
    :param args: options of every M-step; ``num_train_epochs`` or ``max_steps`` is the length of one, ``output_dir`` the run's.
    :param train_dataset: preference pairs with a column ``annotator``, as text or tokenised; weights and soft labels count.
    :param processing_class: the tokenizer.
    :param reference: the reference, or a function that makes it; ``None``: the policy as it starts. The columns
        ``ref_chosen_logps`` and ``ref_rejected_logps`` are used instead where all data sets have them.
    :param eval_dataset: held-out pairs, scored after every iteration.
    :param start_from: ``"previous"``: an M-step goes on with the class's policy of the iteration before; ``"base"``: it starts
        from ``policy`` again.
    :param seed: of the first responsibilities; default: ``args.seed``.
    :param report: called with a line of text for each class and iteration; default: the package's log.
    :raises ConfigError: for options out of range or without effect.
    :raises DataError: for pairs without annotators.

    Reference: K. Chidambaram, K. Seetharaman, V. Syrgkanis, *Direct Preference Optimization With Unobserved Preference
    Heterogeneity*, arXiv:2405.15065.
    """

    def __init__(
        self,
        policy: nn.Module | Callable[[], nn.Module],
        *,
        beta: float,
        num_classes: int,
        iterations: int,
        args: MixDPOConfig,
        train_dataset: Dataset,
        processing_class: Any,
        reference: Any = None,
        eval_dataset: Dataset | None = None,
        start_from: str = "previous",
        seed: int | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        check_options(beta, num_classes, iterations, start_from, args)
        if "annotator" not in train_dataset.column_names:
            raise DataError(
                f"no column 'annotator': EM-DPO needs to know who made every choice; there are {train_dataset.column_names}"
            )
        for pairs in (train_dataset, eval_dataset):
            if pairs is not None and "annotator" in pairs.column_names:
                annotator_codes(pairs["annotator"][:])  # names the row, before anything takes long
        self.beta, self.num_classes, self.iterations = float(beta), num_classes, iterations
        self.args, self.start_from, self.processing_class = args, start_from, processing_class
        self.seed = args.seed if seed is None else seed
        self.output_dir = Path(str(args.output_dir))
        #: Row accounting of the data sets, once they are tokenised.
        self.row_reports: dict[str, RowReport] = {}
        self._policy, self._reference = policy, reference
        self._sets = (train_dataset, eval_dataset)
        self._report = logger.info if report is None else report

    def train(self, resume: bool = False) -> EMDPOResult:
        """Run the iterations that are missing.

        :param resume: go on with the run in ``output_dir``, if there is one; ``iterations`` may be more than it began with.
        :returns: the mixture after the last iteration.
        :raises ConfigError: if ``output_dir`` holds a run and ``resume`` is false, or it was a run of something else.
        :raises InferenceError: as the trainer.
        """
        record = self._open_record(resume)
        policy, reference = _made(self._policy), _made(self._reference)
        if policy is self._policy:
            policy = copy.deepcopy(policy)
        check_policy(policy)
        scorer = PairScorer(policy, reference, self.args, *self._sets, self.processing_class)
        del reference
        self.row_reports = scorer.row_reports
        annotator, names = annotator_codes(scorer.pairs["train"]["annotator"][:])
        record.agree({**data_settings(scorer.pairs), "reference": scorer.reference_means()})
        record.write(self.output_dir)
        done = len(record.iterations)
        if done:
            self._forget(done)  # a kill may have come before
            gamma = read_responsibilities(iteration_folder(self.output_dir, done))[1]
        else:
            gamma = initial_responsibilities(len(names), self.num_classes, self.seed)
            if not (self.output_dir / BASE_NAME).exists():
                with folder_written_aside(self.output_dir / BASE_NAME) as folder:
                    policy.save_pretrained(folder)
        preferred, weight = scorer.labels("train")
        for iteration in range(done + 1, self.iterations + 1):
            weights = [class_weights(gamma[:, k], annotator, weight) for k in range(self.num_classes)]
            for k in range(self.num_classes):
                if not class_folder(self.output_dir, iteration, k).exists():
                    self._train_class(policy, scorer, iteration, k, weights[k])
            margins = self._margins(iteration, "train")
            found = pair_log_likelihoods(margins, self.beta, preferred=preferred, weight=weight)
            gamma = responsibilities(found, annotator, gamma.mean(0).log())
            eta = gamma.mean(0)
            write_responsibilities(iteration_folder(self.output_dir, iteration), names, gamma)
            trained = [int((w > MIN_WEIGHT).sum()) for w in weights]
            ended = Iteration(
                eta=eta.tolist(),
                log_likelihood=observed_log_likelihood(found, annotator, eta.log()),
                trained_pairs=trained,
                skipped_pairs=[len(annotator) - count for count in trained],
                held_out=self._held_out(scorer, iteration, eta, names, gamma),
            )
            record.iterations.append(ended)
            record.write(self.output_dir)
            self._forget(iteration)
            self._announce(iteration, ended, len(names))
        return EMDPOResult.load(self.output_dir)

    # -- one class -----------------------------------------------------------------------------------------------

    def _train_class(self, policy: Any, scorer: PairScorer, iteration: int, k: int, weight: Tensor) -> None:
        folder = class_folder(self.output_dir, iteration, k)
        work = folder.with_name(f"{folder.name}.training")
        first = iteration == 1 or self.start_from == "base"
        load_policy_into(
            policy, self.output_dir / BASE_NAME if first else class_folder(self.output_dir, iteration - 1, k)
        )
        counted = int((weight > MIN_WEIGHT).sum())
        self._report(
            f"iteration {iteration}, class {k + 1}: {counted} pairs, {len(weight) - counted} without weight in the class skipped"
        )
        if counted:
            options = class_options(self.args, work, iteration - 1)
            train_class(policy, scorer.pairs["train"], weight, self.beta, options, self.processing_class)
        with folder_written_aside(folder) as partial:
            policy.save_pretrained(partial)
            self.processing_class.save_pretrained(partial)
            save_file({name: scorer.margins(policy, name) for name in scorer.pairs}, partial / MARGINS_NAME)
            log = work / "metrics.jsonl"
            if log.exists():
                shutil.copyfile(log, folder.with_name(f"{folder.name}.metrics.jsonl"))
        shutil.rmtree(work, ignore_errors=True)

    def _margins(self, iteration: int, which: str) -> Tensor:
        return read_margins([class_folder(self.output_dir, iteration, k) for k in range(self.num_classes)], which)

    # -- one iteration -------------------------------------------------------------------------------------------

    def _held_out(
        self, scorer: PairScorer, iteration: int, eta: Tensor, names: tuple[str, ...], gamma: Tensor
    ) -> dict[str, float]:
        if "held_out" not in scorer.pairs:
            return {}
        pairs = scorer.pairs["held_out"]
        preferred, weight = scorer.labels("held_out")
        people = pairs["annotator"][:] if "annotator" in pairs.column_names else None
        mixture = EMDPOResult(self.beta, eta, names, gamma, (), ())
        return mixture.metrics(self._margins(iteration, "held_out"), people, preferred=preferred, weight=weight)

    def _announce(self, iteration: int, ended: Iteration, num_annotators: int) -> None:
        shares = ", ".join(f"{share:.3f}" for share in ended.eta)
        line = f"iteration {iteration}: log-likelihood {ended.log_likelihood:.6g}, shares {shares}"
        if ended.held_out:
            line += f"; held-out log-loss {ended.held_out['log_loss']:.4f}, accuracy {ended.held_out['accuracy']:.1%}"
        self._report(line)
        for k, share in enumerate(ended.eta):
            if share * num_annotators < 1:
                warnings.warn(
                    f"iteration {iteration}: class {k + 1} is nearly empty (a share of {share:.2g}, less than one of "
                    f"{num_annotators} annotators): fewer classes would do, or another seed",
                    PluralPrefWarning,
                    stacklevel=3,
                )

    # -- files ---------------------------------------------------------------------------------------------------

    def _open_record(self, resume: bool) -> RunRecord:
        begun = (self.output_dir / RECORD_NAME).exists()
        if begun and not resume:
            raise ConfigError(
                f"output_dir={str(self.output_dir)!r} holds another run: choose another one, or resume it"
            )
        record = RunRecord.read(self.output_dir) if begun else RunRecord({})
        if self.iterations < len(record.iterations):
            raise ConfigError(
                f"iterations={self.iterations}: the run in output_dir has {len(record.iterations)} already"
            )
        record.agree(run_settings(self.beta, self.num_classes, self.start_from, self.seed, self.args))
        return record

    def _forget(self, iteration: int) -> None:
        """Remove the policies that the complete iteration has made needless."""
        for k in range(self.num_classes):
            shutil.rmtree(class_folder(self.output_dir, iteration - 1, k), ignore_errors=True)
        if self.start_from == "previous":
            shutil.rmtree(self.output_dir / BASE_NAME, ignore_errors=True)


def _made(given: Any) -> Any:
    """A model as it was given, or what a function makes."""
    return given() if callable(given) and not isinstance(given, nn.Module) else given
