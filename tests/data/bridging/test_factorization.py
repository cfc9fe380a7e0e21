"""The factorisation against closed forms, another optimiser and derivatives by another library."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from pluralpref.data.bridging import Parameters, factorize, held_out_error, intercept_bounds
from pluralpref.data.bridging.factorization import descend, random_start
from pluralpref.data.bridging.least_squares import LeastSquares
from pluralpref.data.bridging.parameters import identified
from pluralpref.errors import ConfigError, IdentificationWarning, InferenceError


def _flat(parameters):
    arrays = (parameters.rater_intercept, parameters.item_intercept, parameters.rater_factor, parameters.item_factor)
    return np.concatenate([[parameters.mu], *(array.ravel() for array in arrays)])


def _loss(flat, ratings, k, lambda_i, lambda_f):
    """Community Notes' loss as its code writes it: a mean squared error and means of squares."""
    u, n = len(ratings.annotators), len(ratings.items)
    mu, a, b, f, g = torch.split(flat, [1, u, n, u * k, n * k])
    f, g = f.reshape(u, k), g.reshape(n, k)
    row, col = torch.as_tensor(ratings.rater), torch.as_tensor(ratings.item)
    error = torch.as_tensor(ratings.value) - mu - a[row] - b[col] - (f[row] * g[col]).sum(1)
    weight = torch.as_tensor(ratings.weight)
    loss = (weight * error**2).sum() / weight.sum()
    loss = loss + lambda_i * (mu**2).sum() + lambda_i * (a**2).mean() + lambda_i * (b**2).mean()
    return loss + lambda_f * (f**2).sum(1).mean() + lambda_f * (g**2).sum(1).mean()


def _value_and_gradient(flat, *arguments):
    point = torch.tensor(flat, dtype=torch.float64, requires_grad=True)
    loss = _loss(point, *arguments)
    loss.backward()
    return loss.item(), point.grad.numpy()


def test_objective_by_hand(build):
    ratings = build([("p", "0a", 1.0, 3.0), ("q", "0a", 0.5, 1.0)])
    parameters = Parameters(0.1, np.array([0.2, -0.2]), np.array([0.3]), np.array([[1.0], [2.0]]), np.array([[0.1]]))
    # Predictions 0.1 + 0.2 + 0.3 + 0.1 = 0.7 and 0.1 - 0.2 + 0.3 + 0.2 = 0.4; errors 0.3 and 0.1.
    loss = (3 * 0.09 + 0.01) / 4
    intercepts = 0.01 + 0.04 + 0.09
    factors = (1 + 4) / 2 + 0.01
    assert LeastSquares(ratings, 0.15, 0.03).objective(parameters) == pytest.approx(
        loss + 0.15 * intercepts + 0.03 * factors
    )


def test_one_rating_by_hand(build):
    # (r - mu - i_u - i_n)² + L (mu² + i_u² + i_n²) is symmetric: each is r / (3 + L).
    found = factorize(build([("p", "0a", 1.0)]), num_factors=0, lambda_intercept=0.15).parameters
    assert [found.mu, *found.rater_intercept, *found.item_intercept] == pytest.approx([1 / 3.15] * 3)


def test_two_ratings_by_hand(build):
    # Without intercepts (their penalty is huge) p rates 1, q rates 0: ½(1 - f g)² + L (½ f² + g²) with q's factor 0.
    # In F = f/√2 it is (1/√2 - F g)² + L (F² + g²), so F = g and F² = 1/√2 - L. The one factor that isn't 0 is negative.
    fit = factorize(build([("p", "0a", 1.0), ("q", "0a", 0.0)]), lambda_intercept=1e9, lambda_factor=0.1)
    size = np.sqrt(1 / np.sqrt(2) - 0.1)
    assert fit.parameters.rater_factor.ravel() == pytest.approx([-np.sqrt(2) * size, 0], abs=1e-6)
    assert fit.parameters.item_factor.ravel() == pytest.approx([-size], abs=1e-6)
    assert fit.objective == pytest.approx(np.sqrt(2) * 0.1 - 0.01, abs=1e-8)


