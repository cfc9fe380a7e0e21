"""HH-RLHF and UltraFeedback: the prompt is inside both answers."""

import gzip
import json

import pytest
from datasets import Dataset

from pluralpref.data.sets.hh_rlhf import read_hh_rlhf
from pluralpref.data.sets.ultrafeedback_binarized import read_ultrafeedback_binarized
from pluralpref.errors import ConfigError, DataError

EGG = "\n\nHuman: How do I boil an egg?\n\nAssistant:"


def _hh(chosen, rejected):
    return {"chosen": chosen, "rejected": rejected}


HH = [
    _hh(f"{EGG} Eight minutes.", f"{EGG} Why would you?"),
    _hh(f"{EGG} Ten.\n\nHuman: Sure?\n\nAssistant: Yes.", f"{EGG} Ten.\n\nHuman: Sure?\n\nAssistant: No."),
    _hh(f"{EGG} Same.", f"{EGG} Same."),
    _hh(f"{EGG} Eight.", EGG),
    _hh("Eight.", "Nine."),
    _hh(f"{EGG} Eight.", None),
    # Differs before the last turn.
    _hh(f"{EGG} Eight.\n\nHuman: Thanks\n\nAssistant: Sure.", f"{EGG} Nine.\n\nHuman: What?\n\nAssistant: Sorry."),
]


def test_hh_as_messages(brief):
    pairs, report = read_hh_rlhf(Dataset.from_list(HH))
    assert brief(pairs) == [
        ("How do I boil an egg?", "Eight minutes.", "Why would you?", 1.0),
        ("Sure?", "Yes.", "No.", 1.0),
    ]
    assert [m["content"] for m in pairs[1]["prompt"]] == ["How do I boil an egg?", "Ten.", "Sure?"]
    assert pairs.column_names == ["prompt", "chosen", "rejected", "weight"]
    assert report.skipped == {"tie": 1, "empty_answer": 2, "transcript": 2}
    assert (report.rows, report.total, report.choices) == (7, 7, 2)


def test_hh_as_text(brief):
    pairs, report = read_hh_rlhf(Dataset.from_list(HH), format="text")
    assert brief(pairs) == [
        (EGG, " Eight minutes.", " Why would you?", 1.0),
        (f"{EGG} Ten.\n\nHuman: Sure?\n\nAssistant:", " Yes.", " No.", 1.0),
        (
            EGG,
            " Eight.\n\nHuman: Thanks\n\nAssistant: Sure.",
            " Nine.\n\nHuman: What?\n\nAssistant: Sorry.",
            1.0,
        ),
    ]
    assert report.skipped == {"tie": 1, "empty_answer": 2, "transcript": 1}


