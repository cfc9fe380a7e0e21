"""Pairs as token ids, with every row accounted for."""

import copy

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from pluralpref.data import load_preferences, tokenize_preferences
from pluralpref.errors import ConfigError, DataError

EOT_TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
OPEN_TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
OPEN_TEMPLATE += "{% if add_generation_prompt %}[assistant]{% endif %}"


def _tokenizer(*, corpus=(), bos=False, add_bos=False, eos=True, lower=False, template=None):
    """Byte-level BPE; with a corpus it merges the words of it."""
    special = ["<pad>"] + ["<bos>"] * bos + ["<eos>"] * eos
    raw = Tokenizer(models.BPE())
    if lower:
        raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    raw.train_from_iterator(corpus, trainer)
    if add_bos:
        raw.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", raw.token_to_id("<bos>"))]
        )
    names = {"pad_token": "<pad>"} | ({"bos_token": "<bos>"} if bos else {}) | ({"eos_token": "<eos>"} if eos else {})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **names)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def plain():
    """One token a byte; EOS, no BOS."""
    return _tokenizer()


def _pairs(*rows, **columns):
    prompts, chosen, rejected = zip(*rows, strict=True)
    return Dataset.from_dict({"prompt": prompts, "chosen": chosen, "rejected": rejected, **columns})


def _one(tokenizer, prompt, chosen, rejected, **options):
    encoded, _ = tokenize_preferences(_pairs((prompt, chosen, rejected)), tokenizer, **options)
    row = encoded[0]
    return row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]


def test_a_merge_over_the_seam_costs_the_answer_nothing():
    tokenizer = _tokenizer(corpus=["The sky is blue."] * 50)
    joined = tokenizer("The sky is blue.")["input_ids"]
    parts = tokenizer("The sk")["input_ids"], tokenizer("y is blue.")["input_ids"]
    assert joined != parts[0] + parts[1]  # it does merge there
    prompt, chosen, rejected = _one(tokenizer, "The sk", "y is blue.", "i is cold.")
    assert tokenizer.decode(prompt) == "The sk"
    assert tokenizer.decode(chosen) == "y is blue.<eos>"
    assert tokenizer.decode(rejected) == "i is cold.<eos>"
    assert (prompt, chosen[:-1]) == parts


@pytest.mark.parametrize(("bos", "add_bos"), [(True, True), (True, False), (False, False)])
def test_bos_is_added_once_where_the_tokenizer_adds_one(bos, add_bos):
    tokenizer = _tokenizer(bos=bos, add_bos=add_bos)
    ids = _one(tokenizer, "q", "a", "b")
    q, a, b, eos = *(tokenizer.convert_tokens_to_ids(c) for c in "qab"), tokenizer.eos_token_id
    assert ids == ([tokenizer.bos_token_id, q] if add_bos else [q], [a, eos], [b, eos])


def test_an_empty_prompt_starts_with_bos_or_eos():
    with_bos, without, neither = _tokenizer(bos=True), _tokenizer(), _tokenizer(eos=False)
    assert _one(with_bos, "", "a", "b")[0] == [with_bos.bos_token_id]
    assert _one(without, "", "a", "b")[0] == [without.eos_token_id]
    rows = _pairs(("", "a", "b"), ("q", "a", "b"))
    encoded, report = tokenize_preferences(rows, neither)
    assert dict(report.skipped) == {"empty_prompt": 1}
    assert encoded["row"][:] == [1]


def test_eos_is_added_once(plain):
    eos = plain.eos_token_id
    _, chosen, rejected = _one(plain, "q", "a<eos>", "b")
    assert chosen.count(eos) == rejected.count(eos) == 1
    assert chosen[-1] == rejected[-1] == eos
    assert _one(_tokenizer(eos=False), "q", "ab", "b")[1:] == _ids_of(_tokenizer(eos=False), "ab", "b")


def _ids_of(tokenizer, *texts):
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)


def _chat(*contents):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def test_conversations_get_what_their_template_says():
    tokenizer = _tokenizer(bos=True, add_bos=True, template=EOT_TEMPLATE)
    data = Dataset.from_list([{"chosen": _chat("q", "yes"), "rejected": _chat("q", "no")}])
    row = tokenize_preferences(data, tokenizer)[0][0]
    assert tokenizer.decode(row["prompt_ids"]) == "<bos>[user]q<eos>[assistant]"
    assert tokenizer.decode(row["chosen_ids"]) == "yes<eos>"
    assert tokenizer.decode(row["rejected_ids"]) == "no<eos>"
    assert row["prompt_ids"].count(tokenizer.bos_token_id) == 1


def test_a_template_without_end_of_turn_gets_no_eos():
    tokenizer = _tokenizer(template=OPEN_TEMPLATE)
    data = Dataset.from_list([{"chosen": _chat("q", "yes"), "rejected": _chat("q", "no")}])
    row = tokenize_preferences(data, tokenizer)[0][0]
    assert tokenizer.decode(row["chosen_ids"]) == "yes"