def test_no_factors_is_ridge_regression(build, random_cells):
    ratings = build(random_cells())
    fit = factorize(ratings, lambda_factor=1e4)
    assert np.abs(fit.parameters.rater_factor).max() < 1e-6
    assert np.abs(fit.parameters.item_factor).max() < 1e-6
    u, n, rows = len(ratings.annotators), len(ratings.items), np.arange(len(ratings))
    x = np.zeros((len(ratings), 1 + u + n))
    x[rows, 0] = x[rows, 1 + ratings.rater] = x[rows, 1 + u + ratings.item] = 1
    penalty = 0.15 * ratings.weight.sum() * np.array([1.0, *[1 / u] * u, *[1 / n] * n])
    weighted = x * ratings.weight[:, None]
    expected = np.linalg.solve(weighted.T @ x + np.diag(penalty), weighted.T @ ratings.value)
    found = fit.parameters
    assert [found.mu, *found.rater_intercept, *found.item_intercept] == pytest.approx(expected, abs=1e-6)
    alone = fit.without_factors()
    assert [alone.parameters.mu, *alone.parameters.item_intercept] == pytest.approx(
        [expected[0], *expected[1 + u :]], abs=1e-6
    )


@pytest.mark.parametrize("k", [1, 2])
def test_another_optimiser_and_gradient(build, random_cells, k):
    ratings = build(random_cells(people=9, items=8))
    problem = LeastSquares(ratings, 0.05, 0.01)
    start = problem.sweep(random_start(ratings, k, np.random.default_rng(3)))
    arguments = (ratings, k, 0.05, 0.01)
    parameters, history, converged = descend(problem, start, 1e-10, 20_000)
    assert converged
    assert np.abs(_value_and_gradient(_flat(start), *arguments)[1]).max() > 1e-3
    value, gradient = _value_and_gradient(_flat(parameters), *arguments)
    assert value == pytest.approx(history[-1], rel=1e-12)
    assert np.abs(gradient).max() < 1e-9
    options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-10}
    other = minimize(_value_and_gradient, _flat(start), args=arguments, jac=True, method="L-BFGS-B", options=options)
    assert other.fun == pytest.approx(history[-1], abs=1e-9)
    assert np.abs(parameters.item_factor).max() > 0.1  # it isn't about intercepts alone
    assert all(after <= before + 1e-15 for before, after in pairwise(history))


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 50), st.randoms(use_true_random=False))
def test_order_and_sign_do_not_matter(build, random_cells, seed, random):
    cells = random_cells(people=5, items=4, seed=seed, density=0.9)
    cells += [(*cell[:2], 1 - cell[2], 0.3) for cell in cells[:3]]  # rated twice
    ratings = build(cells)
    shuffled = list(cells)
    random.shuffle(shuffled)
    again = build(shuffled)
    for name in ("rater", "item", "value", "weight"):
        assert np.array_equal(getattr(again, name), getattr(ratings, name))
    problem = LeastSquares(ratings, 0.15, 0.03)
    start = random_start(ratings, 2, np.random.default_rng(seed))
    mirrored = Parameters(0.0, start.rater_intercept, start.item_intercept, -start.rater_factor, start.item_factor)
    first, second = (descend(problem, each, 1e-6, 20_000)[0] for each in (start, mirrored))
    assert second.rater_factor == pytest.approx(-first.rater_factor, abs=1e-12)
    assert second.item_intercept == pytest.approx(first.item_intercept, abs=1e-12)
    _, rater_component, item_component = ratings.components()
    both = [identified(each, rater_component, item_component) for each in (first, second)]
    assert both[0].item_factor == pytest.approx(both[1].item_factor, abs=1e-6)
    assert both[0].predict(ratings) == pytest.approx(first.predict(ratings), abs=1e-9)


