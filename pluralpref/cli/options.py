"""Option handling that commands share: dataclasses, a YAML file, and flags, which win."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from pluralpref.errors import ConfigError


@dataclass
class ModelOptions:
    """The policy."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Folder or hub name of the policy."})
    model_revision: str = field(default="main", metadata={"help": "Revision on the hub."})
    dtype: str = field(default="float32", metadata={"help": "Precision of the weights: float32, bfloat16 or float16."})
    reward_model: bool = field(
        default=False,
        metadata={"help": "A reward model (sequence classifier with one label): margins are differences of rewards."},
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "Weights in four bits (QLoRA, with --use_peft); needs the quantization extra."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})


class OptionParser(HfArgumentParser):
    """As in transformers, but a mistake gives one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise ConfigError(f"{message} (see pluralpref {self.prog.split()[-1]} --help)")


def parse(command: str, kinds: Sequence[type], argv: Sequence[str], description: str) -> list[Any]:
    """Dataclasses from ``argv`` and, with ``--config FILE.yaml``, from a file whose keys are the flags' names.

    :raises ConfigError: for unknown options or values of the wrong kind.
    """
    parser = OptionParser(list(kinds), prog=f"pluralpref {command}", description=description)
    parser.add_argument("--config", help="A YAML file of options; flags win over it.")
    arguments = list(argv)
    path = _config_path(arguments)
    if path is not None:
        arguments = _from_yaml(Path(path)) + arguments
    try:
        *parsed, _ = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{error} (see pluralpref {command} --help)") from error
    return parsed


def _config_path(arguments: list[str]) -> str | None:
    for i, argument in enumerate(arguments):
        if argument == "--config" and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith("--config="):
            return argument.split("=", 1)[1]
    return None


def _from_yaml(path: Path) -> list[str]:
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"--config {path}: no such file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: expected lines of the form option: value")
    arguments: list[str] = []
    for name, value in values.items():
        if value is None or value == []:  # what argparse has no words for
            continue
        arguments += [f"--{name}", *map(_word, value if isinstance(value, list) else [value])]
    return arguments


def _word(value: Any) -> str:
    """A value as a person would write it behind a flag."""
    if isinstance(value, dict):  # transformers reads such options as JSON
        return json.dumps(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def need(value: Any, flag: str) -> Any:
    """``value``, or an error that names the missing flag.

    :raises ConfigError: if it is ``None``.
    """
    if value is None:
        raise ConfigError(f"--{flag} is missing")
    return value


def load_model(options: ModelOptions, name: str | None = None) -> Any:
    """The causal language model or reward model, by default the one that ``--model_name_or_path`` names.

    :raises ConfigError: if it can't be loaded; says why.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if options.dtype not in kinds:
        raise ConfigError(f"--dtype {options.dtype}: choose one of {', '.join(kinds)}")
    more: dict[str, Any] = {"dtype": kinds[options.dtype]}
    if options.load_in_4bit:
        more["quantization_config"] = _four_bits(kinds[options.dtype])
    if options.reward_model:
        # A language model gets a new row of weights for its reward; transformers says so.
        model = load_pretrained("model", AutoModelForSequenceClassification, options, name, num_labels=1, **more)
        if model.config.pad_token_id is None:
            model.config.pad_token_id = (
                model.config.eos_token_id
            )  # the model's own forward wants one, to be used elsewhere
        return model
    return load_pretrained("model", AutoModelForCausalLM, options, name, **more)


def _four_bits(compute_dtype: Any) -> Any:
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise ConfigError("--load_in_4bit needs bitsandbytes: pip install pluralpref[quantization]")
    # NF4 and quantised constants: what the QLoRA paper (arXiv:2305.14314) trains with.
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def load_tokenizer(options: ModelOptions, name: str | None = None) -> Any:
    """The tokenizer of the same model.

    :raises ConfigError: if it can't be loaded; says why.
    """
    from transformers import AutoTokenizer

    return load_pretrained("tokenizer of", AutoTokenizer, options, name)


def load_pretrained(what: str, kind: Any, options: ModelOptions, name: str | None, **more: Any) -> Any:
    """``kind.from_pretrained``, by default of what ``--model_name_or_path`` names.

    :param what: what is loaded, for messages.
    :raises ConfigError: if it can't be loaded; says why.
    """
    source = name or need(options.model_name_or_path, "model_name_or_path")
    try:
        return kind.from_pretrained(
            source, revision=options.model_revision, trust_remote_code=options.trust_remote_code, **more
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"the {what} {source!r} can't be loaded: {str(error).splitlines()[0]}") from error


def show_progress() -> bool:
    """Whether a person is watching."""
    return sys.stderr.isatty()


@contextmanager
def importable_here() -> Iterator[None]:
    """Modules in the current folder can be imported, as for ``python -m``."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
