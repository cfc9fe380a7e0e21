"""PRISM's tables: conversations, or utterances put together to conversations, and the survey."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, List, Value

from pluralpref.data.labels import is_blank
from pluralpref.data.load import BUILDERS
from pluralpref.data.sets.prism_people import GROUPS
from pluralpref.data.sets.source import Hub, check_schema, is_hub_name, read_table
from pluralpref.errors import ConfigError, DataError

REPO = "HannahRoseKirk/prism-alignment"
CONVERSATION_COLUMNS = (
    *("conversation_id", "user_id", "conversation_type", "conversation_history", "included_in_balanced_subset"),
)
_HISTORY_FIELDS = ("turn", "role", "content", "score", "if_chosen", "within_turn_id")
_CONVERSATION_SCHEMA = (*CONVERSATION_COLUMNS, *(f"conversation_history.{name}" for name in _HISTORY_FIELDS))
_UTTERANCE_COLUMNS = (
    *("conversation_id", "user_id", "turn", "within_turn_id", "conversation_type", "user_prompt", "model_response"),
    *("score", "if_chosen", "included_in_balanced_subset"),
)
_SURVEY_SCHEMA = ("user_id", *GROUPS.values())
_TABLES = ("conversations", "utterances", "survey")


def conversations_and_survey(source: Any, split: str | None, demographics: bool) -> tuple[Dataset, Dataset | None]:
    """Conversations and, if asked for, the survey.

    :raises DataError: if a table or column is missing.
    :raises ConfigError: if a survey is given that isn't asked for.
    """
    tables = _tables(source)
    if demographics and "survey" not in tables:
        raise DataError("PRISM's survey is missing: add it as survey.jsonl to a folder, or set demographics=False")
    if not demographics and isinstance(source, Mapping) and "survey" in tables:
        raise ConfigError("demographics=False: the survey has no effect, leave it out")
    survey = _table(tables["survey"], "survey", split, _SURVEY_SCHEMA) if demographics else None
    if "conversations" not in tables and "utterances" not in tables:
        raise DataError(f"{source}: neither conversations nor utterances of PRISM are there")
    if "conversations" in tables and "utterances" in tables and isinstance(source, Mapping):
        raise ConfigError("utterances have no effect beside conversations, which hold the same answers: leave one out")
    name = "conversations" if "conversations" in tables else "utterances"
    dataset = _table(tables[name], name, split, ())
    if "conversation_history" not in dataset.column_names and "user_prompt" in dataset.column_names:
        check_schema(dataset, _UTTERANCE_COLUMNS, f"{REPO} (utterances)")
        dataset = _put_together(dataset)
    check_schema(dataset, _CONVERSATION_SCHEMA, f"{REPO} (conversations)")
    return dataset, survey


def _tables(source: Any) -> dict[str, Any]:
    """The source of each table that there is."""
    if source is None or is_hub_name(source):
        return dict.fromkeys(("conversations", "survey"), source)
    if isinstance(source, Mapping) and not isinstance(source, DatasetDict):
        unknown = sorted(set(source) - set(_TABLES))
        if unknown:
            raise DataError(f"PRISM has no table {unknown[0]!r}: choose {', '.join(_TABLES)}")
        return dict(source)
    if isinstance(source, str | Path) and Path(source).is_dir():
        return {name: path for name in _TABLES if (path := _inside(Path(source), name)) is not None}
    return {"conversations": source}


def _inside(folder: Path, name: str) -> Path | None:
    for path in sorted(folder.iterdir()):
        stem, *suffixes = path.name.split(".")
        if stem == name and (path.is_dir() or any(f".{suffix}" in BUILDERS for suffix in suffixes)):
            return path
    return None


def _table(source: Any, name: str, split: str | None, required: tuple[str, ...]) -> Dataset:
    return read_table(source, Hub(REPO, config=name), required, split)


def _put_together(utterances: Dataset) -> Dataset:
    """One row for each conversation of the long table, which needn't be in order."""
    for column in ("conversation_id", "turn"):
        for number, row in enumerate(utterances.select_columns([column])):
            if row[column] in (None, ""):
                raise DataError(f"row {number}: column {column!r} is empty: the utterance belongs to no turn")
    ordered = _typed(utterances.select_columns(list(_UTTERANCE_COLUMNS))).sort(
        ["conversation_id", "turn", "within_turn_id"]
    )
    return Dataset.from_generator(_conversations, features=_FEATURES, gen_kwargs={"utterances": ordered})


def _conversations(utterances: Dataset) -> Iterator[dict[str, Any]]:
    for _, rows in groupby(utterances, key=lambda row: row["conversation_id"]):
        history: list[dict[str, Any]] = []
        first: dict[str, Any] = {}
        for row in rows:
            first = first or row
            if not history or history[-1]["turn"] != row["turn"]:
                history.append(dict.fromkeys(_HISTORY_FIELDS) | _item(row, "user", row["user_prompt"]))
            judged = {name: row[name] for name in ("score", "if_chosen", "within_turn_id")}
            history.append(judged | _item(row, "model", row["model_response"]))
        yield {name: first[name] for name in CONVERSATION_COLUMNS if name in first} | {"conversation_history": history}


def _typed(table: Dataset) -> Dataset:
    """Numbers and truth values as such, which are text in CSV files: there 10 comes before 2, and any flag counts as true."""
    for column in ("turn", "within_turn_id"):
        if table.features[column].dtype != "int64":
            table = table.cast_column(column, Value("int64"))
    for column, read in (("if_chosen", _flag), ("included_in_balanced_subset", _flag), ("score", _number)):
        if table.features[column].dtype not in ("bool", "float64", "null"):
            values = [read(value, f"row {row}: column {column!r}") for row, value in enumerate(table[column])]
            table = table.remove_columns(column).add_column(column, values)
    return table


def _flag(value: Any, where: str) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    known = {"true": True, "false": False, "": None}
    text = str(value).strip().lower()
    if text not in known:
        raise DataError(f"{where} is {value!r}; expected True or False")
    return known[text]


def _number(value: Any, where: str) -> float | None:
    if is_blank(value):
        return None
    try:
        return float(value)
    except ValueError:
        raise DataError(f"{where} is {value!r}; expected a number") from None


def _item(row: Mapping[str, Any], role: str, content: Any) -> dict[str, Any]:
    return {"turn": row["turn"], "role": role, "content": content}


_FEATURES = Features(
    {
        "conversation_id": Value("string"),
        "user_id": Value("string"),
        "conversation_type": Value("string"),
        "included_in_balanced_subset": Value("bool"),
        "conversation_history": List(
            {
                "turn": Value("int64"),
                "role": Value("string"),
                "content": Value("string"),
                "score": Value("float64"),
                "if_chosen": Value("bool"),
                "within_turn_id": Value("int64"),
            }
        ),
    }
)