def test_names_do_not_matter(build, random_cells):
    cells = random_cells(people=8, items=6, seed=4)
    fit = factorize(build(cells))
    others = [(f"{9 - int(who[1:])}x", f"{7 - int(answer[0])}{answer[1]}", *rest) for who, answer, *rest in cells]
    renamed = factorize(build(others))
    assert renamed.objective == pytest.approx(fit.objective, rel=1e-9)
    # The names are in the opposite order, the prompts too; the answers to each prompt are not.
    assert renamed.parameters.rater_factor[::-1] == pytest.approx(fit.parameters.rater_factor, abs=1e-5)
    order = [int(i) for i in np.arange(6).reshape(3, 2)[::-1].ravel()]
    assert renamed.parameters.item_intercept[order] == pytest.approx(fit.parameters.item_intercept, abs=1e-5)
    same = factorize(build(cells[::-1]))
    assert np.array_equal(same.parameters.item_intercept, fit.parameters.item_intercept)


def _camps():
    """12 people of one camp and 8 of another: what one likes the other doesn't, but for the prompt "9"."""
    people = [f"a{i:02}" for i in range(12)] + [f"b{i:02}" for i in range(8)]
    cells = []
    for n in range(10):
        liked_by = "ab"[n % 2]
        cells += [(who, f"{n // 2}{'cd'[n % 2]}", float(who[0] == liked_by)) for who in people]
    # Answer "9d" is liked by the larger camp; "9e" by 6 of its 12 people and by 5 of the 8 of the other camp.
    cells += [(who, "9d", float(who[0] == "a")) for who in people]
    cells += [(who, "9e", float(int(who[1:]) < {"a": 6, "b": 5}[who[0]])) for who in people]
    return cells


def test_two_camps(build):
    fit = factorize(build(_camps()))
    ratings = fit.ratings
    divisive, bridging = ([item.answer for item in ratings.items].index(answer) for answer in ("9d", "9e"))
    means, scores = ratings.item_means(), fit.parameters.item_intercept
    assert means[[divisive, bridging]] == pytest.approx([0.6, 0.55])
    assert scores[bridging] > scores[divisive] + 0.02
    viewpoint = fit.parameters.rater_factor.ravel()
    assert (viewpoint[:12] < -0.3).all()  # the larger camp
    assert (viewpoint[12:] > 0.3).all()
    assert abs(fit.parameters.item_factor[bridging, 0]) < 0.2 < abs(fit.parameters.item_factor[divisive, 0])
    assert fit.explained() > 0.8
    assert fit.without_factors().explained() < 0.2
    assert fit.starts_at_best == len(fit.starts) == 5


def test_held_out(build):
    camps = held_out_error(build(_camps()), num_factors=1)
    # Two answers of weight 1 each to about 10 % of 120 (person, prompt) pairs.
    assert 20 <= camps.ratings <= 24
    assert camps.with_factors < 0.1 < 0.2 < camps.without_factors
    generator = np.random.default_rng(0)
    chance = [(f"p{u}", f"{n}{'a'}", float(generator.random() < 0.5)) for u in range(20) for n in range(20)]
    found = held_out_error(build(chance), num_factors=1)
    assert found.with_factors > found.without_factors
    assert factorize(build(chance)).explained() > 0.15  # although it seems to explain something
    assert held_out_error(build([("p", "0a", 1.0), ("q", "0b", 1.0)]), num_factors=1, fraction=0.5) is None
    with pytest.raises(ConfigError, match="fraction=1"):
        held_out_error(build(chance), num_factors=1, fraction=1)
    with pytest.raises(ConfigError, match="num_factors=0"):
        held_out_error(build(chance), num_factors=0)


