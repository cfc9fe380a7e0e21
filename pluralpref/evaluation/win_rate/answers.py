"""Answers to prompts: made here, or elsewhere and read from a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pluralpref.data.load import read_source
from pluralpref.errors import DataError
from pluralpref.evaluation.win_rate.journal import read_header, read_records
from pluralpref.evaluation.win_rate.prompts import Prompt, prompts_hash


@dataclass(frozen=True)
class Answer:
    """What one policy says to one prompt.

    :param prompt_id: the prompt's.
    :param answer: the text, ``None`` if there is none since the prompt is too long.
    :param finish: ``"stop"``: the policy ended it; ``"length"``: cut at ``max_new_tokens``; ``"prompt_too_long"``;
        ``"unknown"``: made elsewhere.
    :param tokens: generated ones without the end token, where known.
    :param token_ids: generated ones, the end token included, where they were kept.
    """

    prompt_id: int
    answer: str | None
    finish: str = "unknown"
    tokens: int | None = None
    token_ids: list[int] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing but white space was said."""
        return self.answer is not None and not self.answer.strip()

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Answer:
        """From a line of a file of answers."""
        return cls(record["prompt_id"], record["answer"], record["finish"], record["tokens"], record.get("token_ids"))


def answers_hash(answers: Iterable[Answer]) -> str:
    """SHA-256 of prompts' numbers and answers."""
    content = sorted((a.prompt_id, a.answer) for a in answers)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def as_record(answer: Answer, prompt: Prompt) -> dict[str, Any]:
    """A line of a file of answers."""
    values = {name: value for name, value in asdict(answer).items() if name != "token_ids" or value is not None}
    return {"prompt_id": answer.prompt_id, "prompt": prompt.prompt, **values}


def read_answers(path: str | Path, prompts: list[Prompt], num_rows: int | None = None) -> list[Answer]:
    """Answers from a file: one of this package's own, or any table with a column ``answer``.

    A table may have a column ``prompt_id``, the row of the prompt in its source; without one its rows are those of the
    source. A column ``prompt`` is compared with the prompts.

    :param path: JSON Lines, JSON, CSV or Parquet.
    :param prompts: all of them must be answered.
    :param num_rows: rows of the prompts' source, those without a prompt included: what a table without ``prompt_id`` must have,
        since its rows are matched by their places. ``None``: only that it has enough.
    :returns: one answer for each prompt, in the prompts' order.
    :raises DataError: if answers are missing, there twice, no text, or belong to other prompts.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file of answers")
    header = read_header(path, "answers")
    if header is not None:
        if header["settings"].get("prompts") != prompts_hash(prompts):
            raise DataError(f"{path}: the answers are to other prompts than these")
        lines = path.read_bytes().split(b"\n")[1:-1]
        found = [Answer.from_record(record) for record in read_records(lines, path, first=2)]
    else:
        found = _foreign(path, prompts, num_rows)
    known: dict[int, Answer] = {}
    for answer in found:
        if answer.prompt_id in known:
            raise DataError(
                f"{path}: prompt_id {answer.prompt_id} is answered twice; one answer to each prompt is needed"
            )
        known[answer.prompt_id] = answer
    missing = [p.prompt_id for p in prompts if p.prompt_id not in known]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(prompts)} prompts have no answer (the first is prompt_id {missing[0]}): "
            "complete the file"
        )
    return [known[p.prompt_id] for p in prompts]


def _foreign(path: Path, prompts: list[Prompt], num_rows: int | None) -> list[Answer]:
    table = read_source(path, None, None, {"prompt", "answer"})
    names = table.column_names
    if "answer" not in names:
        raise DataError(f"{path}: no column 'answer': there are {', '.join(names)}")
    content = {p.prompt_id: p.prompt for p in prompts}
    answers = []
    for number, row in enumerate(table):
        prompt_id = row.get("prompt_id", number)
        if not isinstance(row["answer"], str):
            raise DataError(f"{path}, row {number}: column 'answer' is {row['answer']!r}; expected text")
        if isinstance(prompt_id, bool) or not isinstance(prompt_id, int):
            raise DataError(f"{path}, row {number}: column 'prompt_id' is {prompt_id!r}; expected the prompt's row")
        if prompt_id in content and "prompt" in names and row["prompt"] != content[prompt_id]:
            raise DataError(f"{path}, row {number}: column 'prompt' is not the prompt of row {prompt_id}")
        answers.append(Answer(prompt_id, row["answer"]))
    known = {a.prompt_id for a in answers} - set(content)
    if "prompt_id" in names and known:
        raise DataError(f"{path}: prompt_id {min(known)} is none of the prompts")
    if "prompt_id" not in names and num_rows is not None and len(answers) != num_rows:
        raise DataError(
            f"{path}: {len(answers)} rows, but {num_rows} rows of prompts were read: give one answer for each of these, or a "
            "column prompt_id with the prompt's row among them, counted from 0"
        )
    if "prompt_id" not in names and len(answers) <= max(content):
        raise DataError(
            f"{path}: {len(answers)} rows, but the prompts reach to row {max(content)}: give one answer for each row of "
            "the prompts' source, or a column prompt_id"
        )
    return answers