def test_a_template_that_changes_the_prompt_is_counted():
    tokenizer = _tokenizer(template="{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    data = Dataset.from_list([{"chosen": _chat("q", "yes"), "rejected": _chat("q", "no")}])
    with pytest.raises(DataError, match=r"no row can be used.*template doesn't separate"):
        tokenize_preferences(data, tokenizer)


def test_conversations_without_template(plain):
    data = Dataset.from_list([{"chosen": _chat("q", "yes"), "rejected": _chat("q", "no")}])
    with pytest.raises(ConfigError, match="no chat template"):
        tokenize_preferences(data, plain)


# Lengths with EOS: prompt 4, answers 3 and 2, so 7 in all.
PAIR = ("wxyz", "ab", "c")


def test_drop(plain):
    assert _one(plain, *PAIR, max_length=7) == _one(plain, *PAIR)
    rows = _pairs(PAIR, ("q", "a", "b"), ("wxyzwx", "a", "b"), ("q", "abcdef", "b"))
    encoded, report = tokenize_preferences(rows, plain, max_length=6)
    assert encoded["row"][:] == [1]
    assert dict(report.skipped) == {"answer_too_long": 2, "prompt_too_long": 1}
    assert report.examples == {"answer_too_long": [0, 3], "prompt_too_long": [2]}
    assert report.cut_prompts == 0


def test_keep_end_cuts_the_prompt_of_both_alike(plain):
    whole = _one(plain, *PAIR)
    cut = _one(plain, *PAIR, max_length=5, truncation_mode="keep_end")
    assert cut == (whole[0][-2:], whole[1], whole[2])
    encoded, report = tokenize_preferences(
        _pairs(PAIR, ("q", "a", "b")), plain, max_length=5, truncation_mode="keep_end"
    )
    assert report.cut_prompts == 1
    assert not report.skipped
    assert encoded["length"][:] == [5, 3]
    assert "1 prompts cut" in report.summary()


def test_keep_end_keeps_bos_and_never_cuts_answers():
    tokenizer = _tokenizer(bos=True, add_bos=True)
    whole = _one(tokenizer, *PAIR)
    cut = _one(tokenizer, *PAIR, max_length=5, truncation_mode="keep_end")
    assert cut == ([tokenizer.bos_token_id, whole[0][-1]], whole[1], whole[2])
    with pytest.raises(DataError, match="1 skipped: prompt and answer together are longer than max_length"):
        _one(tokenizer, *PAIR, max_length=4, truncation_mode="keep_end")


def test_options_are_checked(plain):
    with pytest.raises(ConfigError, match="truncation_mode='keep_start'"):
        _one(plain, *PAIR, truncation_mode="keep_start")
    with pytest.raises(ConfigError, match="hh_format='messages'"):
        _one(plain, *PAIR, hh_format="messages")


def test_chat_format_without_transcripts_is_refused(plain):
    with pytest.raises(ConfigError, match="hh_format='chat' has no effect"):
        _one(plain, *PAIR, hh_format="chat")
    tokenised = Dataset.from_dict({"prompt_ids": [[3]], "chosen_ids": [[4]], "rejected_ids": [[5]]})
    with pytest.raises(ConfigError, match="hh_format='chat' has no effect"):
        tokenize_preferences(tokenised, plain, hh_format="chat")


def test_nothing_left_says_why(plain):
    rows = _pairs(("q", "a", "a"), ("q", "", "b"), ("q" * 30, "a", "b"))
    with pytest.raises(DataError) as caught:
        tokenize_preferences(rows, plain, max_length=10)
    text = str(caught.value)
    assert "no row can be used: 0 of 3 rows used" in text
    for part in ("the same: nobody won (rows 0)", "missing or empty (rows 1)", "raise max_length", "(rows 2)"):
        assert part in text
    with pytest.raises(DataError, match="the data set has no rows"):
        tokenize_preferences(rows.select([]), plain)


def test_strict(plain):
    rows = _pairs(("q", "a", "b"), ("q", "a", "a"))
    with pytest.raises(DataError, match=r"strict mode: 1 of 2 rows used; 1 skipped: .*nobody won \(rows 1\)"):
        tokenize_preferences(rows, plain, strict=True)
    encoded, report = tokenize_preferences(rows.select([0]), plain, strict=True)
    assert (len(encoded), report.kept) == (1, 1)


def test_ties_of_tokens():
    lower = _tokenizer(lower=True)
    encoded, report = tokenize_preferences(_pairs(("q", "YES", "yes"), ("q", "yes", "no")), lower)
    assert dict(report.skipped) == {"tie": 1}
    assert encoded["row"][:] == [1]


def test_further_columns_are_carried(plain):
    rows = _pairs(("q", "a", "a"), ("q", "a", "b"), annotator=["ann", "bob"], weight=[1.0, 2.0], topic=["x", "y"])
    (row,) = tokenize_preferences(rows, plain)[0].to_list()
    assert (row["annotator"], row["weight"], row["topic"], row["row"]) == ("bob", 2.0, "y", 1)
    assert not {"prompt", "chosen", "rejected"} & set(row)
    with pytest.raises(DataError, match="row, length or skip_reason"):
        tokenize_preferences(_pairs(("q", "a", "b"), row=[3]), plain)


def test_tokenised_pairs_pass_through(plain):
    encoded, _ = tokenize_preferences(_pairs(("q", "a", "b"), PAIR), plain)
    again, report = tokenize_preferences(encoded, plain)
    assert again.to_list() == encoded.to_list()
    assert (report.total, report.kept) == (2, 2)
    bare = Dataset.from_dict({"prompt_ids": [[1], [1]], "chosen_ids": [[2], [2, 3]], "rejected_ids": [[4, 5], [6]]})
    given, _ = tokenize_preferences(bare, plain)
    assert (given["row"][:], given["length"][:]) == ([0, 1], [3, 3])
    broken = Dataset.from_dict({"prompt_ids": [[1], []], "chosen_ids": [[2], [2]], "rejected_ids": [[4], [6]]})
    with pytest.raises(DataError, match="row 1: prompt_ids, chosen_ids and rejected_ids"):
        tokenize_preferences(broken, plain)


def test_the_tokenizer_is_left_as_it_was(plain):
    before = copy.deepcopy(plain.init_kwargs), plain.padding_side, plain.truncation_side
    _one(plain, *PAIR, max_length=5, truncation_mode="keep_end")
    assert (plain.init_kwargs, plain.padding_side, plain.truncation_side) == before


def test_bos_spelt_out_in_the_prompt_is_not_doubled():
    tokenizer = _tokenizer(bos=True, add_bos=True)
    assert _one(tokenizer, "<bos>q", "a", "b") == _one(tokenizer, "q", "a", "b")


def _sentencepiece_like():
    """Metaspace with a dummy prefix and byte fallback, as Llama 2's tokenizer."""
    pieces = ["<pad>", "<eos>", "<unk>", "▁", "▁a", "▁b", "a", "b", "q", *(f"<0x{i:02X}>" for i in range(256))]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    raw = Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("▁", "b")], unk_token="<unk>", byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    raw.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Metaspace(prepend_scheme="first", split=False)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def test_no_space_is_put_before_the_answer():
    tokenizer = _sentencepiece_like()
    assert tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"]) == ["▁a"]
    tokens = [tokenizer.convert_ids_to_tokens(ids) for ids in _one(tokenizer, "q", " a", "b")]
    # Joined: ▁q▁a and ▁qb, what the tokenizer makes of "q a" and "qb".
    assert tokens == [["▁", "q"], ["▁a", "<eos>"], ["b", "<eos>"]]