def test_few_ratings_need_larger_penalties(build):
    # Two camps with noise, every other prompt a matter of camps, and four people for an answer.
    generator = np.random.default_rng(0)
    people = [f"a{i}" for i in range(24)] + [f"b{i}" for i in range(16)]
    cells = []
    for n in range(300):
        for u in generator.choice(40, 4, replace=False):
            divided = 0.9 if people[u][0] == "a" else 0.1
            liked = generator.random() < (divided if n % 2 else 0.65)
            cells += [(people[u], f"{n}c", float(liked)), (people[u], f"{n}d", float(not liked))]
    ratings = build(cells)
    options = {"num_factors": 1, "fraction": 0.2, "num_starts": 2, "tolerance": 1e-4}
    small = held_out_error(ratings, **options)
    large = held_out_error(ratings, **options, lambda_intercept=0.5, lambda_factor=0.1)
    assert small.with_factors > small.without_factors + 0.02
    assert large.with_factors < large.without_factors - 0.01


def test_components(build):
    one = [("p", "0a", 1.0), ("q", "0a", 0.0), ("p", "0b", 0.0), ("q", "0b", 1.0), ("o", "0a", 1.0)]
    other = [(f"{who}2", f"1{answer[-1]}", value) for who, answer, value in one]
    with pytest.warns(IdentificationWarning, match="fall into 2 groups"):
        fit = factorize(build([*one, *other]), lambda_factor=0.01)
    assert fit.num_components == 2
    first, second = (fit.rater_component == label for label in (0, 1))
    assert {fit.ratings.annotators[i][-1] == "2" for i in np.flatnonzero(first)} in ({True}, {False})
    # Each side by itself has its larger group on the negative side, so that equal components look alike.
    assert fit.parameters.rater_factor[first] == pytest.approx(fit.parameters.rater_factor[second], abs=1e-6)
    assert np.abs(fit.parameters.rater_factor).max() > 0.3


def test_principal_axes(build, random_cells):
    fit = factorize(build(random_cells(people=12, items=10, seed=2)), num_factors=2, lambda_factor=0.01)
    gram = fit.parameters.item_factor.T @ fit.parameters.item_factor
    assert gram[0, 1] == pytest.approx(0, abs=1e-9)
    assert gram[0, 0] > gram[1, 1] > 0.01
    assert (np.sum(np.sign(fit.parameters.rater_factor), axis=0) <= 0).all()


def test_bounds_are_those_of_refits(build, random_cells):
    cells = random_cells(people=8, items=6, seed=1)
    fit = factorize(build(cells))
    ratings, found = fit.ratings, fit.parameters
    low, high = intercept_bounds(fit)
    n = 2
    rows = ratings.item == n
    factors = found.rater_factor.ravel()
    values = [found.item_intercept[n]]
    for i_u in (found.rater_intercept.min(), found.rater_intercept.max()):
        for f_u in (factors.min(), 0.0, factors.max()):
            for rating in (0.0, 1.0):
                f = np.append(factors[ratings.rater[rows]], f_u)
                i = np.append(found.rater_intercept[ratings.rater[rows]], i_u)
                r = np.append(ratings.value[rows], rating) - found.mu - i
                w = np.append(ratings.weight[rows], ratings.weight.mean())
                penalty = np.sqrt(np.array([0.15, 0.03]) * ratings.weight.sum() / 6)
                x = np.vstack([np.sqrt(w)[:, None] * np.column_stack([np.ones_like(f), f]), np.diag(penalty)])
                y = np.append(np.sqrt(w) * r, [0, 0])
                values.append(np.linalg.lstsq(x, y)[0][0])
    assert [low[n], high[n]] == pytest.approx([min(values), max(values)], abs=1e-7)
    assert low[n] < found.item_intercept[n] < high[n]


def test_bad_numbers(build, random_cells):
    ratings = build(random_cells())
    for name, value in (("num_factors", -1), ("num_starts", 0), ("max_sweeps", 0), ("seed", -1)):
        with pytest.raises(ConfigError, match=f"{name}={value}: must be at least"):
            factorize(ratings, **{name: value})
    for name, value in (("lambda_intercept", 0.0), ("lambda_factor", float("inf")), ("tolerance", float("nan"))):
        with pytest.raises(ConfigError, match=f"{name}={value}: must be greater than 0"):
            factorize(ratings, **{name: value})
    with pytest.raises(InferenceError, match="after 3 sweeps: raise max_sweeps"):
        factorize(ratings, max_sweeps=3)
