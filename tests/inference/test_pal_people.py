"""PAL for new people: weights from few choices, predictions from none, and models on disk."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from pluralpref.errors import ConfigError, DataError
from pluralpref.inference.pal import (
    Pal,
    PalConfig,
    fit_pal,
    fit_person,
    load_pal,
    pal_pairs,
    predict_few_shot,
    predict_known,
    predict_unknown,
    predict_with,
    save_pal,
    split_people,
)
from pluralpref.models import FixedStrength, GammaStrength

LN3 = math.log(3)


def choices(count, seed=0, size=3, people=None, **columns):
    generator = torch.Generator().manual_seed(seed)
    embeddings = {name: torch.randn(count, size, generator=generator) for name in ("chosen", "rejected", "prompt")}
    return pal_pairs(embeddings, annotator=people or ["new"] * count, **columns)


def random_pal(variant, k=2, hidden_layers=0, strength=None, seed=0, people=("a", "b")):
    config = PalConfig(variant, k, latent_dim=4, hidden_layers=hidden_layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pal = Pal(config, people, 3, 3, strength or FixedStrength(1.0))
        with torch.no_grad():
            pal.logits.normal_()
            for parameter in pal.reward.shared_parameters():
                parameter.mul_(2)
    return pal


def on_grid(pal, pairs, prior_strength=0.0):
    """The best of 1001 weights of two prototypes, and its objective."""
    share = torch.linspace(1e-6, 1 - 1e-6, 1001, dtype=torch.float64)
    w = torch.stack([share, 1 - share], 1)
    every = pairs.take(torch.arange(pairs.num_pairs).repeat(len(w)))
    losses = predict_with(pal, every, w.repeat_interleave(pairs.num_pairs, 0)).log_loss(every.preferred)
    values = (every.weight * losses).reshape(len(w), -1).sum(1) - prior_strength * w.log() @ pal.weights.double().mean(
        0
    )
    return values.min().item(), w[values.argmin()]


@pytest.mark.parametrize(("variant", "hidden_layers"), [("b", 1), ("a", 0), ("a", 1)])
@pytest.mark.parametrize("prior_strength", [0.0, 2.0])
def test_a_persons_weights_are_the_best_of_a_grid(variant, hidden_layers, prior_strength):
    for seed in (0, 1):
        generator = np.random.default_rng(seed)
        pairs = choices(12, seed, preferred=generator.uniform(size=12), weight=generator.uniform(size=12))
        pal = random_pal(variant, hidden_layers=hidden_layers, seed=seed)
        w = fit_person(pal, pairs, prior_strength=prior_strength)
        value, expected = on_grid(pal, pairs, prior_strength)
        losses = predict_with(pal, pairs, w).log_loss(pairs.preferred)
        found = float((pairs.weight * losses).sum())
        if prior_strength:
            found -= prior_strength * float((pal.weights.double().mean(0) * w.log()).sum())
        assert found < value + 1e-5
        assert w.tolist() == pytest.approx(expected.tolist(), abs=5e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 6), st.sampled_from([0.0, 1.0]))
def test_weights_are_on_the_simplex_and_no_worse_than_the_mean(seed, k, count, prior_strength):
    pal = random_pal("b", k, seed=seed)
    pairs = choices(count, seed)
    w = fit_person(pal, pairs, prior_strength=prior_strength)
    assert w.shape == (k,)
    assert (w >= 0).all()
    assert w.sum().item() == pytest.approx(1)
    if not prior_strength:
        mean = pal.weights.double().mean(0)
        losses = [predict_with(pal, pairs, each).log_loss(pairs.preferred).sum() for each in (w, mean)]
        assert losses[0] <= losses[1] + 1e-5


def test_a_prior_without_data_gives_the_mean():
    pal = random_pal("b", 3)
    same = torch.ones(2, 3)
    pairs = pal_pairs({"chosen": same, "rejected": same, "prompt": same})  # margins are 0 whatever the weights
    mean = pal.weights.double().mean(0)
    assert fit_person(pal, pairs, prior_strength=1.0).tolist() == pytest.approx(mean.tolist(), abs=1e-4)
    unweighted = pal_pairs({"chosen": same, "rejected": same, "prompt": same}, weight=[0, 1]).take([0])
    assert fit_person(pal, unweighted).tolist() == mean.tolist()


def test_fitting_a_person_leaves_the_model_and_generators_alone():
    pal = random_pal("a", hidden_layers=1, strength=GammaStrength(mean=1.0, cv=0.5))
    before = {name: value.clone() for name, value in pal.state_dict().items()}
    state = torch.get_rng_state()
    first, again = (fit_person(pal, choices(4)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in pal.state_dict().items())
    assert all(parameter.grad is None for parameter in pal.parameters())


def test_an_unknown_person_is_the_mean_of_all():
    pal = Pal(PalConfig("b", 2, latent_dim=1, hidden_layers=0), ["a", "b"], 1, 1, FixedStrength(1.0))
    with torch.no_grad():
        pal.logits.copy_(torch.tensor([[0.0, LN3], [0.0, 0.0]]))  # weights (1/4, 3/4) and (1/2, 1/2)
        for layer, slope in ((pal.reward.f[0], 1.0), (pal.reward.g[0][0], 1.0), (pal.reward.g[1][0], -1.0)):
            layer.weight.fill_(slope)
            layer.bias.zero_()
    one = torch.ones(1, 1)
    pairs = pal_pairs({"chosen": 2 * one, "rejected": -2 * one, "prompt": one}, annotator=["a"])
    # Scores 4 and -4; a's margin is 1 - 3 = -2, b's is 0.
    p = (1 / (1 + math.exp(2)) + 0.5) / 2
    found = predict_unknown(pal, pairs)
    assert found.chosen.exp().item() == pytest.approx(p, rel=1e-6)
    assert found.rejected.exp().item() == pytest.approx(1 - p, rel=1e-6)
    assert found.log_odds.item() == pytest.approx(math.log(p / (1 - p)), rel=1e-5)
    assert found.log_loss(torch.tensor([0.25])).item() == pytest.approx(
        -0.25 * math.log(p) - 0.75 * math.log(1 - p), rel=1e-6
    )
    assert predict_known(pal, pairs).log_odds.item() == pytest.approx(-2)
    assert predict_with(pal, pairs, torch.tensor([1.0, 0.0])).log_odds.item() == pytest.approx(4)


@pytest.mark.parametrize("variant", ["a", "b"])
def test_blocks_change_nothing(variant, monkeypatch):
    pal, pairs = random_pal(variant, 3, hidden_layers=1), choices(11, people=["a", "b"] * 5 + ["a"])
    whole = predict_known(pal, pairs), predict_unknown(pal, pairs)
    monkeypatch.setattr("pluralpref.inference.pal.predict._MOST_MARGINS", 4)
    for old, new in zip(whole, (predict_known(pal, pairs), predict_unknown(pal, pairs)), strict=True):
        assert torch.allclose(old.chosen, new.chosen, atol=1e-6)
        assert torch.allclose(old.rejected, new.rejected, atol=1e-6)


def test_a_few_choices_tell_more_than_none():
    drawn = torch.Generator().manual_seed(0)
    prototypes = 3 * normalize(torch.randn(2, 4, generator=drawn), dim=1)
    people, per_person = 50, 60
    share = torch.rand(people, generator=drawn).round()  # everybody is of one kind
    chosen, rejected = torch.randn(2, people * per_person, 4, generator=drawn)
    who = torch.arange(people).repeat_interleave(per_person)
    margins = ((chosen - rejected) * (torch.stack([share, 1 - share], 1) @ prototypes)[who]).sum(1)
    preferred = (torch.rand(len(who), generator=drawn) < torch.sigmoid(margins)).double()
    embeddings = {"chosen": chosen, "rejected": rejected, "prompt": torch.zeros(len(who), 1)}
    pairs = pal_pairs(embeddings, annotator=[f"p{int(i)}" for i in who], preferred=preferred)
    old, new = pairs.take(who < 30), pairs.take(who >= 30)
    rates = {"learning_rate": 0.03, "weight_learning_rate": 0.1, "max_epochs": 20, "batch_size": 512}
    pal = fit_pal(
        pal_pairs(
            {"chosen": old.chosen, "rejected": old.rejected, "prompt": old.prompt},
            annotator=[old.names[code] for code in old.annotator],
            preferred=old.preferred,
        ),
        PalConfig("b", 2, latent_dim=4, hidden_layers=0, **rates),
        progress=False,
    )
    found = predict_few_shot(pal, new, 8, progress=False)
    assert found.pairs.num_pairs == 20 * (60 - 8)
    assert found.left_out == ()
    few, zero = (each.log_loss(found.pairs.preferred).mean() for each in (found.few_shot, found.zero_shot))
    assert few < zero - 0.1
    kind = share[[int(name[1:]) for name in found.names]]
    assert abs(np.corrcoef(found.weights[:, 0], kind)[0, 1]) > 0.9


def test_few_shots_are_a_persons_own_and_not_predicted():
    names = ["x"] * 5 + ["y"] * 3 + ["z"] * 2
    pal, pairs = random_pal("b"), choices(10, people=names)
    found = predict_few_shot(pal, pairs, 2, seed=1, progress=False)
    assert found.names == ("x", "y")
    assert found.left_out == ("z",)
    assert found.pairs.num_pairs == 4
    for name, w in zip(found.names, found.weights, strict=True):
        code = pairs.names.index(name)
        rows = [i for i in range(10) if names[i] == name]
        left = found.pairs.chosen[found.pairs.annotator == code].tolist()
        shots = [i for i in rows if pairs.chosen[i].tolist() not in left]
        assert len(shots) == 2
        assert torch.equal(fit_person(pal, pairs.take(shots)), w)
        own = pairs.take([i for i in rows if i not in shots])
        mine = found.few_shot.chosen[found.pairs.annotator == code]
        assert torch.allclose(predict_with(pal, own, w).chosen, mine, atol=1e-6)
    other = predict_few_shot(pal, pairs, 2, seed=2, progress=False)
    assert not torch.equal(other.pairs.chosen, found.pairs.chosen)


def test_split_people():
    pal = random_pal("b")
    old, new = split_people(pal, choices(4, people=["b", "new", "a", "new"]))
    assert [old.names[code] for code in old.annotator] == ["b", "a"]
    assert [new.names[code] for code in new.annotator] == ["new", "new"]
    assert split_people(pal, choices(2, people=["a", "b"]))[1] is None
    assert split_people(pal, choices(2))[0] is None


def test_what_cannot_be_predicted():
    pal = random_pal("b")
    with pytest.raises(DataError, match="row 1: annotator 'new' is not among the 2 training people: fit weights"):
        predict_known(pal, choices(2, people=["a", "new"]))
    with pytest.raises(DataError, match="choices of several people"):
        fit_person(pal, choices(2, people=["x", "y"]))
    with pytest.raises(DataError, match="have 4 coordinates but PAL was fitted to 3"):
        fit_person(pal, choices(2, size=4))
    with pytest.raises(ConfigError, match="prior_strength=-1"):
        fit_person(pal, choices(2), prior_strength=-1)
    with pytest.raises(DataError, match=r"weights have shape \(3,\)"):
        predict_with(pal, choices(2), torch.ones(3) / 3)
    with pytest.raises(DataError, match="weights must be at least 0 and have sum 1"):
        predict_with(pal, choices(2), torch.ones(2))
    with pytest.raises(DataError, match="none of the 1 new people has more than 2 choices"):
        predict_few_shot(pal, choices(2), 2, progress=False)
    with pytest.raises(ConfigError, match="shots=0"):
        predict_few_shot(pal, choices(2), 0, progress=False)
    nameless = choices(2)
    nameless = pal_pairs({"chosen": nameless.chosen, "rejected": nameless.rejected, "prompt": nameless.prompt})
    for function in (predict_known, split_people, lambda pal, pairs: predict_few_shot(pal, pairs, 1)):
        with pytest.raises(DataError, match="annotator"):
            function(pal, nameless)


@pytest.mark.parametrize("variant", ["a", "b"])
def test_a_saved_model_predicts_the_same(variant, tmp_path):
    pal = random_pal(variant, 3, hidden_layers=1, strength=GammaStrength(mean=1.0, cv=0.5), people=("zoë", "b"))
    pairs = choices(6, people=["zoë", "b"] * 3)
    pal.reward.learn_scales(pairs)
    pal.history.append({"epoch": 1.0, "loss": 0.5})
    with torch.no_grad():
        pal.strength.beta_cv = torch.tensor(0.7, dtype=torch.float64)
    save_pal(pal, tmp_path / "pal")
    state = torch.get_rng_state()
    again = load_pal(tmp_path / "pal")
    assert torch.equal(torch.get_rng_state(), state)
    assert again.annotators == ("zoë", "b")
    assert again.config == pal.config
    assert again.history == pal.history
    assert float(again.strength.cv) == pytest.approx(0.7)
    for function in (predict_known, predict_unknown):
        assert torch.equal(function(again, pairs).chosen, function(pal, pairs).chosen)


def test_damaged_folders(tmp_path):
    with pytest.raises(DataError, match=r"holds no pal.json: not a saved PAL model"):
        load_pal(tmp_path)
    save_pal(random_pal("b"), tmp_path)
    config = json.loads((tmp_path / "pal.json").read_text())
    for text, message in (("{", "is damaged"), (json.dumps({**config, "config": {"k": 1}}), "is damaged")):
        (tmp_path / "pal.json").write_text(text)
        with pytest.raises(DataError, match=message):
            load_pal(tmp_path)
    (tmp_path / "pal.json").write_text(json.dumps({**config, "size": 4}))
    with pytest.raises(DataError, match=r"pal.safetensors is missing or damaged"):
        load_pal(tmp_path)
