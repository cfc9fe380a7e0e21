"""PAL: formulas, gradients and the fit, in worlds whose truth is known."""

import math
import random

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import lognorm
from torch.nn.functional import normalize

from pluralpref.errors import ConfigError, DataError, InferenceError, UnsupportedError
from pluralpref.inference.global_state import child_seed
from pluralpref.inference.pal import (
    Pal,
    PalConfig,
    fit_pal,
    hold_out_choices,
    pal_pairs,
    predict_known,
    predict_unknown,
)
from pluralpref.inference.pal.fit import mean_loss
from pluralpref.inference.pal.projector import Standardize
from pluralpref.models import CovariateStrength, FixedStrength, GammaStrength, LogNormalStrength

SMALL = {"latent_dim": 4, "hidden_layers": 0}


def world(variant, people, per_person, seed, size=5, truth=7):
    """Choices of people who mix two linear rewards, or two ideal points; with everybody's share of the first."""
    drawn, fixed = (torch.Generator().manual_seed(s) for s in (seed, truth))
    prototypes = 3 * normalize(torch.randn(2, size, generator=fixed), dim=1)
    share = torch.rand(people, generator=drawn)
    chosen, rejected = torch.randn(2, people * per_person, size, generator=drawn)
    who = torch.arange(people).repeat_interleave(per_person)
    anchor = (torch.stack([share, 1 - share], 1) @ prototypes)[who]
    if variant == "b":
        margins = ((chosen - rejected) * anchor).sum(1)
    else:
        margins = (rejected - anchor).square().sum(1) - (chosen - anchor).square().sum(1)
    preferred = (torch.rand(len(margins), generator=drawn) < torch.sigmoid(margins)).double()
    embeddings = {"chosen": chosen, "rejected": rejected, "prompt": torch.randn(len(who), 2, generator=drawn)}
    return pal_pairs(embeddings, annotator=[f"p{int(i)}" for i in who], preferred=preferred), share


def fitted(pairs, variant, k, **options):
    rates = {"learning_rate": 0.03, "weight_learning_rate": 0.1, "max_epochs": 25, "batch_size": 512}
    return fit_pal(pairs, PalConfig(variant, k, **{**SMALL, **rates, **options}), progress=False)


def one_pair():
    embeddings = {
        name: torch.tensor([[value]]) for name, value in (("chosen", 1.5), ("rejected", 0.5), ("prompt", 1.0))
    }
    return pal_pairs(embeddings, annotator=["p"])


def by_hand(variant):
    """A model of one person with weights 1/4 and 3/4 and f(x) = 2x; prototypes 1 and -1, or maps q and -3q."""
    pal = Pal(PalConfig(variant, 2, latent_dim=1, hidden_layers=0), ["p"], 1, 1, FixedStrength(1.0))
    with torch.no_grad():
        pal.logits.copy_(torch.tensor([[0.0, math.log(3)]]))
        pal.reward.f[0].weight.fill_(2.0)
        pal.reward.f[0].bias.zero_()
        if variant == "a":
            pal.reward.prototypes.copy_(torch.tensor([[1.0], [-1.0]]))
        else:
            for g, slope in zip(pal.reward.g, (1.0, -3.0), strict=True):
                g[0].weight.fill_(slope)
                g[0].bias.zero_()
    return pal


def test_preference_mapping_by_hand():
    pal = by_hand("b")
    # g(q) = q and -3q; f(c) - f(r) = 2; scores 2 and -6; h = 2/4 - 6 * 3/4 = -4.
    loss = pal.losses(one_pair()).sum()
    assert loss.item() == pytest.approx(math.log1p(math.exp(4)), rel=1e-6)
    loss.backward()
    slope = -expit(4)  # of the loss in h
    # h's derivatives: w_k (s_k - h); (c - r) z with z = 1/4 - 9/4; w_k (f(c) - f(r)) times the prompt, 1.
    assert pal.logits.grad.tolist()[0] == pytest.approx([slope * 0.25 * 6, slope * 0.75 * -2], rel=1e-5)
    assert pal.reward.f[0].weight.grad.item() == pytest.approx(slope * -2, rel=1e-5)
    assert pal.reward.f[0].bias.grad.item() == pytest.approx(0)
    assert [g[0].weight.grad.item() for g in pal.reward.g] == pytest.approx([slope * 0.5, slope * 1.5], rel=1e-5)


