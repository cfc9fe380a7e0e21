"""MultiPref: each comparison judged by two crowd workers and two experts (Miranda et al. 2024, arXiv 2410.19133).

The fields are as public loaders of ``allenai/multipref`` (configuration ``default``) read them; the data set's card was
not seen. Each entry of ``normal_worker_annotations`` and ``expert_worker_annotations`` has ``evaluator`` and, for
overall, helpful, truthful and harmless, ``*_pref`` with the values of :data:`PREFERENCES`. That an evaluator's id means
one person in both lists is not verified.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

from datasets import Dataset

from pluralpref.data.sets.build import build_pairs, pair_features
from pluralpref.data.sets.pair_report import PairReport
from pluralpref.data.sets.pairs import Outcome, chosen_against_others, keep
from pluralpref.data.sets.source import Hub, read_table
from pluralpref.data.sets.values import check_choice, label, said, text

Aspect = Literal["overall", "helpful", "truthful", "harmless"]
Annotators = Literal["all", "normal", "expert"]

HUB = Hub("allenai/multipref", config="default")
#: Which answer is preferred (0 for A) and how strongly; a tie is ``"Tie"``.
PREFERENCES = {
    "A-is-clearly-better": (0, "clearly"),
    "A-is-slightly-better": (0, "slightly"),
    "B-is-slightly-better": (1, "slightly"),
    "B-is-clearly-better": (1, "clearly"),
}
TIE = "Tie"
_COLUMNS = ("comparison_id", "prompt_id", "text", "completion_a", "completion_b")
_GROUPS = ("source", "category")


def read_multipref(
    source: Any = None, *, split: str | None = None, aspect: Aspect = "overall", annotators: Annotators = "all"
) -> tuple[Dataset, PairReport]:
    """MultiPref's annotations as pairs: each is the choice of one person, and the unit of weight.

    So a comparison gives up to four pairs, which may contradict each other. Ties are skipped and counted.

    :param source: ``None`` for the hub, a file, a folder, or a data set.
    :param split: the split, on the hub ``"train"``.
    :param aspect: what was asked: which answer is better on the whole, or more helpful, truthful or harmless.
    :param annotators: ``"normal"`` for crowd workers only, ``"expert"`` for experts only.
    :returns: prompt, chosen, rejected (messages), weight, annotator (evaluator), conversation (prompt_id), comparison
        (comparison_id), annotator_kind (normal or expert), strength (clearly or slightly) and, where the source has
        them, source and category; and the accounting.
    :raises DataError: if columns are missing or no pair is left.
    :raises ConfigError: for a bad option.
    """
    check_choice("aspect", aspect, get_args(Aspect))
    check_choice("annotators", annotators, get_args(Annotators))
    kinds = ("normal", "expert") if annotators == "all" else (annotators,)
    lists = [f"{kind}_worker_annotations" for kind in kinds]
    fields = [f"{name}.{field}" for name in lists for field in ("evaluator", f"{aspect}_pref")]
    rows = read_table(source, HUB, (*_COLUMNS, *fields), split)
    groups = tuple(name for name in _GROUPS if name in rows.column_names)
    features = pair_features(("annotator", "conversation", "comparison", "annotator_kind", "strength", *groups))
    report = PairReport()
    expand = _Expand(kinds, f"{aspect}_pref", groups)
    dataset = build_pairs(rows, (*_COLUMNS, *lists, *groups), expand, features, report, "Reading MultiPref")
    report.check(strict=False)
    return dataset, report


class _Expand:
    """The pairs of one comparison."""

    def __init__(self, kinds: tuple[str, ...], preference: str, groups: tuple[str, ...]) -> None:
        self.kinds = kinds
        self.preference = preference
        self.groups = groups

    def __call__(self, row: dict[str, Any], number: int, report: PairReport) -> Iterator[dict[str, Any]]:
        prompt = text(row, "text", number)
        answers = [text(row, "completion_a", number), text(row, "completion_b", number)]
        columns = {"conversation": label(row["prompt_id"]), "comparison": label(row["comparison_id"])}
        columns |= {name: label(row[name]) for name in self.groups}
        annotations = [(kind, entry) for kind in self.kinds for entry in row[f"{kind}_worker_annotations"] or ()]
        if not annotations:
            report.unusable("no_choice", number)
        for kind, entry in annotations:
            said_of_it = entry.get(self.preference)
            preferred, strength = PREFERENCES.get(said_of_it, (0, ""))
            if not prompt.strip():
                outcomes = [Outcome(0, 1, "no_prompt")]
            elif entry.get("evaluator") in (None, ""):
                outcomes = [Outcome(0, 1, "no_annotator")]
            elif not strength:
                outcomes = [Outcome(0, 1, "called_tie" if said_of_it == TIE else "no_choice")]
            else:
                outcomes = chosen_against_others(answers, preferred)
            for chosen, rejected, weight in keep(outcomes, number, report):
                yield {
                    "prompt": said("user", prompt),
                    "chosen": said("assistant", answers[chosen]),
                    "rejected": said("assistant", answers[rejected]),
                    "weight": weight,
                    "annotator": str(entry["evaluator"]),
                    "annotator_kind": kind,
                    "strength": strength,
                    **columns,
                }
