"""Every pair of answers judged in both orders, every verdict saved as it comes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from pluralpref.errors import DataError, InferenceError, PluralPrefError
from pluralpref.evaluation.win_rate.answers import Answer, answers_hash
from pluralpref.evaluation.win_rate.journal import Journal
from pluralpref.evaluation.win_rate.judge import ORDERS, Comparison, Judge, Verdict
from pluralpref.evaluation.win_rate.prompts import Prompt, cluster_of, prompts_hash


@dataclass(frozen=True)
class Pair:
    """Both policies' answers to one prompt.

    :param prompt: the prompt.
    :param cluster: the same number for equal prompts.
    :param policy: the policy's answer.
    :param baseline: the baseline's.
    """

    prompt: Prompt
    cluster: int
    policy: Answer
    baseline: Answer

    @property
    def can_be_judged(self) -> bool:
        """Whether both answered; an empty answer is one."""
        return self.policy.answer is not None and self.baseline.answer is not None

    def comparison(self, order: str) -> Comparison:
        """What a judge sees in this order."""
        first, second = self.policy.answer or "", self.baseline.answer or ""
        if order == "baseline_first":
            first, second = second, first
        return Comparison(self.prompt.prompt_id, order, self.prompt.prompt, first, second)


def make_pairs(prompts: Sequence[Prompt], policy: Sequence[Answer], baseline: Sequence[Answer]) -> list[Pair]:
    """Bring answers together.

    :raises DataError: if a prompt lacks an answer.
    """
    clusters = cluster_of(list(prompts))
    sides = [{a.prompt_id: a for a in answers} for answers in (policy, baseline)]
    for p in prompts:
        if any(p.prompt_id not in side for side in sides):
            raise DataError(f"prompt_id {p.prompt_id} has no answer of one of the policies")
    return [Pair(p, clusters[p.prompt_id], sides[0][p.prompt_id], sides[1][p.prompt_id]) for p in prompts]


def collect_verdicts(
    pairs: Sequence[Pair], judge: Judge, path: str | os.PathLike[str], *, info: Any = None, progress: bool = True
) -> list[Verdict]:
    """Ask for every verdict that the file at ``path`` doesn't hold.

    :param pairs: those without two answers are passed over.
    :param judge: asked once for each pair and order.
    :param path: the file of verdicts, JSON Lines; each is written as it comes.
    :param info: a plain value that names the judge to a reader of the file.
    :param progress: show a progress bar.
    :returns: verdicts by prompt and order.
    :raises ConfigError: for a file of other answers, prompts or judge.
    :raises InferenceError: when the judge can't go on: says how many verdicts there are; calling again goes on.
    """
    judged = [pair for pair in pairs if pair.can_be_judged]
    settings = {
        "judge": judge.settings,
        "prompts": prompts_hash([pair.prompt for pair in pairs]),
        "policy_answers": answers_hash(pair.policy for pair in pairs),
        "baseline_answers": answers_hash(pair.baseline for pair in pairs),
    }
    wanted = {(pair.prompt.prompt_id, order): pair for pair in judged for order in ORDERS}
    with Journal(path, "verdicts", settings, lambda r: (r["prompt_id"], r["order"]), {"judge": info}) as journal:
        todo = [
            pair.comparison(order) for (number, order), pair in wanted.items() if (number, order) not in journal.records
        ]
        done = len(wanted) - len(todo)
        with tqdm(total=len(wanted), initial=done, desc="Verdicts", unit="verdict", disable=not progress) as bar:
            try:
                for verdict in judge.judge(todo):
                    journal.append(verdict.as_record())
                    bar.update()
            except PluralPrefError as error:
                raise type(error)(
                    f"{error}. {len(journal.records)} of {len(wanted)} verdicts are in {journal.path}: "
                    "run the same again to go on"
                ) from error
        missing = [key for key in wanted if key not in journal.records]
        if missing:
            raise InferenceError(f"the judge gave no verdict on {len(missing)} comparisons; the first: {missing[0]}")
        return [Verdict.from_record(journal.records[key]) for key in wanted]
