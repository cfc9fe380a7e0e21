"""MultiPref, TL;DR and the simulated users: a row is a choice, or a list of choices, of somebody."""

import pytest
from datasets import Dataset

from pluralpref.data.sets.multipref import read_multipref
from pluralpref.data.sets.personal import read_personal_llm_dpo, read_psoups, read_ultrafeedback_personalized
from pluralpref.data.sets.summarize_from_feedback import read_summarize_from_feedback
from pluralpref.errors import ConfigError, DataError


def _annotation(person, overall, helpful="Tie"):
    return {"evaluator": person, "overall_pref": overall, "helpful_pref": helpful, "time_spent": 10}


MULTI = {
    "comparison_id": "m1",
    "prompt_id": "p1",
    "text": "Name a fruit",
    "completion_a": "Apple",
    "model_a": "x",
    "completion_b": "Pear",
    "model_b": "y",
    "source": "wildchat",
    "category": "Open QA",
    "normal_worker_annotations": [
        _annotation("n1", "A-is-clearly-better"),
        _annotation("n2", "Tie", helpful="B-is-clearly-better"),
    ],
    "expert_worker_annotations": [
        _annotation("e1", "B-is-slightly-better"),
        _annotation("n1", "B-is-clearly-better"),
    ],
}


def test_multipref_each_annotation_is_a_choice(brief):
    pairs, report = read_multipref(Dataset.from_list([MULTI]))
    assert brief(pairs) == [
        ("Name a fruit", "Apple", "Pear", 1.0),
        ("Name a fruit", "Pear", "Apple", 1.0),
        ("Name a fruit", "Pear", "Apple", 1.0),
    ]
    assert pairs.remove_columns(["prompt", "chosen", "rejected", "weight"]).to_list() == [
        {
            "annotator": person,
            "conversation": "p1",
            "comparison": "m1",
            "annotator_kind": kind,
            "strength": strength,
            "source": "wildchat",
            "category": "Open QA",
        }
        for person, kind, strength in [
            ("n1", "normal", "clearly"),
            ("e1", "expert", "slightly"),
            ("n1", "expert", "clearly"),
        ]
    ]
    assert report.skipped == {"called_tie": 1}
    assert (report.rows, report.total, report.choices) == (1, 4, 3)


def test_multipref_options():
    rows = Dataset.from_list([MULTI])
    pairs, report = read_multipref(rows, annotators="expert")
    assert pairs["annotator"][:] == ["e1", "n1"]
    assert report.total == 2
    pairs, report = read_multipref(rows, aspect="helpful", annotators="normal")
    assert pairs["annotator"][:] == ["n2"]
    assert report.skipped == {"called_tie": 1}
    with pytest.raises(ConfigError, match="aspect='honest': choose 'overall', 'helpful', 'truthful', 'harmless'"):
        read_multipref(rows, aspect="honest")
    with pytest.raises(ConfigError, match="annotators='crowd': choose 'all', 'normal', 'expert'"):
        read_multipref(rows, annotators="crowd")
    with pytest.raises(DataError, match=r"missing 'normal_worker_annotations\.truthful_pref'"):
        read_multipref(rows, aspect="truthful")


def test_multipref_what_cannot_be_used():
    rows = [
        MULTI,
        {**MULTI, "normal_worker_annotations": [], "expert_worker_annotations": []},
        {**MULTI, "text": ""},
        {**MULTI, "completion_b": "Apple"},
        {**MULTI, "normal_worker_annotations": [_annotation(None, "A-is-clearly-better"), _annotation("n3", None)]},
    ]
    pairs, report = read_multipref(Dataset.from_list(rows))
    assert len(pairs) == 3 + 2
    assert report.skipped == {"called_tie": 1 + 1, "no_choice": 1 + 1, "no_prompt": 4, "tie": 3, "no_annotator": 1}


def test_multipref_without_groups(tmp_path, write_lines):
    row = {name: value for name, value in MULTI.items() if name not in ("source", "category")}
    pairs, _ = read_multipref(write_lines(tmp_path / "MultiPref-Train.jsonl", [row]))
    assert len(pairs) == 3
    assert "source" not in pairs.column_names


def _info(post=None, article=None, title="My cat", subreddit="cats"):
    return {"id": "t3_1", "post": post, "title": title, "subreddit": subreddit, "site": None, "article": article}


def _tldr(choice, worker="w1", info=None, summaries=(" Cat sits. ", "Dog.")):
    return {
        "info": info or _info("My cat sat down."),
        "summaries": [{"text": text, "policy": "ref", "note": None} for text in summaries],
        "choice": choice,
        "worker": worker,
        "batch": "b",
        "split": "train",
        "extra": {"confidence": None},
    }


TLDR = [
    _tldr(0),
    _tldr(1, "w2"),
    _tldr(0, "w2", _info(article="It rained.", title=None, subreddit=None)),
    _tldr(None),
    _tldr(2),
    _tldr(0, worker=None),
    _tldr(0, info=_info()),
    _tldr(0, summaries=("Cat.", "Cat.")),
    _tldr(0, summaries=("Cat.", None)),
    _tldr(0, summaries=("Cat.",)),
]
POST = "SUBREDDIT: r/cats\n\nTITLE: My cat\n\nPOST: My cat sat down.\n\nTL;DR:"


