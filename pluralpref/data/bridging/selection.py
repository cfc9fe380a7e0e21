"""Which people and answers have enough ratings to say something about agreement."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pluralpref.data.bridging.ratings import REASONS, Ratings
from pluralpref.errors import ConfigError, DataError


def with_enough_ratings(
    ratings: Ratings, *, min_ratings_per_item: int = 2, min_ratings_per_annotator: int = 2
) -> Ratings:
    """Leave out answers that too few people rated, then people who rated too few answers, until nothing changes.

    What is left doesn't depend on the order, only the counts by reason do.

    :param min_ratings_per_item: fewest people who rated an answer, at least 1.
    :param min_ratings_per_annotator: fewest answers that a person rated, at least 1.
    :returns: the ratings that are left, with those that aren't counted in ``dropped``.
    :raises DataError: if each answer was rated by one person only, or nothing is left.
    :raises ConfigError: for a number less than 1.
    """
    for name, least in (
        ("min_ratings_per_item", min_ratings_per_item),
        ("min_ratings_per_annotator", min_ratings_per_annotator),
    ):
        if least < 1:
            raise ConfigError(f"{name}={least}: must be at least 1")
    if ratings.per_item().max() < 2:
        raise DataError(
            f"each of the {len(ratings.items)} answers was rated by one person only, so nothing can be said of what "
            "people agree on: bridging needs data in which several people compare or rate the same answers"
        )
    dropped = dict(ratings.dropped)
    while True:
        for reason, count, code, least in (
            ("few_annotators", ratings.per_item(), ratings.item, min_ratings_per_item),
            ("few_answers", ratings.per_annotator(), ratings.rater, min_ratings_per_annotator),
        ):
            keep = count[code] >= least
            if not keep.all():
                dropped[reason] = dropped.get(reason, 0) + int((~keep).sum())
                if not keep.any():
                    told = ", ".join(f"{n} {REASONS[name]}" for name, n in dropped.items())
                    raise DataError(
                        f"no rating is left: {told}; lower min_ratings_per_item or min_ratings_per_annotator"
                    )
                ratings = ratings.take(np.flatnonzero(keep))
                break
        else:
            return replace(ratings, dropped=dropped)
