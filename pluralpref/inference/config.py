"""The options of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from pluralpref.errors import ConfigError
from pluralpref.inference.marginal.dispatch import DESIGNS
from pluralpref.likelihood.margins import ATTN_LAYOUTS

LOSS_TYPES = ("mixdpo", "cdpo", "robust", "ipo", "gr_dpo", "beta_dpo")
#: The losses that options are for.
_LOSS_OPTIONS = {
    "label_smoothing": ("cdpo", "robust"),
    "gr_dpo_column": ("gr_dpo",),
    "gr_dpo_step_size": ("gr_dpo",),
    "beta_dpo_scaling": ("beta_dpo",),
    "beta_dpo_filtered": ("beta_dpo",),
    "beta_dpo_momentum": ("beta_dpo",),
}
METHODS = ("auto", "closed_form", "quadrature", "monte_carlo")


@dataclass
class MixDPOConfig(TrainingArguments):
    r"""Options of :class:`~pluralpref.inference.MixDPOTrainer`; names and meanings follow TRL's ``DPOConfig``.

    Adds to :class:`transformers.TrainingArguments`:

    :param max_length: longest prompt plus answer, in tokens.
    :param truncation_mode: ``"drop"`` skips and counts pairs that are longer; ``"keep_end"`` cuts the oldest tokens
        of the prompt. Answers are never cut.
    :param strict: refuse a data set with any row that can't be used, instead of counting such rows.
    :param num_samples: K, draws of beta for each pair; giving it asks for Monte Carlo. ``None``: see ``marginal``.
    :param sampling_design: how these draws are laid out: ``"iid"``, ``"antithetic"``, ``"stratified"``; see
        :class:`~pluralpref.inference.MonteCarlo`.
    :param shared_draws: the same draws for every pair of a batch.
    :param draws_seed: the same draws at every step (with ``shared_draws``, for every pair at every step); by default new
        ones from the global generator, whose state is part of a checkpoint.
    :param bias_correction: correct the logarithm of the K draws' mean for its bias, which at K = 16 lets the learned cv
        come out too small; see :class:`~pluralpref.inference.MonteCarlo`. Off by default, as in the MixDPO paper.
    :param marginal: how beta is integrated out: ``"auto"`` (the most exact way that there is), ``"closed_form"``,
        ``"quadrature"``, ``"monte_carlo"``.
    :param strength_learning_rate: learning rate of the strength model's parameters, which are on a log scale:
        0.01 moves them by about one percent a step. They follow the schedule and get no weight decay.
    :param loss_type: ``"mixdpo"``, or another method's loss on the same margins, to compare with; the strength is fixed then and
        gives its beta. ``"cdpo"`` and ``"robust"``: DPO with a known share of wrong labels; ``"ipo"``; ``"gr_dpo"``: the worst
        group; ``"beta_dpo"``: beta follows the batch. See :mod:`pluralpref.inference.pair_losses`.
    :param label_smoothing: the share of wrong labels, for ``"cdpo"`` and ``"robust"``.
    :param gr_dpo_column: whose values are the groups of ``"gr_dpo"``.
    :param gr_dpo_step_size: of its groups' weights, per nat.
    :param beta_dpo_scaling: a of ``"beta_dpo"`` (0.6).
    :param beta_dpo_filtered: its share of pairs that are left out of a step (0.2).
    :param beta_dpo_momentum: of its moving averages (0.9).
    :param precompute_ref_log_probs: run the reference once over all pairs before training, and free it.
    :param precompute_ref_batch_size: pairs in a batch of that pass; default: the batch size of evaluation.
    :param precompute_ref_cache_dir: where that pass keeps its numbers, under a hash of all that changes them, so that an
        interrupted run goes on and another one with the same reference and pairs reads them; default: ``reference`` in
        ``output_dir``.
    :param disable_dropout: every kind of dropout off in the policy (it always is in the reference).
    :param group_columns: columns by whose values accuracies are reported apart.
    :param panel: an annotator's pairs share their strength: those in one micro-batch in training, all of them in evaluation.
        Batches are filled annotator by annotator. Needs the column ``annotator``.
    :param attn_layout: ``"auto"``, ``"padded"`` or ``"shared"``, see :func:`~pluralpref.likelihood.pair_logps`: each prompt's
        tokens run once for both answers where the model allows it and it pays.
    :param max_tokens_per_batch: a batch of ``per_device_train_batch_size`` pairs is run in as many parts as it takes for none to
        hold more tokens, padding included; pairs of similar length come together, and with ``panel`` each annotator's pairs. The
        step, its loss and the order of the data stay the same; memory doesn't depend on the longest pairs coming together.
        What can't be divided is run by itself. Batches of an evaluation are divided likewise. Default: no limit.
    :param logits_budget_bytes: logits above this size are recomputed in the backward pass instead of kept.
    :raises ConfigError: for values out of range and options that contradict each other.
    """

    learning_rate: float = field(default=1e-6, metadata={"help": "Peak learning rate of the policy."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    max_length: int = field(default=1024, metadata={"help": "Longest prompt plus answer, in tokens."})
    truncation_mode: str = field(
        default="drop", metadata={"help": "drop: skip longer pairs; keep_end: cut the oldest prompt tokens."}
    )
    strict: bool = field(default=False, metadata={"help": "Refuse rows that can't be used instead of counting them."})
    num_samples: int | None = field(
        default=None, metadata={"help": "K, Monte Carlo draws of beta for each pair (the MixDPO paper: 16)."}
    )
    sampling_design: str = field(
        default="iid", metadata={"help": f"How Monte Carlo draws are laid out: {', '.join(DESIGNS)}."}
    )
    shared_draws: bool = field(default=False, metadata={"help": "The same draws for every pair of a batch."})
    draws_seed: int | None = field(
        default=None, metadata={"help": "The same draws at every step, from this seed (default: new ones)."}
    )
    bias_correction: bool = field(
        default=False, metadata={"help": "Correct the logarithm of the draws' mean for its bias."}
    )
    marginal: str = field(default="auto", metadata={"help": f"How beta is integrated out: {', '.join(METHODS)}."})
    strength_learning_rate: float = field(
        default=1e-2, metadata={"help": "Learning rate of the strength model's parameters."}
    )
    loss_type: str = field(
        default="mixdpo", metadata={"help": f"{', '.join(LOSS_TYPES)}; all but the first need --strength fixed."}
    )
    label_smoothing: float | None = field(
        default=None, metadata={"help": "Share of wrong labels, for --loss_type cdpo and robust."}
    )
    gr_dpo_column: str | None = field(default=None, metadata={"help": "The groups of --loss_type gr_dpo."})
    gr_dpo_step_size: float | None = field(
        default=None, metadata={"help": "Step size of its groups' weights, per nat."}
    )
    beta_dpo_scaling: float | None = field(default=None, metadata={"help": "a of --loss_type beta_dpo (0.6)."})
    beta_dpo_filtered: float | None = field(
        default=None, metadata={"help": "Its share of pairs that are left out of a step (0.2)."}
    )
    beta_dpo_momentum: float | None = field(default=None, metadata={"help": "Of its moving averages (0.9)."})
    precompute_ref_log_probs: bool = field(
        default=False, metadata={"help": "Run the reference once before training, and free it."}
    )
    precompute_ref_batch_size: int | None = field(
        default=None, metadata={"help": "Pairs in a batch of that pass (default: the evaluation batch size)."}
    )
    precompute_ref_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder in which that pass keeps its numbers, to go on or be read (default: reference/ of the run)."
        },
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Every kind of dropout off in the policy."})
    group_columns: list[str] = field(
        default_factory=list, metadata={"help": "Columns by whose values accuracies are reported apart."}
    )
    panel: bool = field(
        default=False,
        metadata={
            "help": "The pairs of one annotator in a micro-batch share their strength (the panel mixed logit); batches are "
            "filled annotator by annotator."
        },
    )
    attn_layout: str = field(
        default="auto",
        metadata={
            "help": "How a batch is laid out: padded; shared (each prompt once for both answers, no padding); or auto, the "
            "faster one of them where the model allows it."
        },
    )
    max_tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "Run a batch in parts with at most so many tokens, pairs of similar length together; the step stays the "
            "same (default: no limit)."
        },
    )
    logits_budget_bytes: int = field(
        default=256 * 2**20, metadata={"help": "Logits above this size are recomputed in the backward pass."}
    )

    def __post_init__(self) -> None:
        # Columns such as the annotator aren't arguments of the policy's forward.
        self.remove_unused_columns = False
        if self.torch_compile or self.torch_compile_backend is not None or self.torch_compile_mode is not None:
            # Before transformers writes it to the environment.
            raise ConfigError(
                "torch_compile has no effect: it compiles the policy's forward, of which only the parts that a batch needs are "
                "run; leave it out"
            )
        super().__post_init__()
        if self.precompute_ref_cache_dir is not None and not self.precompute_ref_log_probs:
            raise ConfigError("precompute_ref_cache_dir has no effect without precompute_ref_log_probs=True")
        sizes = (
            "max_length",
            "num_samples",
            "precompute_ref_batch_size",
            "logits_budget_bytes",
            "max_tokens_per_batch",
        )
        for name in sizes:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: must be at least 1")
        if self.panel and self.train_sampling_strategy != "random":
            raise ConfigError(
                f"train_sampling_strategy={self.train_sampling_strategy!r} has no effect with panel=True, whose batches are "
                "filled annotator by annotator: leave one of them out"
            )
        if self.enable_jit_checkpoint:
            raise ConfigError(
                "enable_jit_checkpoint has no effect: SIGTERM saves a checkpoint in any case; leave it out"
            )
        for name in ("bf16_full_eval", "fp16_full_eval"):
            if getattr(self, name):
                raise ConfigError(
                    f"{name} has no effect while training evaluates, and casts the policy for good elsewhere: leave it out; with "
                    "bf16=True policy and reference run in 16 bits everywhere"
                )
        if self.neftune_noise_alpha is not None and self.disable_dropout:
            raise ConfigError(
                "neftune_noise_alpha has no effect with disable_dropout=True, which leaves the embeddings in evaluation mode: "
                "leave it out, or give disable_dropout=False"
            )
        if self.attn_layout not in ATTN_LAYOUTS:
            raise ConfigError(f"attn_layout={self.attn_layout!r}: choose one of {', '.join(ATTN_LAYOUTS)}")
        if self.truncation_mode not in ("drop", "keep_end"):
            raise ConfigError(
                f"truncation_mode={self.truncation_mode!r}: choose 'drop' or 'keep_end' (TRL's 'keep_start' cuts "
                "answers, which changes what was preferred)"
            )
        if self.marginal not in METHODS:
            raise ConfigError(f"marginal={self.marginal!r}: choose one of {', '.join(METHODS)}")
        if self.num_samples is not None and self.marginal not in ("auto", "monte_carlo"):
            raise ConfigError(f"num_samples={self.num_samples} has no effect with marginal={self.marginal!r}")
        if self.sampling_design not in DESIGNS:
            raise ConfigError(f"sampling_design={self.sampling_design!r}: choose one of {', '.join(DESIGNS)}")
        drawn = {
            "sampling_design": "iid",
            "shared_draws": False,
            "draws_seed": None,
            "bias_correction": False,
        }
        for name, default in drawn.items():
            value = getattr(self, name)
            if value != default and self.num_samples is None and self.marginal != "monte_carlo":
                raise ConfigError(f"{name}={value!r} has no effect without num_samples")
        if self.loss_type not in LOSS_TYPES:
            raise ConfigError(f"loss_type={self.loss_type!r}: choose one of {', '.join(LOSS_TYPES)}")
        for name, losses in _LOSS_OPTIONS.items():
            if getattr(self, name) is not None and self.loss_type not in losses:
                raise ConfigError(
                    f"{name} has no effect with loss_type={self.loss_type!r}: it is for {' and '.join(losses)}"
                )
        if self.loss_type == "gr_dpo" and self.gr_dpo_column is None:
            raise ConfigError("loss_type='gr_dpo' needs gr_dpo_column, whose values are the groups")
        if self.strength_learning_rate < 0:
            raise ConfigError(f"strength_learning_rate={self.strength_learning_rate}: must not be negative")
        if self.precompute_ref_batch_size is not None and not self.precompute_ref_log_probs:
            raise ConfigError("precompute_ref_batch_size has no effect without precompute_ref_log_probs")
        if self.label_smoothing_factor:
            raise ConfigError(
                "label_smoothing_factor has no effect here: give soft labels in the column 'preferred' instead"
            )