def test_ideal_point_by_hand():
    pal = by_hand("a")
    # Prototypes 1 and -1; a = -1/2, f(a) = -1; u(c) = -(3 + 1)^2, u(r) = -(1 + 1)^2; h = -12.
    loss = pal.losses(one_pair()).sum()
    assert loss.item() == pytest.approx(math.log1p(math.exp(12)), rel=1e-6)
    loss.backward()
    slope = -expit(12)
    # h = (2r + 1)^2 - (2c + 1)^2 with 1 in the place of -f(a): dh/df(a) = 2 (f(c) - f(r)) = 4, df(a)/dp_k = 2 w_k.
    assert pal.reward.prototypes.grad.flatten().tolist() == pytest.approx([slope * 2, slope * 6], rel=1e-5)
    assert pal.logits.grad.tolist()[0] == pytest.approx([slope * 3, slope * -3], rel=1e-5)
    # h = s^2 ((r - a)^2 - (c - a)^2) = -3 s^2 at the slope s = 2.
    assert pal.reward.f[0].weight.grad.item() == pytest.approx(slope * -12, rel=1e-5)


@pytest.mark.parametrize("variant", ["a", "b"])
def test_soft_labels_and_a_law_of_strength(variant):
    pal, pairs = by_hand(variant), one_pair()
    pal.strength = LogNormalStrength(mean=0.5, cv=1.0)
    h = pal.reward.per_pair(pal.reward.represent(pairs), pal.weights).item()
    assert h == pytest.approx(-12 if variant == "a" else -4)
    sigma = math.sqrt(math.log(2))
    density = lognorm(sigma, scale=0.5 / math.sqrt(2)).pdf
    up, down = (quad(lambda b, s=s: expit(s * b * h) * density(b), 0, 60, limit=400)[0] for s in (1, -1))
    soft = pal.pair_losses(torch.tensor([h, h, h]), torch.tensor([1.0, 0.25, 0.0]))
    expected = [-math.log(up), -0.25 * math.log(up) - 0.75 * math.log(down), -math.log(down)]
    assert soft.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("variant", ["a", "b"])
def test_people_are_recovered(variant):
    pairs, share = world(variant, 24, 120, seed=1)
    train, held_out = hold_out_choices(pairs, 0.25, 0)
    pal, one = fitted(train, variant, 2), fitted(train, variant, 1)
    place = [int(name[1:]) for name in pal.annotators]
    correlation = np.corrcoef(pal.weights[:, 0], share[place])[0, 1]
    assert abs(correlation) > 0.9
    losses = [predict_known(each, held_out).log_loss(held_out.preferred).mean() for each in (pal, one)]
    assert losses[0] < losses[1] - 0.03
    assert pal.history[-1]["loss"] < pal.history[0]["loss"]
    assert not pal.training
    # Its own people are predicted better by name than as strangers.
    assert losses[0] < predict_unknown(pal, held_out).log_loss(held_out.preferred).mean() - 0.03


def test_one_prototype_is_logistic_regression():
    generator = torch.Generator().manual_seed(3)
    chosen, rejected = torch.randn(2, 150, 4, generator=generator)
    truth = torch.tensor([1.0, -0.5, 0.0, 0.25])
    preferred = torch.sigmoid((chosen - rejected) @ truth + torch.randn(150, generator=generator)).double()
    weight = torch.rand(150, generator=generator).double()
    # One prompt for all: z is a constant, and f's transpose times z any vector.
    embeddings = {"chosen": chosen, "rejected": rejected, "prompt": torch.full((150, 3), 2.0)}
    pairs = pal_pairs(embeddings, annotator=["a", "b", "c"] * 50, preferred=preferred, weight=weight)
    pal = fit_pal(pairs, PalConfig("b", 1, 3, 0, optimizer="lbfgs", max_epochs=300), progress=False)

    x, y, w = (chosen - rejected).double().numpy(), preferred.numpy(), weight.numpy()

    def loss(theta):
        h = x @ theta
        return (w * (y * np.logaddexp(0, -h) + (1 - y) * np.logaddexp(0, h))).sum() / w.sum()

    best = minimize(loss, np.zeros(4), options={"gtol": 1e-8})
    assert mean_loss(pal, pairs) == pytest.approx(best.fun, abs=1e-6)
    known = predict_known(pal, pairs)
    assert known.log_odds.numpy() == pytest.approx(x @ best.x, abs=5e-3)
    # With one prototype everybody is the same.
    assert torch.equal(pal.weights, torch.ones(3, 1))
    assert torch.allclose(predict_unknown(pal, pairs).chosen, known.chosen, atol=1e-6)


