"""Simulated users (Dong et al. 2025, "When Personalization Meets Reality"): P-Soups, Personal-LLM, UltraFeedback.

The choices are those of simulated preference profiles: useful where the truth has to be known, but no evidence about
people. The data sets' cards were not seen; columns are as public loaders read them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datasets import Dataset

from pluralpref.data.sets.build import build_pairs, pair_features
from pluralpref.data.sets.pair_report import PairReport
from pluralpref.data.sets.pairs import chosen_against_others, keep
from pluralpref.data.sets.source import Hub, read_table, refuse_off_hub
from pluralpref.data.sets.values import label, said, text

_COLUMNS = ("prompt", "chosen", "rejected")


def read_psoups(
    source: Any = None, *, split: str | None = None, config: str | None = None
) -> tuple[Dataset, PairReport]:
    """P-Soups: six simulated users (``uid``). A row is one choice of weight 1.

    :param source: ``None`` for the hub, a file, a folder, or a data set.
    :param split: on the hub ``"train"`` unless another one is named.
    :param config: configuration on the hub: default, ood, new-user.
    :returns: prompt, chosen, rejected (messages), weight, annotator (uid); and the accounting.
    :raises DataError: if columns are missing or no pair is left.
    :raises ConfigError: for an option without effect.
    """
    return _read("RiverDong/psoups", "uid", source, split, config)


def read_personal_llm_dpo(
    source: Any = None, *, split: str | None = None, config: str | None = None
) -> tuple[Dataset, PairReport]:
    """Personal-LLM as pairs: eight simulated users (``uid``); otherwise as :func:`read_psoups`.

    :param config: configuration on the hub: default, controversial, new-controversial, new-non-controversial, new-user.
    """
    return _read("RiverDong/Personal-LLM-DPO", "uid", source, split, config)


def read_ultrafeedback_personalized(
    source: Any = None, *, split: str | None = None, config: str | None = None
) -> tuple[Dataset, PairReport]:
    """UltraFeedback with four simulated users who care for one attribute each (``attributes``), the annotator.

    Otherwise as :func:`read_psoups`. Where the source has the column ``controversial``, as
    ``RiverDong/ultrafeedback-p``, it is a group.

    :param config: configuration on the hub: default, controversial, ood, ood-controversial.
    """
    return _read("RiverDong/ultrafeedback-personalized", "attributes", source, split, config)


def _read(repo: str, user: str, source: Any, split: str | None, config: str | None) -> tuple[Dataset, PairReport]:
    if config is not None:
        refuse_off_hub("config", config, source)
    rows = read_table(source, Hub(repo, config=config), (*_COLUMNS, user), split)
    groups = tuple(name for name in ("controversial",) if name in rows.column_names)
    report = PairReport()
    expand = _Expand(user, groups)
    features = pair_features(("annotator", *groups))
    dataset = build_pairs(rows, (*_COLUMNS, user, *groups), expand, features, report, f"Reading {repo}")
    report.check(strict=False)
    return dataset, report


class _Expand:
    """The pair of one row."""

    def __init__(self, user: str, groups: tuple[str, ...]) -> None:
        self.user = user
        self.groups = groups

    def __call__(self, row: dict[str, Any], number: int, report: PairReport) -> Iterator[dict[str, Any]]:
        prompt, *answers = (text(row, column, number) for column in _COLUMNS)
        user = text(row, self.user, number)
        if not user:
            report.unusable("no_annotator", number)
        elif not prompt.strip():
            report.unusable("no_prompt", number)
        else:
            for chosen, rejected, weight in keep(chosen_against_others(answers, 0), number, report):
                yield {
                    "prompt": said("user", prompt),
                    "chosen": said("assistant", answers[chosen]),
                    "rejected": said("assistant", answers[rejected]),
                    "weight": weight,
                    "annotator": user,
                    **{name: label(row[name]) for name in self.groups},
                }
