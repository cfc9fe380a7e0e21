"""Options of ``pluralpref pal``."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from pluralpref.errors import ConfigError
from pluralpref.inference.pal import PalConfig
from pluralpref.models import FAMILIES

#: Share of a training person's choices that is held out where the data hold out none.
KNOWN_FRACTION = 0.2


@dataclass
class PalModelOptions:
    """The model and its fit."""

    variant: str = field(default="b", metadata={"help": "a, ideal points; b, preference mappings."})
    num_prototypes: int = field(default=2, metadata={"help": "K; 1 is one reward model for all."})
    latent_dim: int = field(default=64, metadata={"help": "Dimensions that embeddings are mapped to."})
    hidden_layers: int = field(default=1, metadata={"help": "Hidden layers of the maps; 0 makes them linear."})
    strength: str = field(default="fixed", metadata={"help": f"Law of beta: {', '.join(FAMILIES)}."})
    beta: float = field(default=1.0, metadata={"help": "Mean of beta at the start (its value, where fixed)."})
    strength_cv: float | None = field(
        default=None, metadata={"help": "Coefficient of variation of beta at the start (0.5)."}
    )
    optimizer: str = field(default="adam", metadata={"help": "adam, or lbfgs on all pairs at once."})
    learning_rate: float | None = field(default=None, metadata={"help": "adam: of the maps (0.001)."})
    weight_learning_rate: float | None = field(
        default=None, metadata={"help": "adam: of people's weights, prototypes and the law of beta (0.01)."}
    )
    weight_decay: float = field(default=0.0, metadata={"help": "Of the maps."})
    fit_batch_size: int | None = field(default=None, metadata={"help": "adam: pairs in a step (256)."})
    max_epochs: int = field(default=100, metadata={"help": "Passes over the pairs, or steps of lbfgs."})
    stopping_fraction: float | None = field(
        default=None, metadata={"help": "adam: share of each person's choices that says when to stop."}
    )
    patience: int | None = field(default=None, metadata={"help": "Epochs without improvement before stopping (5)."})
    seed: int = field(default=0, metadata={"help": "Of the fit and of all splits."})

    def config(self) -> PalConfig:
        """The same for the library.

        :raises ConfigError: for values out of range and options without effect.
        """
        values: dict[str, Any] = {each.name: getattr(self, each.name, None) for each in fields(PalConfig)}
        values["batch_size"] = self.fit_batch_size
        return PalConfig(**values)


@dataclass
class PalRunOptions:
    """What is read, evaluated and written."""

    output_dir: str | None = field(default=None, metadata={"help": "Folder for the model, weights and metrics."})
    known_fraction: float | None = field(
        default=None,
        metadata={
            "help": f"Share of each training person's choices that is held out ({KNOWN_FRACTION}, or 0 where the held-out "
            "pairs have choices of training people)."
        },
    )
    few_shot: int | None = field(
        default=None, metadata={"help": "Fit the weights of each new person to this many choices, predict the others."}
    )
    few_shot_prior: float | None = field(
        default=None,
        metadata={"help": "Choices that the mean of the training people's weights is worth (0: maximum likelihood)."},
    )
    batch_size: int = field(default=8, metadata={"help": "Pairs that the language model embeds at once."})
    max_length: int = field(default=1024, metadata={"help": "Longest prompt plus answer, in tokens."})
    truncation_mode: str = field(default="drop", metadata={"help": "drop or keep_end, see train."})
    strict: bool = field(default=False, metadata={"help": "Refuse rows that can't be used."})
    embeddings_dir: str | None = field(
        default=None, metadata={"help": "Where embeddings are kept for further runs (OUTPUT_DIR/embeddings)."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing model."})

    def check(self) -> None:
        """Refuse values out of range and options without effect.

        :raises ConfigError: naming the option.
        """
        if self.known_fraction is not None and not 0 <= self.known_fraction < 1:
            raise ConfigError(f"--known_fraction {self.known_fraction}: must be at least 0 and less than 1")
        if self.few_shot is not None and self.few_shot < 1:
            raise ConfigError(f"--few_shot {self.few_shot}: must be at least 1")
        if self.few_shot_prior is not None:
            if self.few_shot is None:
                raise ConfigError("--few_shot_prior has no effect without --few_shot")
            if not self.few_shot_prior >= 0:
                raise ConfigError(f"--few_shot_prior {self.few_shot_prior}: must be at least 0")
