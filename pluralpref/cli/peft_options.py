"""Adapters by flags, named as in TRL."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from pluralpref.errors import ConfigError
from pluralpref.likelihood import is_reward_model


@dataclass
class PeftOptions:
    """Adapters (LoRA) in the place of training all weights; needs the peft extra."""

    use_peft: bool = field(default=False, metadata={"help": "Train LoRA adapters only."})
    lora_r: int | None = field(default=None, metadata={"help": "Rank (16)."})
    lora_alpha: int | None = field(
        default=None, metadata={"help": "Scale; the adapters' output counts alpha / r (32)."}
    )
    lora_dropout: float | None = field(
        default=None, metadata={"help": "Dropout before the adapters (0); needs --disable_dropout False."}
    )
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the layers that get adapters; all-linear for all (peft's own choice)."},
    )
    lora_modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Names of further layers that are trained and saved as a whole."}
    )


def add_adapters(model: Any, options: PeftOptions, disable_dropout: bool) -> Any:
    """The model with adapters, or as it is.

    :raises ConfigError: for options without effect, targets that the model doesn't have, weights in four bits without adapters,
        or without peft.
    """
    given = [option.name for option in fields(options) if getattr(options, option.name) not in (None, False)]
    if not options.use_peft:
        if given:
            raise ConfigError(f"--{given[0]} has no effect without --use_peft True")
        if getattr(model, "is_loaded_in_4bit", False):
            raise ConfigError("--load_in_4bit needs --use_peft True: weights in four bits can't be trained themselves")
        return model
    if options.lora_dropout and disable_dropout:
        raise ConfigError("--lora_dropout has no effect while dropout is disabled: add --disable_dropout False")
    try:
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    except ImportError:
        raise ConfigError("--use_peft needs peft: pip install pluralpref[peft]") from None
    if getattr(model, "is_loaded_in_4bit", False):
        # Checkpointing is the trainer's to switch on.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    targets: Any = options.lora_target_modules
    if targets == ["all-linear"]:
        targets = "all-linear"
    try:
        config = LoraConfig(
            task_type="SEQ_CLS" if is_reward_model(model) else "CAUSAL_LM",
            r=16 if options.lora_r is None else options.lora_r,
            lora_alpha=32 if options.lora_alpha is None else options.lora_alpha,
            lora_dropout=options.lora_dropout or 0.0,
            target_modules=targets,
            modules_to_save=options.lora_modules_to_save,
        )
        return get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(f"--use_peft: {str(error).splitlines()[0]}") from error
