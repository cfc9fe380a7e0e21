"""The prompts that policies answer; shared by ``win-rate`` and ``mmra``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pluralpref.cli.options import need

if TYPE_CHECKING:
    from pluralpref.data import RowReport
    from pluralpref.evaluation.win_rate import Prompt


@dataclass
class PromptOptions:
    """What is answered."""

    prompts: str | None = field(
        default=None, metadata={"help": "A data set with a column prompt, or of pairs: file, saved folder or hub name."}
    )
    prompts_config: str | None = field(default=None, metadata={"help": "The configuration of a data set on a hub."})
    prompts_split: str | None = field(default=None, metadata={"help": "The split, if there are several; train[:100]."})
    hh_format: str = field(
        default="text", metadata={"help": "HH-RLHF transcripts as they are (text) or as chat messages (chat)."}
    )

    def load(self) -> tuple[list[Prompt], RowReport]:
        """The prompts, and the account of their rows, which is also printed.

        :raises ConfigError, DataError: as :func:`~pluralpref.evaluation.win_rate.load_prompts`.
        """
        from pluralpref.evaluation.win_rate import load_prompts

        prompts, report = load_prompts(
            need(self.prompts, "prompts"),
            split=self.prompts_split,
            name=self.prompts_config,
            hh_format=self.hh_format,
        )
        print(f"prompts: {report.summary()}", flush=True)
        return prompts, report