def test_tldr(brief):
    pairs, report = read_summarize_from_feedback(Dataset.from_list(TLDR))
    assert brief(pairs) == [
        (POST, " Cat sits.", " Dog.", 1.0),
        (POST, " Dog.", " Cat sits.", 1.0),
        ("Article: It rained.\n\nTL;DR:", " Cat sits.", " Dog.", 1.0),
    ]
    assert pairs["annotator"][:] == ["w1", "w2", "w2"]
    assert pairs["kind"][:] == ["post", "post", "article"]
    assert pairs["subreddit"][:] == ["cats", "cats", "unknown"]
    assert pairs["conversation"][:] == ["t3_1"] * 3
    assert report.skipped == {
        "no_choice": 2,
        "no_annotator": 1,
        "no_prompt": 1,
        "tie": 1,
        "empty_answer": 1,
        "single_answer": 1,
    }
    assert report.total == report.rows == 10


def test_tldr_as_messages():
    pairs, _ = read_summarize_from_feedback(Dataset.from_list(TLDR), format="messages")
    assert pairs[0]["prompt"] == [{"role": "user", "content": POST}]
    assert pairs[0]["chosen"] == [{"role": "assistant", "content": "Cat sits."}]


def test_tldr_file_without_articles(tmp_path, write_lines, brief):
    info = {"id": "t3_1", "post": "My cat sat down.", "title": "My cat", "subreddit": "cats"}
    pairs, _ = read_summarize_from_feedback(write_lines(tmp_path / "batch3.json", [_tldr(1, info=info)]))
    assert brief(pairs) == [(POST, " Dog.", " Cat sits.", 1.0)]


def test_tldr_hub(monkeypatch):
    asked = []

    def load(repo, config, *, data_dir, split, revision):
        asked.append((repo, config, data_dir, split, revision))
        return Dataset.from_list(TLDR)

    monkeypatch.setattr("pluralpref.data.sets.source.load_dataset", load)
    read_summarize_from_feedback(split="validation")
    assert asked == [
        ("openai/summarize_from_feedback", None, "comparisons", "validation", "refs/convert/parquet"),
    ]


def test_tldr_bad_columns_and_options():
    rows = [{"info": {"id": "1"}, "summaries": ["a", "b"], "choice": 1}]
    with pytest.raises(DataError, match=r"missing 'worker', 'summaries\.text'; there are info, summaries, choice"):
        read_summarize_from_feedback(Dataset.from_list(rows))
    with pytest.raises(DataError, match="row 0: column 'summaries' has 3 entries; expected 2"):
        read_summarize_from_feedback(Dataset.from_list([_tldr(0, summaries=("a", "b", "c"))]))
    with pytest.raises(ConfigError, match="format='chat': choose 'text', 'messages'"):
        read_summarize_from_feedback(Dataset.from_list(TLDR), format="chat")


def _user(uid, prompt="Explain rain", chosen="Water falls.", rejected="Precipitation arises ..."):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "uid": uid}


@pytest.mark.parametrize("read", [read_psoups, read_personal_llm_dpo])
def test_simulated_users(read, brief):
    rows = [_user(3), _user(None), _user(1, prompt=""), _user(1, rejected=""), _user(1, rejected="Water falls.")]
    pairs, report = read(Dataset.from_list(rows))
    assert brief(pairs) == [("Explain rain", "Water falls.", "Precipitation arises ...", 1.0)]
    assert pairs["annotator"][:] == ["3"]
    assert report.skipped == {"no_annotator": 1, "no_prompt": 1, "empty_answer": 1, "tie": 1}


def test_simulated_users_of_attributes():
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "attributes": "honesty"}
    pairs, _ = read_ultrafeedback_personalized(Dataset.from_list([row]))
    assert pairs["annotator"][:] == ["honesty"]
    assert "controversial" not in pairs.column_names
    pairs, _ = read_ultrafeedback_personalized(Dataset.from_list([{**row, "controversial": True}]))
    assert pairs["controversial"][:] == ["true"]
    with pytest.raises(DataError, match="RiverDong/ultrafeedback-personalized: missing 'attributes'"):
        read_ultrafeedback_personalized(Dataset.from_list([_user(1)]))


def test_messages_where_text_is_expected():
    row = _user(1, chosen=[{"role": "assistant", "content": "a"}])
    with pytest.raises(DataError, match="row 0: column 'chosen' is a list; expected text"):
        read_psoups(Dataset.from_list([row]))


def test_simulated_users_hub(monkeypatch):
    asked = []

    def load(repo, config, *, data_dir, split, revision):
        asked.append((repo, config, split))
        return Dataset.from_list([_user(1)])

    monkeypatch.setattr("pluralpref.data.sets.source.load_dataset", load)
    read_psoups(config="ood", split="test")
    read_personal_llm_dpo("somebody/copy", config="new-user")
    assert asked == [("RiverDong/psoups", "ood", "test"), ("somebody/copy", "new-user", "train")]
    with pytest.raises(ConfigError, match="config='ood' has no effect on files"):
        read_psoups(Dataset.from_list([_user(1)]), config="ood")
