"""Preference pairs as token ids, prompt and answers apart, so that no answer loses a token."""

from __future__ import annotations

import logging
from typing import Any

from datasets import Dataset

from pluralpref.data.hh import is_transcript
from pluralpref.data.load import check_columns
from pluralpref.data.normalize import normalize_row
from pluralpref.data.report import RowReport
from pluralpref.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

TOKEN_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
#: Where each row stands in its source, of a data set that is a part of it.
SOURCE_ROW = "source_row"
#: Stands before an answer where a tokenizer would otherwise put a space; nothing merges with a line feed's byte.
_SEAM = "\n"
_TEXT_COLUMNS = ("prompt", "chosen", "rejected")


def tokenize_preferences(
    dataset: Dataset,
    tokenizer: Any,
    *,
    max_length: int = 1024,
    truncation_mode: str = "drop",
    strict: bool = False,
    hh_format: str = "text",
    desc: str = "Tokenizing",
) -> tuple[Dataset, RowReport]:
    """Tokenise pairs and account for every row.

    Prompt and answers are tokenised separately: a tokenizer merges across the seam of a joined text, and the answer
    would lose its first token to the prompt. (A SentencePiece tokenizer puts a space before every text that it is
    given; the one before an answer is taken off again, as the model will never write it.) One BOS starts the prompt if
    the tokenizer would add one itself; an empty prompt gets BOS or else EOS, since the first answer token needs
    something before it. Plain text answers end with EOS; conversations are rendered by the chat template and get
    nothing added.

    :param dataset: see :func:`~pluralpref.data.load_preferences`; a tokenised one is checked and passed through. A column
        ``source_row`` of whole numbers says where the rows of a part stand in their source; else they are counted.
    :param max_length: longest prompt plus answer.
    :param truncation_mode: ``"drop"`` skips longer pairs; ``"keep_end"`` cuts the oldest tokens of the prompt, for
        both answers alike. Answers are never cut.
    :param strict: refuse any row that can't be used.
    :param hh_format: ``"text"`` keeps HH transcripts as text, ``"chat"`` turns them into messages.
    :param desc: title of the progress bar.
    :returns: a data set with ``prompt_ids``, ``chosen_ids``, ``rejected_ids``, ``length``, ``row`` (in the source) and
        the source's further columns; and the accounting.
    :raises DataError: if no row is left, or in strict mode any row was skipped.
    :raises ConfigError: for an unknown option or one without effect, or conversations without a chat template.
    """
    if truncation_mode not in ("drop", "keep_end"):
        raise ConfigError(f"truncation_mode={truncation_mode!r}: choose 'drop' or 'keep_end'; answers are never cut")
    if hh_format not in ("text", "chat"):
        raise ConfigError(f"hh_format={hh_format!r}: choose 'text' or 'chat'")
    tokenized = all(column in dataset.column_names for column in TOKEN_COLUMNS)
    if hh_format == "chat" and (tokenized or not _has_transcripts(dataset)):
        raise ConfigError(
            "hh_format='chat' has no effect: no row is a pair of HH transcripts without a prompt of its own"
        )
    if tokenized:
        return _pass_through(dataset, max_length, strict)
    check_columns(dataset)
    if not len(dataset):  # map would leave no columns to count
        RowReport().check(strict)
    if {"row", "length", "skip_reason"} & set(dataset.column_names):
        raise DataError("columns named row, length or skip_reason would be overwritten: rename them")
    numbers = _source_rows(dataset)
    if numbers is not None:
        dataset = dataset.remove_columns(SOURCE_ROW)
    encoder = _Encoder(tokenizer, max_length, truncation_mode, hh_format, numbers)
    fields = [column for column in _TEXT_COLUMNS if column in dataset.column_names]
    encoded = dataset.map(
        encoder,
        with_indices=True,
        remove_columns=fields,
        desc=desc,
        load_from_cache_file=False,
    )
    reasons, cut_prompts = encoded["skip_reason"][:], sum(encoded["prompt_was_cut"])
    return _account(encoded.remove_columns(["skip_reason", "prompt_was_cut"]), reasons, cut_prompts, strict, numbers)


def _source_rows(dataset: Dataset) -> list[int] | None:
    if SOURCE_ROW not in dataset.column_names:
        return None
    numbers = dataset[SOURCE_ROW][:]
    for row, number in enumerate(numbers):
        if isinstance(number, bool) or not isinstance(number, int):
            raise DataError(f"row {row}: column {SOURCE_ROW!r} is {number!r}; expected the row's number in its source")
    return numbers


def _has_transcripts(dataset: Dataset) -> bool:
    prompts = dataset["prompt"] if "prompt" in dataset.column_names else [None] * len(dataset)
    chosen = dataset["chosen"] if "chosen" in dataset.column_names else []
    return any(prompt is None and is_transcript(text) for prompt, text in zip(prompts, chosen, strict=False))


def _account(
    dataset: Dataset, reasons: list[str], cut_prompts: int, strict: bool, numbers: list[int] | None = None
) -> tuple[Dataset, RowReport]:
    """Leave out the rows that have a reason for it, count them and say so, by their numbers in the source."""
    report = RowReport(total=len(reasons), cut_prompts=cut_prompts)
    for row, reason in enumerate(reasons):
        if reason:
            report.skip(reason, row if numbers is None else numbers[row])
    report.check(strict)
    if report.skipped or report.cut_prompts:
        logger.warning(report.summary())
    kept = [row for row, reason in enumerate(reasons) if not reason]
    return (dataset if len(kept) == len(dataset) else dataset.select(kept)), report


