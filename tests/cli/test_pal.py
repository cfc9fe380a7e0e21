"""``pluralpref pal`` on a tiny model."""

import json

import pandas as pd
import pytest
import torch

import pluralpref.likelihood.embeddings as embeddings_module
from pluralpref.cli.pal import main
from pluralpref.data import PreferenceCollator, load_preferences, tokenize_preferences
from pluralpref.errors import ConfigError, DataError
from pluralpref.inference.pal import load_pal, pal_pairs, predict_known, predict_unknown
from pluralpref.likelihood.embeddings import answer_embeddings

OPTIONS = ["--latent_dim", "4", "--hidden_layers", "0", "--max_epochs", "4", "--fit_batch_size", "16"]


@pytest.fixture
def workplace(tmp_path, tiny_llama, tiny_tokenizer, monkeypatch):
    """A folder with a model and pairs of eight people, six choices each, where we are."""
    monkeypatch.chdir(tmp_path)
    tiny_llama(0).save_pretrained("model")
    tiny_tokenizer.save_pretrained("model")
    write(tmp_path / "pairs.jsonl", range(8), 6)
    return tmp_path


def write(path, people, count, **more):
    rows = [
        {"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {p}", "annotator": f"p{p}", **more}
        for p in people
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(*options, data="pairs.jsonl"):
    return main(["--model_name_or_path", "model", "--dataset_name", data, "--output_dir", "out", *OPTIONS, *options])


def embedded(path, model, tokenizer, people):
    rows, _ = tokenize_preferences(load_preferences(str(path)), tokenizer)
    rows = rows.filter(lambda row: row["annotator"] in people)
    embeddings = answer_embeddings(model, rows, PreferenceCollator(tokenizer.pad_token_id), progress=False)
    return pal_pairs(embeddings, annotator=rows["annotator"][:])


def test_known_unknown_and_few_shot(workplace, capsys, tiny_llama, tiny_tokenizer):
    people = ["--held_out_by", "annotator", "--held_out_fraction", "0.25", "--few_shot", "2"]
    assert run(*people, "--num_prototypes", "3", "--seed", "1") == 0
    shown = capsys.readouterr().out
    assert "36 to train on" in shown
    assert "few_shot/zero_shot" in shown
    out = workplace / "out"
    table = pd.read_csv(out / "weights.csv")
    assert table.columns.tolist() == ["annotator", "w_1", "w_2", "w_3"]
    assert table[["w_1", "w_2", "w_3"]].sum(axis=1).to_numpy() == pytest.approx([1] * 6)
    new = pd.read_csv(out / "few_shot_weights.csv")
    assert set(table["annotator"]) | set(new["annotator"]) == {f"p{i}" for i in range(8)}
    assert len(new) == 2
    found = json.loads((out / "metrics.json").read_text())
    counts = {name: (found[name]["pairs"], found[name]["annotators"]) for name in found if "log_loss" in found[name]}
    # One of six choices of each training person; all of new people; those but two.
    assert counts == {"known": (6, 6), "unknown": (12, 2), "few_shot": (8, 2), "few_shot/zero_shot": (8, 2)}
    assert found["counts"] == {"pairs/fitted": 30, "annotators/fitted": 6, "annotators/too_few_choices": 0}
    assert found["options"]["num_prototypes"] == 3
    assert found["training"]["epochs"] == 4
    pal = load_pal(out)
    assert pal.annotators == tuple(table["annotator"])
    assert pal.weights.numpy() == pytest.approx(table[["w_1", "w_2", "w_3"]].to_numpy(), abs=1e-6)
    pairs = embedded("pairs.jsonl", tiny_llama(0), tiny_tokenizer, set(new["annotator"]))
    predicted = predict_unknown(pal, pairs)
    assert found["unknown"]["log_loss"] == pytest.approx(-predicted.chosen.mean().item(), rel=1e-4)
    assert found["unknown"]["accuracy"] == pytest.approx((predicted.log_odds > 0).double().mean().item())


def test_held_out_pairs_of_training_people(workplace, capsys, tiny_llama, tiny_tokenizer):
    write(workplace / "later.jsonl", range(4), 3, preferred=0.25, weight=2.0)
    more = ["--eval_dataset_name", "later.jsonl", "--variant", "a", "--strength", "lognormal"]
    assert run(*more, "--embeddings_dir", "cache") == 0
    found = json.loads((workplace / "out" / "metrics.json").read_text())
    assert found["counts"]["pairs/fitted"] == 48  # nothing more is held out
    assert set(found) == {"known", "counts", "training", "options"}
    pal = load_pal("out")
    assert type(pal.strength).__name__ == "LogNormalStrength"
    pairs = embedded("later.jsonl", tiny_llama(0), tiny_tokenizer, {f"p{i}" for i in range(4)})
    expected = predict_known(pal, pairs).log_loss(torch.full((12,), 0.25, dtype=torch.float64)).mean()
    assert found["known"]["log_loss"] == pytest.approx(expected.item(), rel=1e-4)
    assert len(list((workplace / "cache").iterdir())) == 2
    assert not (workplace / "out" / "embeddings").exists()


def test_embeddings_are_kept_and_a_model_is_not_overwritten(workplace, monkeypatch):
    assert run() == 0
    first = (workplace / "out" / "weights.csv").read_text()
    with pytest.raises(ConfigError, match="--output_dir out holds a model"):
        run()

    def refuse(*arguments):
        raise AssertionError("embedded again")

    monkeypatch.setattr(embeddings_module, "pair_embeddings", refuse)
    assert run("--overwrite") == 0
    assert (workplace / "out" / "weights.csv").read_text() == first
    assert run("--overwrite", "--seed", "2") == 0
    assert (workplace / "out" / "weights.csv").read_text() != first


def test_nothing_held_out(workplace, capsys):
    assert run("--known_fraction", "0", "--num_prototypes", "1") == 0
    assert "no choices are held out: there are no metrics" in capsys.readouterr().out
    assert set(pd.read_csv("out/weights.csv")["w_1"]) == {1.0}


def test_people_with_too_few_choices_are_counted(workplace, capsys):
    write(workplace / "new.jsonl", [20], 5)
    with (workplace / "new.jsonl").open("a") as file:
        for person in (21, 22):
            file.write(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b", "annotator": f"p{person}"}) + "\n")
    assert run("--eval_dataset_name", "new.jsonl", "--few_shot", "3", "--few_shot_prior", "1") == 0
    assert "few_shot: 2 new people have too few choices and are left out" in capsys.readouterr().out
    found = json.loads((workplace / "out" / "metrics.json").read_text())
    assert found["counts"]["annotators/too_few_choices"] == 2
    assert found["few_shot"]["pairs"] == 2


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "pluralpref pal --model_name_or_path base-model --dataset_name pairs.jsonl --held_out_by annotator" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num_prototypes", "0"], "num_prototypes=0: must be at least 1"),
        (["--variant", "c"], "variant='c'"),
        (["--few_shot", "2"], "--few_shot has no effect: no held-out pair is of a new person"),
        (["--few_shot", "0"], "--few_shot 0: must be at least 1"),
        (["--few_shot_prior", "1"], "--few_shot_prior has no effect without --few_shot"),
        (["--known_fraction", "1"], "--known_fraction 1.0: must be at least 0 and less than 1"),
        (["--strength", "gama"], "unknown strength family 'gama'"),
        (["--strength_cv", "0.5"], "has no effect on a fixed strength"),
        (["--patience", "3"], "patience has no effect without stopping_fraction"),
        (["--held_out_fraction", "0.5"], "--held_out_fraction has no effect without --held_out_by"),
    ],
)
def test_mistakes(workplace, options, message):
    with pytest.raises(ConfigError, match=message):
        run(*options)
    assert not (workplace / "out").exists()


def test_pairs_without_annotators(workplace):
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    (workplace / "nameless.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="the training pairs have no column 'annotator', which says who chose"):
        run(data="nameless.jsonl")
    with pytest.raises(ConfigError, match="--output_dir is missing"):
        main(["--model_name_or_path", "model", "--dataset_name", "pairs.jsonl"])
