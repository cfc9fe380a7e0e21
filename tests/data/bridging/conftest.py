"""Invented ratings."""

from __future__ import annotations

import numpy as np
import pytest

from pluralpref.data.bridging.ratings import Item, Rating, collect_ratings


@pytest.fixture(scope="session")
def build():
    """Ratings from ``(annotator, answer, value)`` or with a weight; the answer "3b" answers the prompt "3"."""

    def make(cells):
        found = [(*cell, 1.0)[:4] for cell in cells]
        return collect_ratings(Rating(who, Item(answer[:-1], answer), value, w) for who, answer, value, w in found)

    return make


@pytest.fixture(scope="session")
def random_cells():
    """Cells of a table with holes, ratings and weights by chance."""

    def make(people=7, items=6, seed=0, density=0.7):
        generator = np.random.default_rng(seed)
        return [
            (f"p{u}", f"{n // 2}{'ab'[n % 2]}", float(generator.random()), float(generator.uniform(0.5, 2)))
            for u in range(people)
            for n in range(items)
            if generator.random() < density
        ]

    return make