def test_skipped_rows_are_announced(plain, caplog):
    with caplog.at_level("WARNING"):
        tokenize_preferences(_pairs(("q", "a", "b")), plain)
        assert not caplog.messages
        tokenize_preferences(_pairs(("q", "a", "b"), ("q", "a", "a")), plain)
    assert len(caplog.messages) == 1
    assert "1 of 2 rows used; 1 skipped" in caplog.messages[0]


def test_tokenised_pairs_are_accounted_for_too(plain):
    rows = {"prompt_ids": [[1], [1], [1, 1], [1] * 4], "chosen_ids": [[2], [2], [2, 3], [2]]}
    tokenised = Dataset.from_dict({**rows, "rejected_ids": [[4], [2], [6], [4]]})
    kept, report = tokenize_preferences(tokenised, plain, max_length=3)
    assert kept["row"][:] == [0]
    assert dict(report.skipped) == {"tie": 1, "answer_too_long": 1, "prompt_too_long": 1}
    with pytest.raises(DataError, match="strict mode"):
        tokenize_preferences(tokenised, plain, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("hh_format", ["text", "chat"])
def test_published_hh_file(hh_file, hh_format):
    """Each row of the HH harmless test split is used or counted."""
    dataset = load_preferences(hh_file)
    assert len(dataset) == 2312
    tokenizer = _tokenizer(template=EOT_TEMPLATE)
    encoded, report = tokenize_preferences(dataset, tokenizer, max_length=2048, hh_format=hh_format)
    assert report.total == 2312
    assert len(encoded) == report.kept
    assert report.kept + sum(report.skipped.values()) == 2312
    assert report.kept > 2000
    assert len(set(encoded["row"])) == report.kept
    assert max(encoded["length"]) <= 2048
    for row in encoded.select(range(0, len(encoded), 97)):
        source = dataset[row["row"]]
        prompt = tokenizer.decode(row["prompt_ids"])
        for side in ("chosen", "rejected"):
            answer = tokenizer.decode(row[f"{side}_ids"])
            assert answer.endswith("<eos>")
            if hh_format == "text":
                assert prompt + answer.removesuffix("<eos>") == source[side]
            else:
                assert source[side].rstrip().endswith(answer.removesuffix("<eos>"))
