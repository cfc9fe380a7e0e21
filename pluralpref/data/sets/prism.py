"""PRISM: people of many countries score the answers of several models (Kirk et al. 2024, arXiv 2404.16019)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from datasets import Dataset, Value

from pluralpref.data.sets.build import build_pairs, pair_features
from pluralpref.data.sets.pair_report import PairReport
from pluralpref.data.sets.pairs import Outcome, all_by_score, chosen_against_others, extremes, keep
from pluralpref.data.sets.prism_people import GROUPS, Scale, demographics_of, score_scales
from pluralpref.data.sets.prism_tables import CONVERSATION_COLUMNS, conversations_and_survey
from pluralpref.data.sets.prism_turns import Turn, turns_of
from pluralpref.data.sets.values import UNKNOWN, check_choice, check_tie_threshold, label, said
from pluralpref.errors import ConfigError

PairRule = Literal["chosen", "scores", "extremes"]
Turns = Literal["all", "first"]


def read_prism(
    source: Any = None,
    *,
    split: str | None = None,
    pairs: PairRule = "chosen",
    turns: Turns = "all",
    tie_threshold: float | None = None,
    standardize: bool = False,
    demographics: bool = True,
) -> tuple[Dataset, PairReport]:
    """PRISM's conversations as pairs, each person's survey as group columns.

    A choice, and the unit of weight, is one turn: one person has seen up to four answers. The prompt is what was said
    until then, with the answers that the person chose. Three rules to make pairs of it are in use:

    - ``"chosen"``: the chosen answer against each of the others;
    - ``"scores"``: all pairs, the higher score wins, a tie where |difference| ≤ ``tie_threshold`` (the authors take 5);
    - ``"extremes"``: the highest score against the lowest.

    Scores are on a scale of each person's own. ``standardize`` puts them as (score − mean) / sd of the person's scores
    in the turns that are read (sd with n − 1; 0 where it is 0), so that ``tie_threshold`` means the same for all.

    ``EMPTY STRING`` stands for an empty text in this data set. Of answers with the same text the first is used.

    :param source: ``None`` for the hub; a folder with ``conversations.jsonl`` or ``utterances.jsonl``, and
        ``survey.jsonl`` (or other formats); a mapping of these names to files or data sets; without demographics also
        one file or ``Dataset``, of conversations or utterances.
    :param split: the split of the tables, as published only ``"train"``.
    :param pairs: the rule.
    :param turns: ``"first"`` for opening turns only, where the answers are of different models.
    :param tie_threshold: at least 0, in points or, standardised, in standard deviations; default 0.
    :param standardize: see above.
    :param demographics: join the survey: the columns of :data:`~pluralpref.data.sets.prism_people.GROUPS`.
    :returns: prompt, chosen, rejected (messages), weight, annotator (user_id), conversation, interaction,
        conversation_type, included_in_balanced_subset, the survey's groups, and turn (0-based); and the accounting.
    :raises DataError: if columns are missing, there is no survey, or no pair is left.
    :raises ConfigError: for a bad option, or one without effect.
    """
    check_choice("pairs", pairs, get_args(PairRule))
    check_choice("turns", turns, get_args(Turns))
    _check_scores(pairs, tie_threshold, standardize)
    conversations, survey = conversations_and_survey(source, split, demographics)
    expand = _Expand(
        pairs,
        turns == "first",
        tie_threshold or 0.0,
        score_scales(conversations, first_turn=turns == "first") if standardize else None,
        None if survey is None else demographics_of(survey),
    )
    features = pair_features(
        (
            *("annotator", "conversation", "interaction", "conversation_type", "included_in_balanced_subset"),
            *(GROUPS if demographics else ()),
        )
    )
    features["turn"] = Value("int64")
    report = PairReport()
    dataset = build_pairs(conversations, CONVERSATION_COLUMNS, expand, features, report, "Reading PRISM")
    report.check(strict=False)
    return dataset, report


def _check_scores(pairs: str, tie_threshold: float | None, standardize: bool) -> None:
    if pairs == "chosen":
        for option, given in (("tie_threshold", tie_threshold is not None), ("standardize", standardize)):
            if given:
                raise ConfigError(f"{option} has no effect with pairs='chosen', which uses no scores: leave it out")
    check_tie_threshold(tie_threshold)
    if standardize and not tie_threshold:
        raise ConfigError(
            "standardize has no effect without tie_threshold: a scale of one person's own doesn't change the order of "
            "that person's scores"
        )


class _Expand:
    """The pairs of one conversation."""

    def __init__(
        self,
        rule: str,
        first_turn: bool,
        tie_threshold: float,
        scales: Mapping[str, Scale] | None,
        people: Mapping[str, dict[str, str]] | None,
    ) -> None:
        self.rule = rule
        self.first_turn = first_turn
        self.tie_threshold = tie_threshold
        self.scales = scales
        self.people = people

    def __call__(self, row: dict[str, Any], number: int, report: PairReport) -> Iterator[dict[str, Any]]:
        person = row["user_id"]
        if person in (None, ""):
            report.unusable("no_annotator", number)
            return
        columns = {
            "annotator": str(person),
            "conversation": label(row["conversation_id"]),
            "conversation_type": label(row["conversation_type"]),
            "included_in_balanced_subset": label(row["included_in_balanced_subset"]),
        }
        if self.people is not None:
            if str(person) not in self.people:
                report.notes["no_survey"] += 1
            columns |= self.people.get(str(person), dict.fromkeys(GROUPS, UNKNOWN))
        history: list[dict[str, str]] = []
        turns = turns_of(row["conversation_history"], number)[: 1 if self.first_turn else None]
        if not turns:
            report.unusable("no_prompt", number)
        for position, turn in enumerate(turns):
            if turn.number != position:  # a turn is missing, and the history of the later ones with it
                self._lose(turns[position:], number, report)
                return
            if not turn.prompt:
                report.unusable("no_prompt", number)
                self._lose(turns[position + 1 :], number, report)
                return
            prompt = [*history, *said("user", turn.prompt)]
            interaction = {"interaction": f"{row['conversation_id']}/{turn.number}", "turn": turn.number}
            for chosen, rejected, weight in keep(self._outcomes(turn, str(person)), number, report):
                yield {
                    "prompt": prompt,
                    "chosen": said("assistant", turn.answers[chosen]),
                    "rejected": said("assistant", turn.answers[rejected]),
                    "weight": weight,
                    **columns,
                    **interaction,
                }
            if turn.chosen is None or not turn.answers[turn.chosen]:
                self._lose(turns[position + 1 :], number, report)
                return
            history = [*prompt, *said("assistant", turn.answers[turn.chosen])]

    @staticmethod
    def _lose(later: Sequence[Turn], number: int, report: PairReport) -> None:
        for _ in later:
            report.unusable("history", number)

    def _outcomes(self, turn: Turn, person: str) -> Sequence[Outcome]:
        if self.rule == "chosen":
            if turn.chosen is None:
                return [Outcome(0, 0, "no_choice")]
            return chosen_against_others(turn.answers, turn.chosen)
        scores = turn.scores if self.scales is None else [self.scales[person].apply(score) for score in turn.scores]
        rule = all_by_score if self.rule == "scores" else extremes
        return rule(turn.answers, scores, self.tie_threshold)