def _pass_through(dataset: Dataset, max_length: int, strict: bool) -> tuple[Dataset, RowReport]:
    reasons = []
    for number, row in enumerate(dataset.select_columns(list(TOKEN_COLUMNS))):
        if not all(row[column] for column in TOKEN_COLUMNS):
            raise DataError(f"row {number}: prompt_ids, chosen_ids and rejected_ids must each hold at least one token")
        prompt, chosen, rejected = (row[column] for column in TOKEN_COLUMNS)
        reasons.append("tie" if chosen == rejected else _too_long(prompt, chosen, rejected, max_length))
    if "row" not in dataset.column_names:
        dataset = dataset.add_column("row", list(range(len(dataset))))
    if "length" not in dataset.column_names:
        lengths = [len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])) for r in dataset]
        dataset = dataset.add_column("length", lengths)
    return _account(dataset, reasons, 0, strict)


def _too_long(prompt: list[int], chosen: list[int], rejected: list[int], max_length: int) -> str:
    if len(prompt) + max(len(chosen), len(rejected)) <= max_length:
        return ""
    return "prompt_too_long" if len(prompt) >= max_length else "answer_too_long"


def leading_bos(tokenizer: Any) -> list[int]:
    """The BOS token, if the tokenizer puts one before a text."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


class _Encoder:
    """Encodes one row; a class so that ``Dataset.map`` can pickle it."""

    def __init__(
        self, tokenizer: Any, max_length: int, truncation_mode: str, hh_format: str, numbers: list[int] | None
    ) -> None:
        self.tokenizer, self.numbers = tokenizer, numbers
        self.max_length = max_length
        self.keep_end = truncation_mode == "keep_end"
        self.hh_format = hh_format
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.bos = leading_bos(tokenizer)
        self.eos = [] if eos is None else [eos]
        # SentencePiece's dummy prefix: "a" becomes "▁a", as if a space stood before it.
        tokens = tokenizer.convert_ids_to_tokens(self._ids("a"))
        self.adds_space = bool(tokens) and tokens[0].startswith("▁")
        self.start = self.bos or ([bos] if bos is not None else self.eos)

    def __call__(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        number = number if self.numbers is None else self.numbers[number]
        fields, reason = normalize_row(row, number, self.hh_format)
        empty: dict[str, Any] = {
            "prompt_ids": [],
            "chosen_ids": [],
            "rejected_ids": [],
            "length": 0,
            "row": number,
            "prompt_was_cut": False,
        }
        if reason:
            return {**empty, "skip_reason": reason}
        ids, reason = self._conversation(fields) if isinstance(fields["chosen"], list) else self._text(fields)
        if reason:
            return {**empty, "skip_reason": reason}
        prompt, chosen, rejected = ids
        if chosen == rejected:
            return {**empty, "skip_reason": "tie"}
        room = self.max_length - max(len(chosen), len(rejected))
        cut = len(prompt) > room
        if cut:
            if not self.keep_end:
                return {**empty, "skip_reason": _too_long(prompt, chosen, rejected, self.max_length)}
            head = self.bos if prompt[:1] == self.bos else []
            if room <= len(head):
                return {**empty, "skip_reason": "answer_too_long"}
            prompt = head + prompt[len(prompt) - (room - len(head)) :]
        return {
            "prompt_ids": prompt,
            "chosen_ids": chosen,
            "rejected_ids": rejected,
            "length": len(prompt) + max(len(chosen), len(rejected)),
            "row": number,
            "prompt_was_cut": cut,
            "skip_reason": "",
        }

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _answer_ids(self, text: str) -> list[int]:
        """Tokenise a text that goes on after another: without the space that a SentencePiece tokenizer puts first."""
        if self.adds_space:
            before = self._ids(_SEAM)
            ids = self._ids(_SEAM + text)
            if ids[: len(before)] == before:
                return ids[len(before) :]
        return self._ids(text)

    def _text(self, fields: dict[str, str]) -> tuple[tuple[list[int], list[int], list[int]], str | None]:
        prompt = self._ids(fields["prompt"]) if fields["prompt"] else self.start
        if prompt[:1] != self.bos:  # the text may spell BOS out
            prompt = self.bos + prompt
        if not prompt:
            return ([], [], []), "empty_prompt"
        answers = [self._answer_ids(fields[side]) for side in ("chosen", "rejected")]
        answers = [ids if ids[-1:] == self.eos else ids + self.eos for ids in answers]
        return (prompt, answers[0], answers[1]), None

    def _conversation(self, fields: dict[str, Any]) -> tuple[tuple[list[int], list[int], list[int]], str | None]:
        if not getattr(self.tokenizer, "chat_template", None):
            raise ConfigError(
                "the data are conversations but the tokenizer has no chat template: use an instruction-tuned model's "
                "tokenizer, set tokenizer.chat_template, or give prompt, chosen and rejected as text"
            )
        if not fields["prompt"]:
            return ([], [], []), "empty_prompt"
        render = self.tokenizer.apply_chat_template
        prompt = render(fields["prompt"], tokenize=False, add_generation_prompt=True)
        answers = []
        for side in ("chosen", "rejected"):
            whole = render(fields["prompt"] + fields[side], tokenize=False)
            if not whole.startswith(prompt) or len(whole) == len(prompt):
                return ([], [], []), "template"
            answers.append(self._answer_ids(whole[len(prompt) :]))
        return (self._ids(prompt), answers[0], answers[1]), None
