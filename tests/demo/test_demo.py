import json
import math

import numpy as np
import pytest

from pluralpref.cli.main import main
from pluralpref.demo.picture import Panel, plot_populations
from pluralpref.demo.population import CHOICES_PER_ANNOTATOR, TOPICS, WORDS, Population, build_tokenizer


def gaps(population, data):
    """The utility of the chosen answer minus that of the rejected one."""
    values = population.utilities()
    totals = {
        side: [
            sum(values[TOPICS.index(p), WORDS.index(w)] for w in a.split())
            for p, a in zip(data["prompt"], data[side], strict=True)
        ]
        for side in ("chosen", "rejected")
    }
    return np.array(totals["chosen"]) - np.array(totals["rejected"])


@pytest.mark.parametrize("cv", [0.0, 1.5])
def test_people_choose_by_the_logit_of_their_strength(cv):
    population = Population(cv, seed=3)
    data = population.choices(600, stream=0)
    assert len(data) == 600 * CHOICES_PER_ANNOTATOR
    assert len(set(data["annotator"])) == 600
    gap = gaps(population, data)
    # E[sigmoid(beta |gap|)] is the share of choices for the better answer.
    sigma = math.sqrt(math.log1p(cv**2))
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    strength = np.exp(sigma * nodes - sigma**2 / 2)
    expected = (weights / weights.sum() / (1 + np.exp(-strength * np.abs(gap)[:, None]))).sum(1)
    # Choices of one person depend on each other where strengths differ: people are the units.
    error = ((gap > 0) - expected).reshape(600, -1).mean(1)
    assert abs(error.mean()) < 3.5 * error.std() / math.sqrt(600)


def test_the_same_seed_gives_the_same_population():
    first, again = (Population(1.5, seed=1).choices(3, stream=0) for _ in range(2))
    assert first.to_dict() == again.to_dict()
    assert Population(1.5, seed=2).choices(3, stream=0).to_dict() != first.to_dict()
    assert Population(1.5, seed=1).choices(3, stream=1)["chosen"] != first["chosen"]
    assert np.array_equal(Population(0.0, seed=1).utilities(), Population(1.5, seed=1).utilities())


def test_the_tokenizer_knows_every_word():
    tokenizer = build_tokenizer()
    ids = tokenizer(" ".join(TOPICS + WORDS))["input_ids"]
    assert len(set(ids)) == len(TOPICS) + len(WORDS)
    assert tokenizer.unk_token_id not in ids


def test_picture():
    figure = plot_populations([Panel(1.5, 0.5, np.array([1.0, 1.6])), Panel(0.0, 0.1, np.array([0.0, 0.2]))])
    left, right = figure.axes
    assert [t.get_text() for t in left.get_legend().get_texts()][-2:] == ["truth", "plain DPO"]
    assert right.get_legend().get_texts()[-1].get_text() == "plain DPO, and truth"


@pytest.mark.slow
def test_make_demo(tmp_path, capfd):
    folder = tmp_path / "demo"
    assert main(["demo", "--output_dir", str(folder)]) == 0
    out = capfd.readouterr().out
    assert "| true cv | objective" in out
    rows = json.loads((folder / "results.json").read_text())
    assert [row["true_cv"] for row in rows] == [1.5] * 4 + [0.0] * 4
    for row in rows:
        assert row["objective"] in out
        assert row["low"] < row["posterior_cv"] < row["high"]
        if row["true_cv"]:
            # Rounding alone moves what so short a training finds: 1.0 to 1.5 on this seed with two ways to apply the head.
            assert 0.8 < row["posterior_cv"] < 2.1
            assert row["low"] > 0.5
            assert row["log_loss"] < math.log(2) - 0.05
        else:
            assert row["posterior_cv"] < 0.25
            assert row["low"] < 0.05
    trained = {(row["true_cv"], row["objective"]): row["training_cv"] for row in rows}
    for objective in ("LogNormal, K=16", "Gamma, closed form"):
        # The law at the end of training lags behind: 0.26 to 0.70 over seeds and roundings where people differ.
        assert trained[0.0, objective] < 0.35
        assert 1.5 * trained[0.0, objective] < trained[1.5, objective] < 1.5
    html = (folder / "report.html").read_text()
    assert "Fixed, constant (DPO)" in html
    assert (folder / "strength.png").stat().st_size > 10_000

    assert main(["demo", "--output_dir", str(folder)]) == 2
    assert "--overwrite" in capfd.readouterr().err
