"""Training a policy together with the distribution of preference strength."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset, DatasetDict
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback
from transformers.integrations.liger import apply_liger_kernel
from transformers.trainer_utils import EvalLoopOutput, SaveStrategy

from pluralpref.data import PreferenceCollator, RowReport, padding_token, tokenize_preferences
from pluralpref.errors import ConfigError, DataError, InferenceError, UnsupportedError
from pluralpref.inference.annotator_sampler import AnnotatorSampler
from pluralpref.inference.checkpoints import forget_steps_after, last_complete_checkpoint, step_of
from pluralpref.inference.config import MixDPOConfig
from pluralpref.inference.evaluated_pairs import EvaluatedPairs, NumberedPairs
from pluralpref.inference.marginal.safe_math import working_dtype
from pluralpref.inference.metrics import PairMetrics
from pluralpref.inference.model_card import card_tags, strength_section
from pluralpref.inference.pair_losses import make_pair_loss
from pluralpref.inference.step_ahead import weigh_pairs
from pluralpref.inference.termination import EXIT_CODE, Termination
from pluralpref.inference.trained_strength import TrainedStrength, check_optimizer
from pluralpref.inference.training_reference import choose_reference, precompute_in_shares
from pluralpref.likelihood import (
    PairLogps,
    disable_dropout,
    is_reward_model,
    log_ratio_margins,
    pair_logps,
    reference_pair_logps,
)
from pluralpref.likelihood.causal_lm import evaluation_flags
from pluralpref.likelihood.margins import shares_prompts
from pluralpref.likelihood.token_budget import split_by_tokens, take_pairs
from pluralpref.models import LogNormalStrength, StrengthModel

#: How many offending rows a message names.
_NAMED_ROWS = 5
#: Of transformers' trainer; metrics are those of pairs, and there are no labels to compute others from.
_IDLE_ARGUMENTS = (
    "data_collator",
    "compute_loss_func",
    "compute_metrics",
    "model_init",
    "preprocess_logits_for_metrics",
)


class MixDPOTrainer(Trainer):
    r"""A :class:`transformers.Trainer` with a Pyro model in the place of beta.

    Minimises :math:`-\log E_\beta[\sigma(\beta h)]` over the policy and the global parameters of the strength model
    together; with :class:`~pluralpref.models.FixedStrength` this is plain DPO. The strength's parameters are a group
    of their own in the optimiser and part of every checkpoint; evaluation changes neither them nor the generator.

    :param model: a causal language model, or the name or folder of one; or a reward model, a sequence classifier with one label:
        the margin is the difference of its rewards, and there is no reference.
    :param ref_model: the reference; ``None`` copies the policy from memory as it is handed over (of a policy of which less
        than half is trained, as with adapters, that part only), unless the data set has the columns ``ref_chosen_logps`` and
        ``ref_rejected_logps``.
    :param strength: a strength model, or any Pyro function or module with the sites ``"beta"`` and ``"preferred"``
        called as ``model(margins, preferred)``. Default: ``LogNormalStrength(mean=0.1, cv=0.5)``.
    :param args: options; default ``MixDPOConfig("mixdpo_output")``.
    :param train_dataset: preference pairs, see :mod:`pluralpref.data`; tokenised here if they aren't yet.
    :param eval_dataset: likewise; a dict of data sets is evaluated set by set.
    :param processing_class: the tokenizer; default: the one saved with the model.
    :param kwargs: passed to :class:`transformers.Trainer` (callbacks, optimizers, …).
    :raises ConfigError: for options that contradict each other or have no effect.
    :raises DataError: for data sets that can't be used.

    Reference: MixDPO, arXiv:2601.06180; R. Rafailov et al., arXiv:2305.18290.
    """

    args: MixDPOConfig
    train_dataset: Any
    eval_dataset: Any

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        strength: StrengthModel | Callable[..., Any] | None = None,
        args: MixDPOConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | Mapping[str, Dataset] | None = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        args = MixDPOConfig("mixdpo_output") if args is None else args
        for name in _IDLE_ARGUMENTS:
            if kwargs.get(name) is not None:
                raise ConfigError(f"{name} has no effect on MixDPOTrainer: leave it out")
        _refuse_other_engines(args)
        if isinstance(model, str):
            processing_class = processing_class or AutoTokenizer.from_pretrained(model)
            model = AutoModelForCausalLM.from_pretrained(model)
        if isinstance(ref_model, str):
            ref_model = AutoModelForCausalLM.from_pretrained(ref_model)
        if ref_model is model:
            raise ConfigError(
                "ref_model is the policy itself, so every margin would stay 0: leave it out to copy the policy"
            )
        if processing_class is None:
            raise ConfigError("processing_class is missing: give the policy's tokenizer")
        if train_dataset is not None and not any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigError(
                "no parameter of the policy is trained (requires_grad is False for all), so every margin would stay 0: load "
                "adapters with is_trainable=True, or unfreeze what is to be learned"
            )

        self._trained = TrainedStrength(LogNormalStrength(mean=0.1, cv=0.5) if strength is None else strength, args)
        if train_dataset is not None and args.save_strategy != SaveStrategy.NO:
            self._trained.check_saving()
        self.strength = self._trained.model
        self.guide = self._trained.guide
        self.objective = self._trained.objective
        #: What is trained of the strength: its own parameters, and those of the guide of their priors.
        self.strength_modules = self._trained.modules

        self.row_reports: dict[str, RowReport] = {}
        train_dataset = self._prepare("train", train_dataset, processing_class, args)
        if isinstance(eval_dataset, Mapping | DatasetDict):
            eval_dataset = {k: self._prepare(f"eval_{k}", v, processing_class, args) for k, v in eval_dataset.items()}
        else:
            eval_dataset = self._prepare("eval", eval_dataset, processing_class, args)
        context = self._trained.context_columns
        loss_column = [] if args.gr_dpo_column is None else [args.gr_dpo_column]
        group_columns = list(dict.fromkeys([*args.group_columns, *loss_column]))
        _check_columns("group_columns", args.group_columns, train_dataset, eval_dataset)
        _check_columns("gr_dpo_column", loss_column, train_dataset, eval_dataset)
        _check_columns(type(self.strength).__name__, context, train_dataset, eval_dataset)
        _check_columns("panel=True", ("annotator",) if args.panel else (), train_dataset, eval_dataset)
        collator = PreferenceCollator(
            padding_token(processing_class),
            group_columns=group_columns,
            context_columns=context,
            panel=args.panel,
        )

        groups = [] if args.gr_dpo_column is None or train_dataset is None else train_dataset[args.gr_dpo_column]
        self._trained.take_pair_loss(make_pair_loss(args, self.strength, [str(name) for name in groups]))

        sets = [d for d in (train_dataset, *_sets(eval_dataset)) if d is not None]
        self._rewards = is_reward_model(model)
        self.ref_model: Any = choose_reference(model, ref_model, args, sets)
        if args.disable_dropout:
            disable_dropout(model)
        self._train_metrics = PairMetrics(self._rewards)
        self._evaluated = EvaluatedPairs()
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        # compute_loss divides by what the whole optimiser step counts itself.
        self.loss_is_scaled_for_ga = True
        # transformers can't see that a batch has a loss when it has no "labels".
        self.can_return_loss = True
        device = self.args.device
        self.strength_modules.to(device=device, dtype=working_dtype(device))
        if isinstance(self.ref_model, torch.nn.Module):
            self.ref_model.to(device)
            if args.use_liger_kernel:  # as the policy has, or the first margins wouldn't be 0
                apply_liger_kernel(self.ref_model, args.liger_kernel_config)
        self.add_callback(_ZeroStrengthGrad(self))
        self._termination = Termination()
        self.add_callback(self._termination)
        self.num_pairs = len(train_dataset) if train_dataset is not None else 1
        self._mean_weight = _mean_weight(train_dataset)
        if self.optimizer is not None:
            self._check_given_optimizer()
        elif self._trained.learns and self.optimizer_cls_and_kwargs is None:
            check_optimizer(str(getattr(args.optim, "value", args.optim)))
        if args.precompute_ref_log_probs and self.ref_model is not None:
            self._precompute()

    # -- data ----------------------------------------------------------------------------------------------------

    def _prepare(self, key: str, dataset: Any, tokenizer: Any, args: MixDPOConfig) -> Any:
        if dataset is None:
            return None
        prepared, report = tokenize_preferences(
            dataset,
            tokenizer,
            max_length=args.max_length,
            truncation_mode=args.truncation_mode,
            strict=args.strict,
            desc=f"Tokenizing {key} pairs",
        )
        self.row_reports[key] = report
        return prepared

    def _precompute(self) -> None:
        def fill(dataset: Any) -> Any:
            return precompute_in_shares(
                self.ref_model, dataset, self.data_collator, self.args, self.compute_loss_context_manager
            )

        if self.train_dataset is not None:
            self.train_dataset = fill(self.train_dataset)
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {name: fill(dataset) for name, dataset in self.eval_dataset.items()}
        elif self.eval_dataset is not None:
            self.eval_dataset = fill(self.eval_dataset)
        self.ref_model = None

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in transformers; pairs that aren't tokenised yet are tokenised."""
        if isinstance(eval_dataset, Dataset) and "prompt_ids" not in eval_dataset.column_names:
            eval_dataset = self._prepare("evaluate", eval_dataset, self.processing_class, self.args)
        return super().evaluate(eval_dataset, *args, **kwargs)

    # -- loss ----------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The micro-batches of one optimiser step, and what the sum of its pairs' losses is divided by.

        That is the number of pairs times the mean weight of all training pairs. The sum of the step's own weights would take the
        weight of a pair that is alone in its step away again; it is right where a loss weighs the pairs of a step
        against each other.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        loss = self._trained.pair_loss
        if loss is not None and not loss.looks_ahead:
            loss = None
        if loss is not None and batches:
            column = self.args.gr_dpo_column if loss.needs_groups else None
            gather = None if self.args.world_size == 1 else gather_object
            weigh_pairs(loss, batches, self._margins_before_step, column, gather, self.args.process_index)
        counts = [len(b["weight"]) * self._mean_weight if loss is None else float(b["weight"].sum()) for b in batches]
        total = torch.tensor(sum(counts), dtype=working_dtype(device))
        return batches, self.accelerator.reduce(total.to(device), "sum")

    def _margins_before_step(self, batch: dict[str, Any]) -> Tensor:
        with evaluation_flags(self.model):
            margins = torch.empty(len(batch["weight"]), dtype=torch.float64)
            for _, pairs, _, _, found in self._scored_parts(self.model, batch, "train"):
                margins[pairs] = found.to(margins)
        return margins

    @torch.no_grad()
    def _scored_parts(self, model: Any, batch: dict[str, Any], mode: str) -> Iterator[tuple[Any, ...]]:
        """A batch without gradients, in parts that fit: (inputs, which pairs, policy's and reference's logps, margins)."""
        for part, pairs in self._parts(model, batch):
            inputs = self._prepare_inputs(part)
            with self.compute_loss_context_manager():
                policy, reference = self._pair_logps(model, inputs)
            margins = log_ratio_margins(policy, reference)
            self._check_finite(margins, inputs, mode)
            yield inputs, pairs, policy, reference, margins

    def _pair_logps(self, model: Any, inputs: dict[str, Any]) -> tuple[PairLogps, PairLogps]:
        options: Any = {
            "attn_layout": self.args.attn_layout,
            "logits_budget_bytes": self.args.logits_budget_bytes,
        }
        # First, since a reference that shares weights with the policy mustn't run between its forward and backward.
        reference = reference_pair_logps(inputs, self.ref_model, **options)
        return pair_logps(model, inputs, **options), reference

    @contextmanager
    def compute_loss_context_manager(self) -> Iterator[None]:
        """The precision in which policy and reference run.

        accelerate gives it to the policy's own forward alone, which neither the reference nor the policy's parts go through:
        one would run in 16 bits and the other in 32, and the first margins wouldn't be 0.
        """
        with super().compute_loss_context_manager(), self.accelerator.autocast():
            yield

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As in transformers, in parts where ``max_tokens_per_batch`` asks for them."""
        parts = self._parts(model, inputs)
        loss = torch.zeros((), dtype=working_dtype(self.args.device), device=self.args.device)
        for number, (part, _) in enumerate(parts, 1):
            # The processes add up their gradients once, whatever the number of parts that each of them has.
            with nullcontext() if number == len(parts) else self.accelerator.no_sync(model):
                loss += super().training_step(model, part, num_items_in_batch)
        return loss

    def _parts(self, model: Any, inputs: dict[str, Any]) -> list[tuple[dict[str, Any], list[int]]]:
        """Batches that fit, and which pairs each of them holds."""
        budget = self.args.max_tokens_per_batch
        whole = [(inputs, list(range(len(inputs["weight"]))))]
        if budget is None:
            return whole
        inner, probe = self.accelerator.unwrap_model(model), self._prepare_inputs(take_pairs(inputs, [0]))
        with self.compute_loss_context_manager():
            shared = shares_prompts(inner, probe, self.args.attn_layout)
        lengths = inputs["pair_lengths"].cpu()
        parts = split_by_tokens(lengths, budget, shared=shared, together=inputs.get("annotator_names"))
        return whole if len(parts) == 1 else [(take_pairs(inputs, part), part) for part in parts]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean negative log-probability of the choices, plus what priors add once per optimiser step."""
        policy, reference = self._pair_logps(model, inputs)
        margins = log_ratio_margins(policy, reference)
        weight, preferred = inputs["weight"], inputs["preferred"]
        self._check_finite(margins, inputs, "train")
        context = self._trained.make_context(inputs.get("context_columns"))
        names = inputs.get("annotator_names")
        groups = None if self.args.gr_dpo_column is None else inputs["groups"][self.args.gr_dpo_column]
        loss, total = self._trained.loss(
            margins, preferred, weight, self.num_pairs, names, context, inputs.get("loss_weight"), groups
        )
        if model.training:
            named = inputs.get("groups", {})
            self._train_metrics.update(policy, reference, margins, weight, preferred, self._trained.mean(), named)
        if num_items_in_batch is not None:
            # Gradients are averaged over the processes, whose losses are parts of one sum.
            loss = loss * (self.args.world_size * total / num_items_in_batch.to(total.device))
        return (loss, {"margins": margins}) if return_outputs else loss

    def _check_finite(self, margins: Tensor, inputs: Mapping[str, Any], mode: str) -> None:
        """Transformers would count a loss that isn't a number as an average one, and go on."""
        bad = (~torch.isfinite(margins.detach())).nonzero()[:, 0].tolist()
        if not bad:
            return
        rows = inputs["row"].tolist() if "row" in inputs else list(range(len(margins)))
        values = ", ".join(f"row {rows[i]}: {float(margins[i].detach())}" for i in bad[:_NAMED_ROWS])
        what = "step" if mode == "train" else "evaluation after step"
        raise InferenceError(
            f"{what} {self.state.global_step + (mode == 'train')}: {len(bad)} of {len(margins)} margins of the batch aren't "
            f"finite ({values}). Nothing was updated; {self._last_checkpoint()}. Look at these rows (pluralpref inspect), lower "
            "learning_rate, or use float32"
        )

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """As in transformers, just before the step; refuses to take it with a gradient that isn't finite."""
        if self.args.world_size > 1:
            self._trained.average_gradients()
        norm = super()._get_grad_norm(model, grad_norm)
        # Loss scaling in float16 meets infinite gradients on its way, and skips such steps itself.
        if norm is None or self.args.fp16:
            return norm
        if not (bool(torch.isfinite(torch.as_tensor(norm))) and self._trained.gradients_are_finite()):
            raise InferenceError(
                f"step {self.state.global_step + 1}: the gradient isn't finite (norm {float(norm)}). Nothing was updated; "
                f"{self._last_checkpoint()}. Lower learning_rate or strength_learning_rate, or use float32"
            )
        return norm

    def _last_checkpoint(self) -> str:
        last = last_complete_checkpoint(self.args.output_dir, remove=False)
        return "there is no checkpoint yet" if last is None else f"the last checkpoint is {last}"

    # -- optimiser -----------------------------------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The policy's optimiser with the strength's parameters as a further group."""
        created = self.optimizer is None
        optimizer = super().create_optimizer(model)
        parameters = [p for p in self.strength_modules.parameters() if p.requires_grad]
        if created and parameters:
            optimizer.add_param_group(
                {"params": parameters, "lr": self.args.strength_learning_rate, "weight_decay": 0.0}
            )
        return optimizer

    def _check_given_optimizer(self) -> None:
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        if any(id(p) not in held for p in self.strength_modules.parameters() if p.requires_grad):
            raise ConfigError(
                "the optimizer that was given doesn't hold the strength's parameters, so beta would never be learned: "
                "add a group with strength.parameters()"
            )
        rate = self.args.strength_learning_rate
        if rate != MixDPOConfig.__dataclass_fields__["strength_learning_rate"].default:
            raise ConfigError(
                f"strength_learning_rate={rate} has no effect on the optimizer that was given, whose groups have learning rates "
                "of their own: leave it out"
            )

    # -- evaluation and logs -------------------------------------------------------------------------------------

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, Tensor | None, None]:
        """The margins of one batch as predictions. There is no loss of a batch: that of all pairs comes at the end."""
        margins = torch.empty(len(inputs["weight"]), dtype=working_dtype(self.args.device), device=self.args.device)
        for part, pairs, policy, reference, found in self._scored_parts(model, inputs, "eval"):
            self._evaluated.add(policy, reference, found, part)
            margins[pairs] = found.to(margins)
        return None, None if prediction_loss_only else margins, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """As in transformers, with the metrics of all pairs among the results and the generator as it was."""
        self._evaluated.clear()
        with torch.random.fork_rng():
            torch.manual_seed(self.args.seed)
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            metrics = self._evaluated.compute(
                self._trained,
                num_pairs=self.num_pairs,
                loss_column=self.args.gr_dpo_column,
                rewards=self._rewards,
                device=self.args.device,
                gather=None if self.args.world_size == 1 else gather_object,
            )
        assert output.metrics is not None
        metrics |= self._trained.metrics()
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        self._evaluated.clear()
        return output

    def _get_dataloader(self, dataset: Any, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        """As in transformers, but an evaluation has every pair, with its number, whatever ``dataloader_drop_last`` says."""
        if is_training:
            return super()._get_dataloader(dataset, *args, is_training=True, **kwargs)
        sampler = kwargs.pop("sampler_fn", None)
        if hasattr(dataset, "__len__"):
            # The sampler looks at the data set itself, for its lengths.
            kwargs["sampler_fn"] = None if sampler is None else lambda _: sampler(dataset)
            dataset = NumberedPairs(dataset)
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super()._get_dataloader(dataset, *args, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not self.args.panel or dataset is None:
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return AnnotatorSampler(dataset["annotator"], self._train_batch_size, seed)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log with the pairs' metrics and the law of beta, and append to ``metrics.jsonl`` of the run."""
        if "loss" in logs:
            if self.args.world_size > 1:
                self._train_metrics.merge(gather_object([self._train_metrics.state()]))
            logs = {**logs, **self._train_metrics.compute(), **self._trained.metrics()}
            logs.update(self.row_reports["train"].as_metrics() if "train" in self.row_reports else {})
            self._train_metrics.reset()
        super().log(logs, *args, **kwargs)
        if self.is_world_process_zero():
            path = Path(self.args.output_dir) / "metrics.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(json.dumps(self.state.log_history[-1]) + "\n")

    def create_model_card(self, *card: Any, tags: Any = None, **more: Any) -> None:
        """As in transformers, with the trained law of beta and the last evaluation."""
        super().create_model_card(*card, tags=card_tags(tags), **more)
        if not self.is_world_process_zero():
            return
        args = self.args
        marginal = args.marginal if args.num_samples is None else f"Monte Carlo, {args.num_samples} draws"
        section = strength_section(
            str(self.strength), self._trained.metrics(), marginal, args.panel, self.state.log_history, self._rewards
        )
        with (Path(args.output_dir) / "README.md").open("a", encoding="utf-8") as file:
            file.write("\n" + section)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self.save_strength(output_dir or self.args.output_dir)

    def save_strength(self, directory: str | os.PathLike[str]) -> None:
        """Write the strength model (and the guide of its priors) beside the policy."""
        self._trained.save(directory)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        try:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        except (SafetensorError, EOFError, KeyError, RuntimeError, ValueError) as error:
            raise DataError(
                f"{resume_from_checkpoint} can't be loaded into this policy: {str(error).splitlines()[0]}. It is damaged, or of "
                "another model: resume from another checkpoint, or start again in another output_dir"
            ) from error
        self._trained.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._trained.load(self.state.best_model_checkpoint)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train; ``resume_from_checkpoint=True`` goes on from the newest complete checkpoint, or from the start.

        A checkpoint whose writing was cut off is removed: it can't be used, and training writes it again. SIGTERM ends
        training with a checkpoint after the step in which it arrives.

        :raises InferenceError: if a margin, the loss or a gradient stops being a finite number: before the step is taken, so
            that the last checkpoint is good.
        :raises SystemExit: with code 143 (128 + SIGTERM) after SIGTERM.
        """
        if resume_from_checkpoint is True:
            with self.args.main_process_first(desc="looking for the newest checkpoint"):
                first = self.is_world_process_zero()
                resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir, remove=first)
        if self.args.world_size > 1:
            self._trained.take_from_first_process()
        if not self.is_world_process_zero():
            pass
        elif resume_from_checkpoint is not None and resume_from_checkpoint is not False:
            step = step_of(Path(resume_from_checkpoint))
            forget_steps_after(Path(self.args.output_dir) / "metrics.jsonl", step)
        elif resume_from_checkpoint is None:
            forget_steps_after(Path(self.args.output_dir) / "metrics.jsonl", -1)
        with self._termination as termination:
            result = super().train(resume_from_checkpoint, *args, **kwargs)
        if termination.received:
            raise SystemExit(EXIT_CODE)
        return result


def _mean_weight(train_dataset: Any) -> float:
    if train_dataset is None or "weight" not in train_dataset.column_names:
        return 1.0
    mean = float(torch.tensor(train_dataset["weight"][:], dtype=torch.float64).mean())
    if not mean > 0:
        raise DataError("weight is 0 in every training row: nothing is left to learn from")
    return mean


def _refuse_other_engines(args: MixDPOConfig) -> None:
    if args.n_gpu > 1:
        raise UnsupportedError(
            f"one process with {args.n_gpu} GPUs isn't supported: start one process for each, torchrun --nproc_per_node "
            f"{args.n_gpu} (or set CUDA_VISIBLE_DEVICES to one)"
        )
    if args.deepspeed:
        raise UnsupportedError(
            "DeepSpeed isn't supported: its engine owns the optimiser, which holds the strength as well"
        )
    if args.fsdp:
        raise UnsupportedError("FSDP isn't supported yet: use DDP (torchrun or accelerate launch without fsdp)")


class _ZeroStrengthGrad(TrainerCallback):
    """transformers zeroes the gradients of the policy only."""

    def __init__(self, trainer: MixDPOTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.strength_modules.zero_grad()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.strength_modules.zero_grad()


def _check_columns(user: str, columns: Sequence[str], train: Any, evaluation: Any) -> None:
    for dataset in (train, *_sets(evaluation)):
        missing = [] if dataset is None else [name for name in columns if name not in dataset.column_names]
        if missing:
            raise DataError(f"no column {', '.join(missing)} for {user}: there are {', '.join(dataset.column_names)}")


def _sets(evaluation: Any) -> list[Any]:
    return list(evaluation.values()) if isinstance(evaluation, dict) else [evaluation]