def test_weights_count_like_copies():
    pairs, _ = world("b", 3, 30, seed=2)
    columns = {"chosen": pairs.chosen, "rejected": pairs.rejected, "prompt": torch.zeros(90, 2)}
    names = [pairs.names[code] for code in pairs.annotator]
    times = torch.arange(90) % 3
    rows = torch.arange(90).repeat_interleave(times)

    def one_reward(rows, weight):
        part = pal_pairs(
            {name: values[rows] for name, values in columns.items()},
            annotator=[names[row] for row in rows],
            preferred=pairs.preferred[rows],
            weight=weight,
        )
        return fit_pal(part, PalConfig("b", 1, 3, 0, optimizer="lbfgs", max_epochs=150), progress=False)

    weighted, copied = one_reward(torch.arange(90), times.double()), one_reward(rows, None)
    same = pal_pairs(columns, annotator=names, preferred=pairs.preferred)
    odds = [predict_known(each, same).log_odds for each in (weighted, copied)]
    assert (odds[0] - odds[1]).abs().max() < 0.01 * odds[0].std()
    unweighted = predict_known(one_reward(torch.arange(90), None), same).log_odds
    assert (odds[0] - unweighted).abs().max() > 0.3 * odds[0].std()


def test_the_scale_of_weights_is_nothing():
    pairs, _ = world("b", 4, 20, seed=3)
    rows = {"chosen": pairs.chosen, "rejected": pairs.rejected, "prompt": pairs.prompt}
    weight = torch.arange(80) % 4 + 0.5
    names = [pairs.names[code] for code in pairs.annotator]
    found = [
        fitted(pal_pairs(rows, annotator=names, weight=weight * scale), "b", 2, max_epochs=3, batch_size=16)
        for scale in (1, 16)
    ]
    losses = [[record["loss"] for record in pal.history] for pal in found]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert torch.allclose(found[0].logits, found[1].logits, atol=1e-5)