def _folder(tmp_path):
    for name, rows in (("harmless-base", HH[:1]), ("helpful-base", HH[1:3])):
        (tmp_path / name).mkdir()
        for split, part in (("train", rows), ("test", HH[1:2])):
            lines = "".join(json.dumps(row) + "\n" for row in part)
            (tmp_path / name / f"{split}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "red-team-attempts").mkdir()
    return tmp_path


def test_hh_folder_of_subsets(tmp_path):
    folder = _folder(tmp_path)
    pairs, report = read_hh_rlhf(folder, split="train")
    assert pairs["subset"][:] == ["harmless-base", "helpful-base"]
    assert report.examples == {"tie": [2]}  # numbered through
    assert report.rows == 3
    pairs, _ = read_hh_rlhf(str(folder), split="test", subset="helpful-base")
    assert pairs["subset"][:] == ["helpful-base"]
    with pytest.raises(ConfigError, match="several splits"):
        read_hh_rlhf(folder)
    with pytest.raises(
        ConfigError, match=r"subset='helpful-online' isn't in .*: there are harmless-base, helpful-base"
    ):
        read_hh_rlhf(folder, split="test", subset="helpful-online")


def test_hh_hub(monkeypatch):
    asked = []

    def load(repo, config, *, data_dir, split, revision):
        asked.append((repo, config, data_dir, split, revision))
        return Dataset.from_list(HH[:1])

    monkeypatch.setattr("pluralpref.data.sets.source.load_dataset", load)
    pairs, _ = read_hh_rlhf(split="test")
    folders = ["harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"]
    assert pairs["subset"][:] == folders
    assert asked == [("Anthropic/hh-rlhf", None, folder, "test", None) for folder in folders]
    assert read_hh_rlhf(subset="helpful-base")[0]["subset"][:] == ["helpful-base"]


def test_hh_bad_options_and_columns():
    rows = Dataset.from_list(HH)
    with pytest.raises(ConfigError, match="subset='helpful-base' has no effect"):
        read_hh_rlhf(rows, subset="helpful-base")
    with pytest.raises(ConfigError, match="subset='red-team-attempts': choose None, 'harmless-base'"):
        read_hh_rlhf(rows, subset="red-team-attempts")
    with pytest.raises(ConfigError, match="format='chat': choose 'messages', 'text'"):
        read_hh_rlhf(rows, format="chat")
    with pytest.raises(DataError, match="missing 'chosen', 'rejected'; there are transcript, rating"):
        read_hh_rlhf(Dataset.from_list([{"transcript": EGG, "rating": 1.0}]))


def test_hh_published_file(hh_file):
    pairs, report = read_hh_rlhf(hh_file)
    assert report.rows == report.total == 2312
    assert report.kept == len(pairs) > 2290
    assert all(row["prompt"][-1]["role"] == "user" for row in pairs.select(range(50)))


def _ultra(chosen, rejected, scores=(9.0, 3.0), prompt="Say hi"):
    both = [[{"content": prompt, "role": "user"}, {"content": a, "role": "assistant"}] for a in (chosen, rejected)]
    return {
        "prompt": prompt,
        "prompt_id": f"id {chosen}",
        "chosen": both[0],
        "rejected": both[1],
        "messages": both[0],
        "score_chosen": scores[0],
        "score_rejected": scores[1],
    }


ULTRA = [
    _ultra("Hi!", "No."),
    _ultra("Ho!", "Hey.", (5.0, 5.0)),
    _ultra("Hu!", "Hey.", (5.0, 4.5)),
    _ultra("Same", "Same"),
    _ultra("", "No."),
    _ultra("Ha!", "No.", prompt=""),
    _ultra("He!", "No.", (None, 3.0)),
]


def test_ultrafeedback(brief):
    pairs, report = read_ultrafeedback_binarized(Dataset.from_list(ULTRA))
    assert brief(pairs) == [
        ("Say hi", "Hi!", "No.", 1.0),
        ("Say hi", "Ho!", "Hey.", 1.0),
        ("Say hi", "Hu!", "Hey.", 1.0),
        ("Say hi", "He!", "No.", 1.0),
    ]
    assert pairs[0]["prompt"] == [{"role": "user", "content": "Say hi"}]
    assert pairs[0]["chosen"] == [{"role": "assistant", "content": "Hi!"}]
    assert pairs["conversation"][:] == ["id Hi!", "id Ho!", "id Hu!", "id He!"]
    assert report.skipped == {"tie": 1, "empty_answer": 1, "no_prompt": 1}


def test_ultrafeedback_tie_threshold():
    pairs, report = read_ultrafeedback_binarized(Dataset.from_list(ULTRA), tie_threshold=0)
    assert pairs["conversation"][:] == ["id Hi!", "id Hu!"]
    assert report.skipped == {"tie": 1, "empty_answer": 1, "no_prompt": 1, "score_tie": 1, "no_score": 1}
    assert len(read_ultrafeedback_binarized(Dataset.from_list(ULTRA), tie_threshold=0.5)[0]) == 1
    with pytest.raises(ConfigError, match="tie_threshold=-1"):
        read_ultrafeedback_binarized(Dataset.from_list(ULTRA), tie_threshold=-1)


def test_ultrafeedback_hub_and_columns(monkeypatch):
    asked = []

    def load(repo, config, *, data_dir, split, revision):
        asked.append((repo, split))
        return Dataset.from_list(ULTRA)

    monkeypatch.setattr("pluralpref.data.sets.source.load_dataset", load)
    read_ultrafeedback_binarized()
    read_ultrafeedback_binarized(split="test_prefs")
    repo = "HuggingFaceH4/ultrafeedback_binarized"
    assert asked == [(repo, "train_prefs"), (repo, "test_prefs")]
    text = [{**row, "chosen": "Hi!", "rejected": "No."} for row in ULTRA]
    with pytest.raises(DataError, match=r"missing 'chosen\.role', 'chosen\.content', 'rejected\.role'"):
        read_ultrafeedback_binarized(Dataset.from_list(text))
