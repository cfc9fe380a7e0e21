"""The command ``pluralpref``: finds the subcommand and turns users' mistakes into one line."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pluralpref._version import __version__
from pluralpref.errors import PluralPrefError

#: Subcommands and what they are for. Each is a module of this package with ``main(argv)``.
COMMANDS = {
    "train": "train a policy together with its distribution of preference strength",
    "margins": "score pairs under a policy and a reference and write a table of margins",
    "evaluate": "metrics of held-out margins under a law of preference strength",
    "win-rate": "which of two policies a judge prefers, with position bias, length control and intervals",
    "em-dpo": "train a policy for each latent class of annotators (EM-DPO)",
    "mmra": "one policy of EM-DPO's classes: the mixture whose greatest regret is the least",
    "pal": "fit reward models of people who are mixtures of prototypes, on frozen embeddings (PAL)",
    "bridge": "make pairs of the answers that people of opposite viewpoints agree on, by matrix factorisation",
    "posterior": "fit the distribution of preference strength to a table of margins",
    "compare": "compare families of preference strength by their predictions of left-out people and pairs",
    "report": "write the HTML report of a run",
    "families": "list the families of preference strength, how they are integrated and how exactly",
    "inspect": "show how pairs are read: decoded rows, masks, lengths, what is skipped and why",
    "demo": "train on simulated annotators whose heterogeneity is known, and compare",
}


def usage() -> str:
    """The text of ``pluralpref --help``."""
    lines = [f"pluralpref {__version__}: DPO with a learned distribution of preference strength", ""]
    lines += ["usage: pluralpref COMMAND [options]     pluralpref COMMAND --help", "", "commands:"]
    lines += [f"  {name:<10} {purpose}" for name, purpose in COMMANDS.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    :param argv: arguments without the program's name; default: the process's.
    :returns: the exit code: 0 success, 1 failure while running, 2 a mistake in options or data, 130 interrupted;
        training that SIGTERM ends exits with 143.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(__version__)
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}: choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    command = importlib.import_module(f"pluralpref.cli.{name.replace('-', '_')}")
    try:
        with _less_noise():
            return int(command.main(rest) or 0)
    except PluralPrefError as error:
        code = 1 if isinstance(error, RuntimeError) else 2
        print(f"error: {error}", file=sys.stderr)
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


@contextmanager
def _less_noise() -> Iterator[None]:
    """Without what would be said twice, or is no news on a CPU."""
    accounts = logging.getLogger("pluralpref.data.tokenize")  # commands print the account of the rows themselves
    level = accounts.level
    accounts.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*pin_memory.*no accelerator.*", category=UserWarning)
            yield
    finally:
        accounts.setLevel(level)


if __name__ == "__main__":
    sys.exit(main())