@pytest.mark.parametrize("variant", ["a", "b"])
def test_the_embeddings_units_are_nothing(variant):
    pairs, _ = world(variant, 4, 20, seed=3)
    units, shift = torch.tensor([100.0, 0.01, 1.0, 7.0, 3.0]), torch.tensor([0.0, 1.0, -200.0, 0.0, 5.0])
    other = pal_pairs(
        {
            "chosen": pairs.chosen * units + shift,
            "rejected": pairs.rejected * units + shift,
            "prompt": 50 * pairs.prompt - 3,
        },
        annotator=[pairs.names[code] for code in pairs.annotator],
        preferred=pairs.preferred,
    )
    losses = [[r["loss"] for r in fitted(each, variant, 2, max_epochs=3).history] for each in (pairs, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_constant_coordinate_is_only_centred():
    standardize = Standardize(3)
    rows = torch.tensor([[1.0, 5.0, 1e4], [3.0, 5.0, 1e4]])
    standardize.learn(rows[:1], rows[1:])
    assert standardize(rows).tolist() == [[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]


def test_weight_decay():
    pairs, _ = world("b", 3, 30, seed=2)
    config = PalConfig("b", 2, 3, 0, optimizer="lbfgs", max_epochs=300, weight_decay=0.1)
    pal = fit_pal(pairs, config, progress=False)
    pal.losses(pairs).mean().backward()
    for parameter in pal.reward.shared_parameters():
        assert (parameter.grad + 0.1 * parameter).abs().max() < 1e-4
    assert max(parameter.abs().max() for parameter in pal.reward.shared_parameters()) > 0.1
    # Equal answers have no gradient: Adam's first step is its rate towards 0, of f and g only.
    same = pal_pairs(dict.fromkeys(("chosen", "rejected", "prompt"), pairs.chosen), annotator=["a"] * 90)
    still, moved = (fitted(same, "b", 2, max_epochs=1, weight_decay=decay) for decay in (0.0, 0.5))
    for before, after in zip(still.reward.shared_parameters(), moved.reward.shared_parameters(), strict=True):
        assert torch.allclose(before - after, 0.03 * before.sign(), atol=1e-4)
    assert torch.equal(still.logits, moved.logits)


@pytest.mark.parametrize("variant", ["a", "b"])
@pytest.mark.parametrize("hidden_layers", [0, 2])
def test_the_order_of_prototypes_is_nothing(variant, hidden_layers):
    pairs, _ = world(variant, 5, 4, seed=4)
    pal = fitted(pairs, variant, 3, hidden_layers=hidden_layers, max_epochs=2)
    before = predict_known(pal, pairs), predict_unknown(pal, pairs)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        pal.logits.copy_(pal.logits[:, order])
        if variant == "a":
            pal.reward.prototypes.copy_(pal.reward.prototypes[order])
        else:
            pal.reward.g = torch.nn.ModuleList(pal.reward.g[int(k)] for k in order)
    for old, new in zip(before, (predict_known(pal, pairs), predict_unknown(pal, pairs)), strict=True):
        assert torch.allclose(old.chosen, new.chosen, atol=1e-5)
    assert pal.weights.std() > 1e-3


def test_seeds_reproduce_and_global_generators_are_left_alone():
    pairs, _ = world("b", 4, 10, seed=5)
    torch.manual_seed(11)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    options = {"max_epochs": 3, "batch_size": 8, "stopping_fraction": 0.2}
    first, same, other = (fitted(pairs, "b", 2, seed=seed, **options) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in first.state_dict().items())
    assert not torch.allclose(first.logits, other.logits)


def test_stopping_keeps_the_best_epoch():
    pairs, _ = world("b", 6, 12, seed=6)
    options = {
        "latent_dim": 16,
        "hidden_layers": 1,
        "max_epochs": 200,
        "stopping_fraction": 0.25,
        "patience": 3,
        "seed": 4,
    }
    pal = fitted(pairs, "b", 2, **options)
    losses = [record["held_out_loss"] for record in pal.history]
    assert 3 < len(losses) < 200
    assert int(np.argmin(losses)) == len(losses) - 4
    _, held_out = hold_out_choices(pairs, 0.25, child_seed(4, 1))
    assert mean_loss(pal, held_out) == pytest.approx(min(losses))


def test_a_strength_is_learned_and_the_given_one_left_alone():
    pairs, _ = world("b", 4, 20, seed=8)
    strength = GammaStrength(mean=1.0, cv=0.5)
    config = PalConfig("b", 2, **SMALL, max_epochs=3, weight_learning_rate=0.05)
    pal = fit_pal(pairs, config, strength=strength, progress=False)
    assert float(strength.cv) == pytest.approx(0.5)
    assert abs(float(pal.strength.cv) - 0.5) > 1e-3
    assert type(pal.strength) is GammaStrength


def test_held_out_choices():
    embeddings = {"chosen": torch.arange(24.0).reshape(12, 2), "rejected": torch.zeros(12, 2)}
    pairs = pal_pairs(embeddings, annotator=["a"] * 8 + ["b"] * 3 + ["c"])
    kept, out = hold_out_choices(pairs, 0.5, 0)
    count = {name: (out.annotator == code).sum().item() for code, name in enumerate(pairs.names)}
    assert count == {"a": 4, "b": 2, "c": 0}
    assert sorted([*kept.chosen.tolist(), *out.chosen.tolist()]) == sorted(pairs.chosen.tolist())
    assert torch.equal(hold_out_choices(pairs, 0.5, 0)[1].chosen, out.chosen)
    assert hold_out_choices(pairs, 0.99, 0)[0].num_pairs == 3
    with pytest.raises(DataError, match=r"nobody has enough choices to hold out a share of 0\.5"):
        hold_out_choices(pairs.take([8, 11]), 0.5, 0)
    with pytest.raises(DataError, match="give the pairs annotators"):
        hold_out_choices(pal_pairs(embeddings), 0.5, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotator": ["a", None, "b"]}, "row 1: column 'annotator' is empty"),
        ({"annotator": ["a", "b", " "]}, "row 2: column 'annotator' is empty"),
        ({"annotator": ["a", "b"]}, "annotator has 2 entries but there are 3"),
        ({"weight": [1.0, -1.0, 1.0]}, "weight: 1 of 3 values can't be used"),
        ({"preferred": [1.0, 0.0, 1.5]}, "preferred: 1 of 3 values can't be used"),
        ({"rejected": torch.zeros(3, 4)}, r"'chosen' have shape \(3, 2\) and 'rejected' \(3, 4\)"),
        ({"prompt": torch.zeros(2, 2)}, "embeddings 'prompt' have 2 rows but there are 3 pairs"),
        ({"chosen": torch.tensor([[0.0, 0], [0, 0], [0, math.nan]])}, "'chosen': 1 of 3 rows .* the first is row 2"),
        ({"chosen": torch.zeros(3)}, r"must have shape \(pairs, hidden\), got \(3,\)"),
    ],
)
def test_bad_rows(changes, message):
    columns = {"annotator": ["a", "b", "a"], "weight": None, "preferred": None}
    embeddings = {name: torch.zeros(3, 2) for name in ("chosen", "rejected", "prompt")}
    embeddings |= {name: value for name, value in changes.items() if name in embeddings}
    columns |= {name: value for name, value in changes.items() if name in columns}
    with pytest.raises(DataError, match=message):
        pal_pairs(embeddings, **columns)


def test_what_cannot_be_fitted():
    chosen, rejected, prompt = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(0))
    embeddings = {"chosen": chosen, "rejected": rejected}
    with pytest.raises(DataError, match="PAL needs to know who chose"):
        fit_pal(pal_pairs({**embeddings, "prompt": prompt}), progress=False)
    pairs = pal_pairs(embeddings, annotator=["a", "b"] * 3)
    with pytest.raises(DataError, match="PAL-B needs embeddings 'prompt'"):
        fit_pal(pairs, progress=False)
    pal = fit_pal(pairs, PalConfig("a", **SMALL, max_epochs=1), progress=False)  # PAL-A can do without
    other = pal_pairs({name: torch.zeros(1, 3) for name in embeddings}, annotator=["a"])
    with pytest.raises(DataError, match="have 3 coordinates but PAL was fitted to 2"):
        predict_known(pal, other)
    with pytest.raises(DataError, match="the embeddings have no 'rejected'"):
        pal_pairs({"chosen": torch.zeros(1, 2)})
    with pytest.raises(InferenceError, match=r"PAL's loss stopped being finite in epoch"):
        fit_pal(pairs, PalConfig("a", **SMALL, learning_rate=1e30, max_epochs=5), progress=False)
    for strength, message in (
        (CovariateStrength(["age"], LogNormalStrength(1.0, 0.5)), "depends on columns"),
        (LogNormalStrength(torch.distributions.LogNormal(0.0, 1.0), 0.5), "point values"),
    ):
        with pytest.raises(UnsupportedError, match=message):
            fit_pal(pairs, PalConfig("a"), strength=strength, progress=False)
    nothing = pal_pairs(embeddings, annotator=["a", "a", "b", "b", "c", "c"], weight=[1, 1, 0, 0, 0, 0]).take([2, 3])
    with pytest.raises(DataError, match="weight is 0 in every row"):
        fit_pal(nothing, PalConfig("a"), progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_prototypes": 0}, "num_prototypes=0: must be at least 1"),
        ({"variant": "c"}, "variant='c': choose one of a, b"),
        ({"optimizer": "sgd"}, "optimizer='sgd': choose one of adam, lbfgs"),
        ({"hidden_layers": -1}, "hidden_layers=-1: must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: must be a number greater than 0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0: must be a number of at least 0"),
        ({"stopping_fraction": 1.0}, "stopping_fraction=1.0: must lie between 0 and 1"),
        ({"patience": 2}, "patience has no effect without stopping_fraction"),
        ({"optimizer": "lbfgs", "batch_size": 8}, "batch_size has no effect with optimizer='lbfgs'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        PalConfig(**options)
