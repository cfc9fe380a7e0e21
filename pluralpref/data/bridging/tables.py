"""Tables of items and people, and files of them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from pluralpref.atomic import written_aside
from pluralpref.data.bridging.factorization import Factorization
from pluralpref.errors import ConfigError

#: Kinds of files that :func:`write_rows` writes.
SUFFIXES = (".jsonl", ".parquet")


def item_rows(fit: Factorization, bounds: tuple[np.ndarray, np.ndarray]) -> list[dict[str, Any]]:
    """One row for each item: prompt, answer, intercept, its range, factor, ratings, mean, component.

    :param bounds: see :func:`~pluralpref.data.bridging.intercept_bounds`.
    :returns: ``intercept_low`` and ``intercept_high`` are the range, ``factor_2`` and so on further factors, ``ratings``
        the number of people, ``mean`` the plain (weighted) mean rating, ``component`` a number from 0.
    """
    count, mean = fit.ratings.per_item(), fit.ratings.item_means()
    return [
        {
            "prompt": item.prompt,
            "answer": item.answer,
            "intercept": float(fit.parameters.item_intercept[i]),
            "intercept_low": float(bounds[0][i]),
            "intercept_high": float(bounds[1][i]),
            **_factors(fit.parameters.item_factor[i]),
            "ratings": int(count[i]),
            "mean": float(mean[i]),
            "component": int(fit.item_component[i]),
        }
        for i, item in enumerate(fit.ratings.items)
    ]


def annotator_rows(fit: Factorization) -> list[dict[str, Any]]:
    """One row for each person: annotator, intercept, factor, ratings (how many items), component."""
    count = fit.ratings.per_annotator()
    return [
        {
            "annotator": name,
            "intercept": float(fit.parameters.rater_intercept[u]),
            **_factors(fit.parameters.rater_factor[u]),
            "ratings": int(count[u]),
            "component": int(fit.rater_component[u]),
        }
        for u, name in enumerate(fit.ratings.annotators)
    ]


def _factors(values: np.ndarray) -> dict[str, float]:
    return {"factor" if k == 0 else f"factor_{k + 1}": float(value) for k, value in enumerate(values)}


def write_rows(path: str | os.PathLike[str], rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as JSON Lines or Parquet, complete or not at all.

    :param path: ends in .jsonl or .parquet; its folder is made if need be.
    :raises ConfigError: for another ending.
    """
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise ConfigError(f"{target}: the name must end in {' or '.join(SUFFIXES)}")
    with written_aside(target) as partial:
        if target.suffix == ".parquet":
            pyarrow.parquet.write_table(pa.Table.from_pylist(list(rows)), partial)
        else:
            with partial.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
